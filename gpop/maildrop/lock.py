"""
EDGE: the session lock: one session per maildrop (RFC 1939 §8).

Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from gpop.maildrop import system
from gpop.maildrop.errors import MaildropInUse

LOCK_FILE = ".gpop-lock"
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LOCK_POLL_S = 0.05
# What flock answers where directories can't be locked: NFS wants a descriptor open for writing.
NO_DIRECTORY_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)
BUSY = (errno.EAGAIN, errno.EACCES)

# Lock files in use, by the descriptor of the Maildir they stand for.
_lock_files: dict[int, int] = {}


def lock(dir_fd: int, wait_s: float) -> None:
    """
    Take the session lock of a Maildir, which ends with `unlock`, or with the process.

    It is a flock on the directory itself, so that nothing is left behind. Where that can't
    be it is one on a file in it: NFS makes it an fcntl lock, which wants a descriptor open
    for writing. No process id is ever written or read.

    Raises:
        MaildropInUse: another session has had it for `wait_s` seconds.
        OSError: locking fails for another reason.
    """
    deadline = time.monotonic() + wait_s
    fd = dir_fd
    try:
        while True:
            try:
                system.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if fd == dir_fd and error.errno in NO_DIRECTORY_LOCKS:
                    fd = _lock_files[dir_fd] = system.open_file(LOCK_FILE, LOCK_FLAGS, 0o600, dir_fd=dir_fd)
                    continue
                if error.errno not in BUSY:
                    raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise MaildropInUse("another session has this maildrop open", errno.EAGAIN)
            system.sleep(min(LOCK_POLL_S, left))
    except BaseException:
        if dir_fd in _lock_files:
            _close_lock_file(dir_fd)
        raise


def _close_lock_file(dir_fd: int) -> None:
    os.close(_lock_files.pop(dir_fd))


def unlock(dir_fd: int) -> None:
    """Give back the session lock, if it was taken."""
    if dir_fd in _lock_files:
        _close_lock_file(dir_fd)
    try:
        system.flock(dir_fd, fcntl.LOCK_UN)
    except OSError:
        return  # where directories can't be locked
