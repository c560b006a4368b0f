"""
EDGE: the system's user database (getpwnam, getgrouplist), asked so that an outage shows.

Python's `pwd` says KeyError for "no such user" and for "the directory server is down"
alike; the second must be [SYS/TEMP]. So libc is asked directly. Names and paths are
octets. Executed by auth's checkers, as root.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

from gpop.accounts.account import SourceUnavailable

FIRST_BUFFER_OCTETS = 4096
MAX_BUFFER_OCTETS = 1024 * 1024
FIRST_GROUPS = 64
MAX_GROUPS = 65536  # NGROUPS_MAX
# getpwnam_r(3) lists what systems return for a name they do not have. EBADF and EPERM of that
# list are left out: with glibc they tell of a database that could not be asked.
NOT_FOUND = (0, errno.ENOENT, errno.ESRCH)


class _Passwd(ctypes.Structure):
    """struct passwd of Linux."""

    _fields_ = (
        ("pw_name", ctypes.c_char_p),
        ("pw_passwd", ctypes.c_char_p),
        ("pw_uid", ctypes.c_uint32),
        ("pw_gid", ctypes.c_uint32),
        ("pw_gecos", ctypes.c_char_p),
        ("pw_dir", ctypes.c_char_p),
        ("pw_shell", ctypes.c_char_p),
    )


@dataclass(frozen=True, slots=True)
class User:
    """A user of the system."""

    name: bytes
    uid: int
    gid: int
    home: bytes


_libc = ctypes.CDLL(None, use_errno=True)
_libc.getpwnam_r.argtypes = [
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
]
_libc.getgrouplist.argtypes = [
    ctypes.c_char_p,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int),
]


def lookup(name: bytes) -> User | None:
    """
    Return the user `name`, None if the system does not have it.

    Raises:
        SourceUnavailable: the user database could not be asked.
    """
    size = FIRST_BUFFER_OCTETS
    while True:
        entry = _Passwd()
        found = ctypes.c_void_p()
        buffer = ctypes.create_string_buffer(size)
        code = _libc.getpwnam_r(name, ctypes.byref(entry), buffer, size, ctypes.byref(found))
        if code == errno.EINTR:
            continue
        if code == errno.ERANGE and size < MAX_BUFFER_OCTETS:
            size *= 4
            continue
        break
    if found.value is not None:
        return User(entry.pw_name or name, entry.pw_uid, entry.pw_gid, entry.pw_dir or b"")
    if code in NOT_FOUND:
        return None
    raise SourceUnavailable(f"getpwnam: {os.strerror(code)}")


def groups(user: User) -> list[int]:
    """
    Return the ids of the groups `user` is in, the primary one included.

    Raises:
        SourceUnavailable: the group database gave no answer.
    """
    room = FIRST_GROUPS
    while True:
        ids = (ctypes.c_uint32 * room)()
        count = ctypes.c_int(room)
        if _libc.getgrouplist(user.name, user.gid, ids, ctypes.byref(count)) >= 0:
            return list(ids[: count.value])
        # -1: too small, and count says how much is needed; if it does not, something else is wrong.
        if count.value <= room or count.value > MAX_GROUPS:
            raise SourceUnavailable("getgrouplist failed")
        room = count.value


def warm() -> None:
    """Have libc load its database modules now, so that no checker has to: a hit and a miss."""
    for name in (b"root", b"gpop-no-such-user"):
        try:
            user = lookup(name)
        except SourceUnavailable:
            continue  # a login will say so
        if user is not None:
            groups(user)
