"""
One connection of an attacker, in cleartext or inside TLS: it may stop in the middle of anything.

Knows sockets and asyncio; no server and no scenario. Executed for attackers and for honest users.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import struct

HOST = "127.0.0.1"
# Of linux/in.h: choose the port at connect, so that many connections have the same one at other addresses.
IP_BIND_ADDRESS_NO_PORT = 24
RECEIVE_OCTETS = 65536
RESET = struct.pack("ii", 1, 0)
ADDRESSES_PER_NET = 250


def address_of(network: int, number: int) -> str:
    """The address with that number in 127.`network`.0.0/16, each a source of its own to gpop."""
    return f"127.{network}.{number // ADDRESSES_PER_NET % 256}.{number % ADDRESSES_PER_NET + 1}"


class Peer:
    """
    A connection to the server, from an address of 127.0.0.0/8.

    Raises:
        OSError: from every call, when the server has closed, or does not let us in.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._unread = b""

    @classmethod
    async def connect(cls, port: int, address: str) -> Peer:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, 0))
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send(self, octets: bytes) -> None:
        await self._loop.sock_sendall(self.sock, octets)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self.sock, RECEIVE_OCTETS)

    async def line(self) -> bytes:
        """The next line, with its end; what there is at the end of the connection."""
        while b"\n" not in self._unread:
            octets = await self.receive()
            if not octets:
                break
            self._unread += octets
        line, end, self._unread = self._unread.partition(b"\n")
        return line + end

    async def ask(self, command: bytes) -> bytes:
        """Send a command; returns the first line of its answer."""
        await self.send(command + b"\r\n")
        return await self.line()

    async def lines(self) -> list[bytes]:
        """The rest of a multi-line response, without its terminator."""
        found = []
        while (line := await self.line()) != b".\r\n":
            if not line:
                raise ConnectionResetError("the connection ended within a multi-line response")
            found.append(line)
        return found

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        found = self._unread
        with contextlib.suppress(ConnectionError):
            while octets := await self.receive():
                found += octets
        return found

    def is_open(self) -> bool:
        """Whether the server still has it; what it has sent may be unread, and stays so."""
        if self.sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.sock.fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close as a crashed machine does, or a port scanner."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


def believing_everybody() -> ssl.SSLContext:
    """A client that does not look at certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello() -> bytes:
    """What a client of TLS says first: it costs nothing to say it again and again."""
    outgoing = ssl.MemoryBIO()
    tls = believing_everybody().wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


class TlsPeer(Peer):
    """The same inside TLS, once `handshake` is done. Raises ssl.SSLError besides, which is an OSError."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = believing_everybody().wrap_bio(self.incoming, self.outgoing)

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                await super().send(self.outgoing.read())
                return
            except ssl.SSLWantReadError:
                await super().send(self.outgoing.read())
                await self._more()

    async def _more(self) -> None:
        octets = await super().receive()
        if not octets:
            raise ConnectionResetError("the server has closed")
        self.incoming.write(octets)

    async def send(self, octets: bytes) -> None:
        self.tls.write(octets)
        await super().send(self.outgoing.read())

    async def receive(self) -> bytes:
        while True:
            try:
                return self.tls.read(RECEIVE_OCTETS)
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLZeroReturnError:
                return b""
