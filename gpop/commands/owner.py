"""
EDGE: how a command gets into a Maildir: as its owner, who arranges what lies there.

Started by root, a command becomes the owner for good before anything in the Maildir is opened, as a
session does, and follows no symbolic link on the way. One that has many Maildirs to look at does
that in a child per Maildir, and believes of what comes back only that it is JSON.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable
from typing import Any, NoReturn

from gpop.privsep import credentials

# What a child may say about its Maildir: the answer of some 100,000 messages.
MAX_ANSWER_OCTETS = 64 * 1024 * 1024


class Refused(Exception):
    """The command can't do what it was asked to; the text says why."""


def enter(path: str) -> int:
    """Become the Maildir's owner, if there is root to give up, and return its descriptor."""
    absolute = os.path.abspath(path)
    status = os.lstat(absolute)
    if os.path.realpath(absolute) != absolute:
        raise Refused(f"the path leads through a symbolic link; name {os.path.realpath(absolute)} itself")
    if not stat.S_ISDIR(status.st_mode):
        raise Refused("not a directory")
    home, where = os.fsencode(os.path.dirname(absolute)), os.fsencode(absolute)
    try:
        if os.geteuid() != 0:
            return credentials.open_own_maildir(os.geteuid(), home, where)
        if status.st_uid == 0:
            raise Refused("it belongs to root, whose mail gpop does not serve")
        gid, groups = _groups_of(status)
        return credentials.become_user(status.st_uid, gid, groups, home, where, "none", (1, 1))
    except credentials.CredentialsRefused as error:
        if os.geteuid() == status.st_uid:
            raise
        raise Refused(f"not yours: run this as its owner or as root ({error})") from error


def _groups_of(status: os.stat_result) -> tuple[int, list[int]]:
    try:
        owner = pwd.getpwuid(status.st_uid)
    except KeyError:
        return max(status.st_gid, 1), []
    return owner.pw_gid, os.getgrouplist(owner.pw_name, owner.pw_gid)


def asked(path: str, work: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """
    Have `work` done by the owner of a Maildir, in a child of this process; returns its answer.

    `work` gets a descriptor of the Maildir, and returns what JSON can say. Whoever owns the Maildir
    owns that child: what it answers may be wrong, never dangerous.

    Raises:
        Refused: the Maildir can't be entered, or the work was not done; with the reason.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _answer(sending, path, work)
    os.close(sending)
    try:
        with open(receiving, "rb") as pipe:
            octets = pipe.read(MAX_ANSWER_OCTETS + 1)
    finally:
        _, status = os.waitpid(child, 0)
    if len(octets) > MAX_ANSWER_OCTETS:
        raise Refused("its owner's process says more than anybody wants to know")
    try:
        answer = json.loads(octets)
    except ValueError:
        raise Refused(f"its owner's process ended without an answer (status {status})") from None
    if not isinstance(answer, dict) or "refused" in answer:
        raise Refused(str(answer.get("refused")) if isinstance(answer, dict) else "not an answer")
    return answer


def _answer(sending: int, path: str, work: Callable[[int], dict[str, Any]]) -> NoReturn:
    """Be the child: enter, work, answer, end."""
    status = 1
    try:
        try:
            answer = work(enter(path))
            status = 0
        except Exception as error:
            answer = {"refused": str(error) or type(error).__name__}
        with open(sending, "wb") as pipe:
            pipe.write(json.dumps(answer).encode("ascii"))
    finally:
        os._exit(status)
