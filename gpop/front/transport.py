"""
PROCESS (part of the front): the octets of one peer, as they come, or inside TLS.

Both have the same few calls: `receive` and `send` wait as a greenlet does, and nobody else with them.
What a session is to get after the login is `relay`'s. They know no line and no command.
"""

from __future__ import annotations

import _socket
import contextlib
import ssl
from typing import Any

# Commands before login are short. What is read beyond a login must fit a PIPELINED frame.
RECEIVE_OCTETS = 4096
READABLE, WRITABLE = 1, 2  # what libev calls EV_READ and EV_WRITE
# Asked for in each call: O_NONBLOCK belongs to the open file, which other processes will hold too.
SEND_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL
# What is read of a peer that is left, at most.
MAX_GOODBYE_READS = 16


class Transport:
    """
    A peer in cleartext.

    The client's socket is a plain one, and there is one watcher for all that is read from it: a cooperative
    socket of gevent's has two watchers, and a timer for each wait.
    """

    __slots__ = ("hub", "readable", "sock")

    def __init__(self, hub: Any, sock: _socket.socket) -> None:
        self.hub = hub
        self.sock = sock
        self.watch()

    def watch(self) -> None:
        """Wait for the peer, from the start or again after `forget`."""
        self.readable = self.hub.loop.io(self.sock.fileno(), READABLE)

    def forget(self) -> None:
        """Wait for the peer no more: others will."""
        self.readable.close()

    def receive(self) -> bytes:
        """Return the next octets from the peer, b"" at their end. Raises OSError."""
        return self.receive_raw()

    def send(self, octets: bytes) -> None:
        """Send all of `octets`, waiting for a peer that does not take them at once. Raises OSError."""
        self.send_raw(octets)

    def leave(self, octets: bytes = b"") -> None:
        """
        Send last words as far as the peer takes them, and end, without waiting for anybody.

        A session may still hold the stream, or have held it, and O_NONBLOCK and SO_LINGER belong to
        the stream: after a session that was taken over any other call could stop this whole process.
        """
        with contextlib.suppress(OSError):
            if octets:
                self.sock.send(octets, SEND_FLAGS)
            # Octets that were never read would make a reset of the close, which may destroy the answer.
            self.sock.shutdown(_socket.SHUT_WR)
            for _ in range(MAX_GOODBYE_READS):
                if not self.sock.recv(RECEIVE_OCTETS, _socket.MSG_DONTWAIT):
                    break

    def receive_raw(self) -> bytes:
        """`receive`, as the octets stand on the wire."""
        while True:
            self.hub.wait(self.readable)
            try:
                return self.sock.recv(RECEIVE_OCTETS, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue

    def send_raw(self, octets: bytes) -> None:
        """`send`, as the octets shall stand on the wire."""
        while octets:
            with contextlib.suppress(BlockingIOError):
                octets = octets[self.sock.send(octets, SEND_FLAGS) :]
                if not octets:
                    return
            writable = self.hub.loop.io(self.sock.fileno(), WRITABLE)
            try:
                self.hub.wait(writable)
            finally:
                writable.close()


class TlsTransport(Transport):
    """
    A peer inside TLS.

    OpenSSL sees two pieces of memory and never the socket: so it does no more at a time than it was
    given octets for, whatever a peer makes of the protocol, and needs no O_NONBLOCK.
    """

    __slots__ = ("incoming", "outgoing", "tls")

    def __init__(self, hub: Any, sock: _socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(hub, sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self) -> bool:
        """
        Do the handshake; returns False if the peer has left before it sent anything.

        Raises:
            ssl.SSLError: the peer and we can't agree; it has been told.
            OSError: the peer is gone.
        """
        said_anything = False
        while True:
            try:
                self.tls.do_handshake()
                # Of TLS 1.3 only tickets are left to be sent, which go along with what is said next.
                if self.tls.version() != "TLSv1.3":
                    self.send_raw(self.outgoing.read())
                return True
            except ssl.SSLWantReadError:
                self.send_raw(self.outgoing.read())
            except ssl.SSLError:
                self.leave_raw()
                raise
            octets = self.receive_raw()
            if not octets and said_anything:
                raise ConnectionResetError("the peer left within the handshake")
            if not octets:
                return False
            said_anything = True
            self.incoming.write(octets)

    def has_more(self) -> bool:
        """Whether OpenSSL has octets that were not used: asked without any, it answers with an exception."""
        return self.incoming.pending > 0 or self.tls.pending() > 0

    def receive(self) -> bytes:
        """`Transport.receive`: the octets inside TLS."""
        while True:
            try:
                if self.has_more():
                    return self.tls.read(RECEIVE_OCTETS)
            except ssl.SSLWantReadError:
                # An answer to a new key of the peer's, say.
                self.send_raw(self.outgoing.read())
            except ssl.SSLZeroReturnError:
                return b""
            octets = self.receive_raw()
            if not octets:
                return b""
            self.incoming.write(octets)

    def send(self, octets: bytes) -> None:
        """`Transport.send`, inside TLS."""
        self.encrypt(octets)
        self.send_raw(self.outgoing.read())

    def leave(self, octets: bytes = b"") -> None:
        """`Transport.leave`, with the end of TLS, so that the peer knows that nothing was cut off."""
        with contextlib.suppress(ssl.SSLError):
            self.encrypt(octets)
        self.end_tls()
        self.leave_raw()

    def leave_raw(self) -> None:
        """Send what TLS has to say still, and end."""
        super().leave(self.outgoing.read())

    def encrypt(self, octets: bytes | memoryview) -> None:
        """Put `octets` into `outgoing`, encrypted. Raises ssl.SSLError."""
        rest = memoryview(octets)
        while rest:
            rest = rest[self.tls.write(rest) :]  # a record, which has at most 16 KiB

    def end_tls(self) -> None:
        """Put the end of TLS (close_notify) into `outgoing`; that of the peer is not waited for."""
        with contextlib.suppress(ssl.SSLError, OSError):
            self.tls.unwrap()

    def facts(self) -> tuple[str | None, str | None]:
        """The version of TLS and the cipher, for the log."""
        cipher = self.tls.cipher()
        return self.tls.version(), cipher[0] if cipher else None
