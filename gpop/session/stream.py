"""
EDGE: the client's stream as a session has it: batched replies, time-outs, an orderly end.

Executed by the session, as the mail user. It knows sockets and nothing of POP3.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct
import time

from gpop.privsep import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECEIVE_OCTETS = 4096
# As much as Python's allocator has ready; more would be asked for from the C library, in pages of its own.
SMALL_OCTETS = 400
# More than the kernel takes at once from a client that reads: only then may octets be on their way.
LARGE_OCTETS = 65536
# Replies to pipelined commands are sent together, up to this size.
BATCH_OCTETS = 131072
# And up to this many: writev takes no more than 1,024 (IOV_MAX).
BATCH_PIECES = 1000
# A client that sent QUIT has this long to read the reply and close (see `wait_for_end`).
GOODBYE_TIMEOUT_S = 2.0
MAX_GOODBYE_READS = 16
# What one sendfile may take: a signal is acted upon between two.
SENDFILE_OCTETS = 1 << 24
TIOCOUTQ = 0x5411  # asm-generic/ioctls.h; the module termios is not worth its pages in every session

CLIENT_GONE = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)


class SessionEnd(Exception):
    """The session ends without UPDATE; `reason` is its close_reason in the log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Stream:
    """
    The client's stream, from here on this process's alone: blocking, with a time-out.

    The time-out counts a silent client, not a busy one: while octets that were sent are
    still being taken, the client is at work (RFC 1939 §3 is about inactivity).
    """

    __slots__ = (
        "active", "adopted", "batch", "batch_octets", "fd", "octets_sent", "sock", "takeover_after_s",
    )  # fmt: skip

    def __init__(self, fd: int, takeover_after_s: float) -> None:
        self.fd = fd
        # Its family only matters for addresses, which nobody asks for.
        self.sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
        self.takeover_after_s = takeover_after_s
        self.batch: list[bytes] = []
        self.batch_octets = 0
        self.octets_sent = 0
        self.active = time.monotonic()
        self.adopted = False

    def adopt(self) -> None:
        """Make the socket blocking. It has a time-out from birth (`channel.set_autologout`)."""
        self.adopted = True
        self.sock.setblocking(True)

    def end(self, _signal: int) -> None:
        """SIGTERM: the session ends."""
        raise SessionEnd("shutdown")

    def kick(self, _signal: int) -> None:
        """SIGUSR2: an administrator ends the session (`gpop kick`)."""
        raise SessionEnd("kicked")

    def end_if_silent(self, _signal: int) -> None:
        """SIGUSR1, a newer login wants the maildrop: the session ends if its client is silent."""
        if self._seconds_silent() >= self.takeover_after_s:
            raise SessionEnd("takeover")

    def receive(self, most: int = RECEIVE_OCTETS) -> bytes:
        """
        Send what is batched, then return the next octets from the client.

        Raises:
            SessionEnd: the client left, or was silent for the time-out.
        """
        if self.batch:
            self.flush()
        while True:
            unsent = self._unsent() if self.octets_sent > LARGE_OCTETS else 0
            try:
                octets = self.sock.recv(most)
            except BlockingIOError:
                if unsent and self._unsent() < unsent:
                    continue
                raise SessionEnd("autologout") from None
            except OSError:
                raise SessionEnd("disconnect") from None
            if not octets:
                raise SessionEnd("disconnect")
            self.active = time.monotonic()
            return octets

    def _seconds_silent(self) -> float:
        """
        Seconds since the client last showed itself.

        With octets on their way to it, its kernel answers for it: one that is reading slowly
        acknowledges something now and then, one that has left the network nothing.
        """
        silent = time.monotonic() - self.active
        return min(silent, self._seconds_unacknowledged()) if self._unsent() else silent

    def _seconds_unacknowledged(self) -> float:
        try:
            return channel.seconds_unacknowledged(self.sock)
        except OSError:
            return 0.0  # not TCP: a front relays, and watches the client itself

    def _unsent(self) -> int:
        """Octets that the kernel has accepted and the client has not taken yet."""
        answer: int = struct.unpack("i", fcntl.ioctl(self.fd, TIOCOUTQ, b"\0\0\0\0"))[0]
        return answer

    def send(self, octets: bytes) -> None:
        """Add octets to the batch, which is sent when it is large or the client is waited for."""
        self.batch.append(octets)
        self.batch_octets += len(octets)
        if self.batch_octets >= BATCH_OCTETS or len(self.batch) >= BATCH_PIECES:
            self.flush()

    def flush(self) -> None:
        """Send the batch in one write, its pieces as they lie."""
        batch, total = self.batch, self.batch_octets
        self.batch, self.batch_octets = [], 0
        sent = self._waiting(os.writev, batch) if total else 0
        while sent < total:  # a signal, or a slow client
            sent += self._waiting(os.write, memoryview(b"".join(batch))[sent:])

    def send_file(self, fd: int, offset: int, length: int) -> None:
        """
        Send a piece of a file as it is.

        Raises:
            OSError: (EIO) the file ends before the piece does.
        """
        self.flush()
        while length:
            sent = self._waiting(os.sendfile, fd, offset, min(length, SENDFILE_OCTETS))
            if sent == 0:
                raise OSError(errno.EIO, "a file became shorter while it was sent")
            offset += sent
            length -= sent

    def _waiting(self, call: Any, *arguments: Any) -> int:
        """
        Do a system call that sends; a client that takes nothing for the time-out is gone.

        Blocked is not the same: the kernel wakes a writer only when a third of its buffer,
        which may be megabytes, is free again.
        """
        unsent = self._unsent() if self.octets_sent > LARGE_OCTETS else 0
        while True:
            try:
                sent: int = call(self.fd, *arguments)
                break
            except BlockingIOError:
                before, unsent = unsent, self._unsent()
                if unsent >= before:
                    raise SessionEnd("autologout") from None
            except OSError as error:
                if error.errno in CLIENT_GONE:
                    raise SessionEnd("disconnect") from None
                raise
        self.octets_sent += sent
        self.active = time.monotonic()
        return sent

    def half_close(self) -> bool:
        """End our way; returns False if the client is gone."""
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            return False
        return True

    def wait_for_end(self) -> None:
        """
        Wait briefly for the client's end, after our own.

        Octets that were never read make the kernel answer with a reset when the socket is
        closed, and a reset may destroy the reply before the client has read it.
        """
        sock = self.sock
        try:
            sock.settimeout(GOODBYE_TIMEOUT_S)
            reads = 0
            # Nearly always it has nothing more to say, and a small buffer will do to learn that.
            while sock.recv(LARGE_OCTETS if reads else SMALL_OCTETS) and reads < MAX_GOODBYE_READS:
                reads += 1
        except OSError:
            return

    def close(self) -> None:
        """Close the socket; nothing that was sent is lost by it."""
        self.sock.close()
