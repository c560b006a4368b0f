"""
EDGE: the sources of accounts, asked in their order, and the rules between them; virtual user maps before.

A source that does not know a name says None, and the next one is asked. A source that
knows it decides, also if the answer is no. A source that can't be asked ends the matter
with [SYS/TEMP]: who falls through an outage may find another user of the same name behind
it. Executed as root by auth's checkers; auth itself only builds the sources, warms and
refreshes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gpop.accounts import hashes, nss
from gpop.accounts.account import (
    AUTH,
    MAX_GROUPS,
    SYS_PERM,
    SYS_TEMP,
    Accepted,
    Account,
    Limits,
    MaildirNotUnderstood,
    Refused,
    SourceUnavailable,
    Verdict,
    resolve_maildir,
)
from gpop.accounts.maps.errors import MapError, MapLoop
from gpop.accounts.maps.resolving import Rejected
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.passwdfile import Entry, PasswdFile

if TYPE_CHECKING:
    from gpop.config import AuthSettings


# From where a request comes that no client has made, to PAM, which wants to know.
LOOPBACK = "127.0.0.1"


class Request:
    """
    A login to decide; `password` is None where only the account phase is asked, `peer` where no client came.

    `prepared` are name and password to be tried after those that were sent, b"" where there is no other form.
    """

    __slots__ = ("name", "password", "peer", "prepared")

    def __init__(
        self,
        name: bytes,
        password: bytes | None,
        peer: str | None,
        prepared: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self.name = name
        self.password = password
        self.peer = peer
        self.prepared = prepared

    def forms(self) -> list[Request]:
        """This request in each form that its name and password have; first as they were sent."""
        if self.prepared == (b"", b""):
            return [self]
        names = [self.name, self.prepared[0]] if self.prepared[0] else [self.name]
        passwords = [self.password]
        if self.prepared[1] and self.password is not None:
            passwords.append(self.prepared[1])
        return [Request(name, password, self.peer) for name in names for password in passwords]

    def __repr__(self) -> str:
        return f"<Request {self.name!r} from {self.peer}>"


class Source(Protocol):
    """What may know a user."""

    kind: str

    def warm(self) -> None:
        """Load and touch what a checker will need; called once, by auth."""

    def watched_files(self) -> list[str]:
        """Return the files from which this source's answers come, as far as it knows them."""

    def decide(self, request: Request) -> Verdict | None:
        """Return the verdict, None if the name is unknown here. Raises SourceUnavailable."""


class PasswdFileSource:
    """Accounts of one passwd-file; `file` is refreshed by auth, never by a checker."""

    kind = "passwd-file"

    def __init__(self, path: str, limits: Limits) -> None:
        self.file = PasswdFile(path)
        self._limits = limits

    def warm(self) -> None:
        """See `Source`."""
        hashes.warm()
        self.file.refresh()

    def watched_files(self) -> list[str]:
        """See `Source`."""
        return [self.file.path]

    def decide(self, request: Request) -> Verdict | None:
        """See `Source`."""
        entry = self.file.lookup(request.name)
        if entry is None:
            return None
        reason = self._limits.refusal(entry.uid, entry.gid) or self._refusal(entry, request)
        if reason:
            return Refused(AUTH, reason, self.kind)
        maildir = self._limits.maildir.encode() if entry.maildir is None else entry.maildir
        return _account(request.name, entry.uid, entry.gid, (entry.gid,), entry.home, maildir, self.kind)

    def _refusal(self, entry: Entry, request: Request) -> str:
        if request.password is not None:
            try:
                stored = hashes.StoredPassword(entry.password)
                if stored.locked:
                    return "password_locked"
                if not request.password:
                    return "empty_password"
                if not stored.matches(request.password):
                    return "wrong_password"
            except hashes.HashNotUsable as error:
                raise SourceUnavailable(f"{self.file.path}: {error}") from None
        if request.peer is not None and not entry.allows_peer(request.peer):
            return "peer_not_allowed"
        return "account_nologin" if entry.nologin else ""


class PamSource:
    """Users of the system (NSS), whose passwords PAM checks."""

    kind = "pam"

    def __init__(self, service: str, limits: Limits) -> None:
        # Who has only passwd-files needs neither python-pam nor libpam.
        from gpop.accounts import pam

        self._pam = pam
        self.service = service
        self._limits = limits
        self._warmed: object = None

    def warm(self) -> None:
        """See `Source`."""
        hashes.warm()
        self._warmed = self._pam.warm(self.service)
        nss.warm()

    def watched_files(self) -> list[str]:
        """See `Source`."""
        return self._pam.files_of(self.service)

    def has_file(self) -> bool:
        """Say whether PAM has a file for the service; without one it would ask its `other`."""
        return self._pam.service_file(self.service) is not None

    def decide(self, request: Request) -> Verdict | None:
        """See `Source`."""
        user = nss.lookup(request.name)
        if user is None:
            return None
        reason = self._limits.refusal(user.uid, user.gid)
        if reason:
            # Before PAM: nobody gets to try root's password here.
            return Refused(AUTH, reason, self.kind)
        if not self.has_file():
            raise SourceUnavailable(f"/etc/pam.d/{self.service} is not there any more")
        peer = LOOPBACK if request.peer is None else request.peer
        if request.password is None:
            answer = self._pam.check_account(self.service, request.name, peer)
        else:
            answer = self._pam.check(self.service, request.name, request.password, peer)
        if answer.code:
            detail = f"PAM service {self.service}: {answer.detail}"
            return Refused(answer.code, answer.reason, self.kind, detail)
        groups = self._limits.valid_groups(nss.groups(user))
        maildir = self._limits.maildir.encode()
        return _account(user.name, user.uid, user.gid, groups, user.home, maildir, self.kind)


