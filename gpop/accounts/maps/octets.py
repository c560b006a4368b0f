"""
EDGE: the octets of a map file, never read beyond its end, and not while it is written.

Files are read with pread and not mapped: one that is truncated meanwhile gives an error, where
a mapping would give SIGBUS. postmap and makemap write into the file that is in use, under a
lock (flock or fcntl, by type); `locked` waits for them. Executed as root.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from gpop.accounts.maps.errors import MapError

# Every local user who can read a file can lock it (flock), so nobody waits for that for long.
LOCK_WAIT_S = 5.0
LOCK_RETRY_S = 0.02


class MapOctets:
    """An open file; `size` is its size in octets when it was opened. `close` it."""

    def __init__(self, name: str, path: str, locked: bool = False) -> None:
        """Open `path`; `name` is what errors call it. Raises MapError."""
        self.name = name
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise MapError(f"{name}: {path}: {error.strerror}") from None
        try:
            if locked:
                self._lock()
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise self.error("not a regular file")
            self.size = status.st_size
        except BaseException:
            os.close(self.fd)
            raise

    def _lock(self) -> None:
        deadline_s = time.monotonic() + LOCK_WAIT_S
        for lock in (fcntl.flock, fcntl.lockf):
            while True:
                try:
                    lock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        break  # a file system without such locks
                if time.monotonic() >= deadline_s:
                    raise self.error(f"locked by another program for more than {LOCK_WAIT_S:g} s")
                time.sleep(LOCK_RETRY_S)

    def error(self, text: str) -> MapError:
        """Return an error of this file."""
        return MapError(f"{self.name}: {text}")

    def damaged(self, text: str) -> MapError:
        """Return the error of a file that is not what it ought to be."""
        return self.error(f"damaged: {text}")

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` octets at `offset`. Raises MapError if there are fewer."""
        if offset + length > self.size:
            raise self.damaged(f"it refers to octet {offset + length}, and has {self.size}")
        try:
            octets = os.pread(self.fd, length, offset)
        except OSError as error:
            raise self.error(str(error.strerror)) from None
        if len(octets) != length:
            raise self.damaged("it was truncated while it was read")
        return octets

    def close(self) -> None:
        """Close it, which also gives up the lock."""
        os.close(self.fd)
