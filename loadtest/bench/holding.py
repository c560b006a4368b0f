"""
Clients that hold connections: thousands that say nothing, some that logged in, one that reads slowly.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterable

from loadtest.bench.maildrops import PASSWORD, Maildrop

# From one address to one port there are fewer ports than this.
PER_ADDRESS = 10_000
# So many are connected before the first greeting is read: less than a listening socket holds back.
BATCH = 100
TIMEOUT_S = 30.0
# socket.IP_BIND_ADDRESS_NO_PORT from Python 3.12 on: choose the port with `connect`, so that many fit.
IP_BIND_ADDRESS_NO_PORT = 24
# A reader that is slower than any server, and takes a second or two for 50 MB.
SLOW_OCTETS = 65536
SLOW_PAUSE_S = 0.002
LOOK_EVERY = 8
SPARE_DESCRIPTORS = 500


def allow_descriptors(wanted: int) -> int:
    """Raise the limit on open descriptors for us and for servers started later; returns what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += SPARE_DESCRIPTORS
    for limits in ((max(soft, wanted), max(hard, wanted)), (min(wanted, hard), hard)):
        if limits[0] <= soft:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (ValueError, OSError):
            continue  # only root gets more than the hard limit, and not everywhere
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS


class Clients:
    """Connections to one server, all closed at the end of the `with` block."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socks: list[socket.socket] = []

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.socks:
            sock.close()

    def connect(self, count: int) -> None:
        """
        Open so many connections more, each greeted.

        Raises:
            OSError: the server takes no more, or does not greet.
        """
        for start in range(0, count, BATCH):
            batch = [self._connect() for _ in range(min(BATCH, count - start))]
            for sock in batch:
                _line(sock)

    def _connect(self) -> socket.socket:
        sock = socket.socket()
        number = len(self.socks)
        self.socks.append(sock)
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{1 + number // PER_ADDRESS}", 0))
        sock.connect(("127.0.0.1", self.port))
        return sock

    def log_in(self, maildrops: Iterable[Maildrop]) -> None:
        """
        Open one session on each maildrop.

        Raises:
            OSError: the server refuses.
        """
        for maildrop in maildrops:
            sock = self._connect()
            _line(sock)
            for command in (f"USER {maildrop.name}", f"PASS {PASSWORD}", "STAT"):
                sock.sendall(command.encode() + b"\r\n")
                _line(sock)


def read_slowly(port: int, maildrop: Maildrop, look: Callable[[], None]) -> None:
    """
    Retrieve the first message of a maildrop bit by bit, and `look` at the server before and meanwhile.

    Raises:
        OSError: the server refuses, or stops halfway.
    """
    with Clients(port) as clients:
        clients.log_in([maildrop])
        sock = clients.socks[0]
        # A small buffer here, so that the server has to wait.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_OCTETS)
        time.sleep(0.2)
        look()
        sock.sendall(b"RETR 1\r\n")
        tail, reads = b"", 0
        while not tail.endswith(b"\r\n.\r\n"):
            octets = sock.recv(SLOW_OCTETS)
            if not octets:
                raise ConnectionError("the server ended within a message")
            tail = (tail + octets)[-5:]
            if reads % LOOK_EVERY == 0:
                look()
            reads += 1
            time.sleep(SLOW_PAUSE_S)
        sock.sendall(b"QUIT\r\n")
        _line(sock)


def _line(sock: socket.socket) -> None:
    """Read one reply of one line, which has to be +OK."""
    octets = b""
    while not octets.endswith(b"\n"):
        received = sock.recv(4096)
        if not received:
            raise ConnectionError(f"the server closed a connection after {octets[:100]!r}")
        octets += received
    if not octets.startswith(b"+OK"):
        raise ConnectionError(f"{octets[:200]!r}")
