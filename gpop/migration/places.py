"""
EDGE: where the Maildir of a user of the list is: from gpop's own accounts, or by a pattern.

Asked in the user's own process, while that may still be root. Executed by `gpop uidl import`.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable

from gpop.accounts import sources
from gpop.accounts.account import Refused
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.config import Config

# From a name of the list to the absolute path of a Maildir and the uid that has to own it.
Place = Callable[[bytes], tuple[bytes, int]]

ANY_UID = -1


class NoPlace(Exception):
    """It is not known where a user's Maildir is; the text says why."""


def by_accounts(config: Config) -> Place:
    """
    Return a `Place` that asks the sources of accounts in gpop's config, without any password.

    A name is what a user logs in by: name rules and virtual user maps say which account that is.

    Raises:
        NoPlace: a map needs a library that is not there.
    """
    auth = config.auth
    asked = sources.build(auth.sources, sources.limits_of(auth))
    for source in asked:
        source.warm()
    virtual = VirtualUsers(auth)
    try:
        virtual.warm()
    except MapError as error:
        raise NoPlace(str(error)) from None
    for _ in virtual.refresh():
        pass  # texts are read; one that can't be makes each name it is asked for a refusal

    def place(name: bytes) -> tuple[bytes, int]:
        # No client has connected to any address: of the default domains there is the one for all of them.
        login_name = virtual.rules.login_name(name, "")
        verdict = sources.decide(asked, sources.Request(login_name, None, None), virtual=virtual)
        if isinstance(verdict, Refused):
            detail = f" ({verdict.detail})" if verdict.detail else ""
            raise NoPlace(f"gpop would not serve this user: {verdict.reason}{detail}")
        return verdict.account.maildir, verdict.account.uid

    return place


def by_pattern(pattern: str) -> Place:
    """
    Return a `Place` that puts the name into a path: %u all of it, %n what is before the @, %d what is after.

    A path that begins with ~/ is in the home of the system's user of that name.

    Raises:
        NoPlace: the pattern has something else with a %, or none of these.
    """
    found = re.findall("%.?", pattern)
    if not set(found) <= {"%u", "%n", "%d", "%%"} or not (found or pattern.startswith("~/")):
        raise NoPlace(
            f"{pattern}: a pattern has %u, %n or %d in it and nothing else with a %, or begins with ~/"
        )

    def place(name: bytes) -> tuple[bytes, int]:
        local, _, domain = name.partition(b"@")
        if b"/" in name or name.startswith(b".") or domain.startswith(b".") or b"\0" in name:
            raise NoPlace("a name with / or with a dot in front is no part of a path")
        if "%d" in pattern and not domain:
            raise NoPlace(f"{pattern}: there is no domain in the name")
        values = {"%u": name, "%n": local, "%d": domain, "%%": b"%"}
        path = b"".join(
            values[piece] if piece in values else piece.encode() for piece in re.split("(%.?)", pattern)
        )
        return (_home(local) + path[1:] if path.startswith(b"~/") else path), ANY_UID

    return place


def _home(name: bytes) -> bytes:
    try:
        return os.fsencode(pwd.getpwnam(os.fsdecode(name)).pw_dir)
    except KeyError:
        raise NoPlace("the system has no user of this name") from None
