"""
EDGE: how a command gets into a Maildir: as its owner, who arranges what lies there.

Started by root, a command becomes the owner for good before anything in the Maildir is opened, as a
session does, and follows no symbolic link on the way but root's own (`/home` often is one). One that has many
Maildirs to look at does that in a process per Maildir.
"""

from __future__ import annotations

import os
import pwd
import stat

from gpop.events import printable
from gpop.privsep import credentials

# As long as a path can be.
MAX_PATH_OCTETS = 4096
MAX_LINKS = 40  # as many as the kernel follows
WRITABLE_BY_OTHERS = 0o022


class Refused(Exception):
    """The command can't do what it was asked to; the text says why."""


def shown(path: str) -> str:
    """
    Return a path as it can be printed.

    The administrator's shell makes a command's arguments of names that users chose (`/home/*/Maildir`).
    """
    return printable(os.fsencode(path), MAX_PATH_OCTETS)


def words_of(error: Exception, path: str) -> str:
    """Say what is wrong, behind `path`, which was named on the command line."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if place in ("", path, os.path.abspath(path)):
        return error.strerror
    return f"{shown(place)}: {error.strerror}"


def enter(path: str) -> int:
    """Become the Maildir's owner, if there is root to give up, and return its descriptor."""
    absolute = _behind_roots_links(os.path.abspath(path))
    status = os.lstat(absolute)
    if os.path.realpath(absolute) != absolute:
        where_to = shown(os.path.realpath(absolute))
        raise Refused(f"the path leads through a symbolic link; name {where_to} itself")
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


def _behind_roots_links(path: str) -> str:
    """Follow the symbolic links that are root's, as far as nobody else has a say in what is on the way."""
    done, left, links = "/", path.split("/"), 0
    while left and _has_only_root_a_say(done):
        name = left.pop(0)
        here = os.path.join(done, name)
        status = os.lstat(here)
        if name == "..":
            done = os.path.dirname(done)
        elif not stat.S_ISLNK(status.st_mode):
            done = here if name not in ("", ".") else done
        elif status.st_uid == 0 and links < MAX_LINKS:
            links += 1
            target = os.readlink(here)
            left[:0] = target.split("/")
            done = "/" if target.startswith("/") else done
        else:
            return os.path.join(here, *left)
    return os.path.join(done, *left)


def _has_only_root_a_say(directory: str) -> bool:
    status = os.lstat(directory)
    return status.st_uid == 0 and not status.st_mode & WRITABLE_BY_OTHERS


def _groups_of(status: os.stat_result) -> tuple[int, list[int]]:
    try:
        owner = pwd.getpwuid(status.st_uid)
    except KeyError:
        return max(status.st_gid, 1), []
    return owner.pw_gid, os.getgrouplist(owner.pw_name, owner.pw_gid)
