"""
EDGE: looks into a pipe and takes nothing out of it: tee(2), which Python does not know.

What was looked at lies in the pipe until it is read. So whoever is killed between looking and reading
has lost nothing: the next reader finds it there.

Executed by the log process.
"""

from __future__ import annotations

import errno
import fcntl
import os

from gpop.privsep import libc

SPLICE_F_NONBLOCK = 2  # linux/splice.h


class Peek:
    """A way to look into pipes, at most `most` octets at a time."""

    __slots__ = ("_reading", "_tee", "_writing", "most")

    def __init__(self, most: int) -> None:
        """Raises OSError."""
        self._tee = libc.function("tee")
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.most: int = fcntl.fcntl(self._writing, fcntl.F_SETPIPE_SZ, most)

    def look(self, fd: int) -> bytes | None:
        """
        Return what lies in the pipe `fd`; None: nothing yet; b"": nothing, and nobody writes any more.

        Raises:
            OSError: it is no pipe.
        """
        octets = self._tee(fd, self._writing, self.most, SPLICE_F_NONBLOCK, 0)
        if octets > 0:
            return os.read(self._reading, octets)
        if octets == 0:
            return b""
        reason = libc.errno_of_call()
        if reason in (errno.EAGAIN, errno.EINTR, errno.ENOMEM):
            return None
        raise OSError(reason, "tee")