def _account(
    name: bytes, uid: int, gid: int, groups: tuple[int, ...], home: bytes, setting: bytes, source: str
) -> Verdict:
    """Return the account of a user who has proved who he is, or what keeps it from being served."""
    try:
        maildir = resolve_maildir(setting, home)
    except MaildirNotUnderstood as error:
        return Refused(SYS_PERM, "maildir_not_understood", source, str(error))
    if len(groups) > MAX_GROUPS:
        return Refused(SYS_PERM, "too_many_groups", source, f"{len(groups)} groups, at most {MAX_GROUPS}")
    return Accepted(Account(name, uid, gid, groups, home, maildir), source)


def limits_of(settings: AuthSettings) -> Limits:
    """Return which accounts the config lets this process serve: without root its own user's alone."""
    return Limits(
        settings.first_valid_uid,
        settings.first_valid_gid,
        settings.maildir,
        None if os.geteuid() == 0 else os.geteuid(),
        settings.last_valid_uid,
    )


def build(settings: Sequence[dict[str, Any]], limits: Limits) -> list[Source]:
    """
    Return the sources that the config lists, in its order.

    Raises:
        ValueError: a type that is not known (config has refused it before).
    """
    return [_source(row, limits) for row in settings]


def _source(row: dict[str, Any], limits: Limits) -> Source:
    if row["type"] == "passwd-file":
        return PasswdFileSource(row["path"], limits)
    if row["type"] == "pam":
        return PamSource(row["service"], limits)
    raise ValueError(f"accounts.sources: unknown type {row['type']!r}")


MAPS = "maps"  # the source of a refusal that is none of theirs

# What another form of the same name and password may change.
_OTHER_FORM_MAY_HELP = ("unknown_user", "wrong_password")


def decide(
    sources: Sequence[Source], request: Request, only: int | None = None, virtual: VirtualUsers | None = None
) -> Verdict:
    """
    Ask `sources` about a request as it was sent, then about its other forms, and return the verdict.

    Its names are login names; `virtual` says which accounts they mean. `only` asks just the source at that
    place. Raises nothing that a source or a map may raise: an outage is a verdict too. A name that is
    unknown costs as many password checks as one that is known.
    """
    refusals: list[Refused] = []
    for form in request.forms():
        mapped = form if virtual is None else _mapped(form, virtual)
        verdict = _decide_form(sources, mapped, only) if isinstance(mapped, Request) else mapped
        if not isinstance(verdict, Refused) or verdict.reason not in _OTHER_FORM_MAY_HELP:
            return verdict
        refusals.append(verdict)
    # The name was known in one form: that is what the log is to say.
    return next((each for each in refusals if each.reason == "wrong_password"), refusals[0])


def _mapped(request: Request, virtual: VirtualUsers) -> Request | Refused:
    """Return `request` for the account that its name means, or why nobody may log in by that name."""
    try:
        name = virtual.account_name(request.name)
    except MapLoop as error:
        return Refused(SYS_TEMP, "map_loop", MAPS, str(error))
    except MapError as error:
        return Refused(SYS_TEMP, "map_unavailable", MAPS, str(error))
    if isinstance(name, Rejected):
        _burn(request)
        return Refused(AUTH, name.reason, MAPS, name.text)
    return Request(name, request.password, request.peer)


def _burn(request: Request) -> None:
    """Spend what a password check costs."""
    if request.password:
        with contextlib.suppress(hashes.HashNotUsable):  # without a crypt(3) there is nothing to hide behind
            hashes.burn(request.password)


def _decide_form(sources: Sequence[Source], request: Request, only: int | None) -> Verdict:
    """Ask `sources` in order about one form of a request."""
    for origin, source in enumerate(sources):
        if only is not None and origin != only:
            continue
        try:
            verdict = source.decide(request)
        except SourceUnavailable as error:
            return Refused(SYS_TEMP, "source_unavailable", source.kind, str(error))
        if isinstance(verdict, Accepted):
            return Accepted(verdict.account, verdict.source, origin)
        if verdict is not None:
            break
    else:
        verdict = Refused(AUTH, "unknown_user")
    if verdict.reason in _NO_HASH_CHECKED:
        _burn(request)
    return verdict


# Refusals that came without the cost of a password check: see hashes.burn.
_NO_HASH_CHECKED = frozenset(
    (
        "unknown_user",
        "uid_0",
        "uid_too_low",
        "uid_too_high",
        "uid_not_valid",
        "gid_too_low",
        "gid_not_valid",
        "other_user_without_root",
        "password_locked",
    )
)
