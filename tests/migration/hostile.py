"""A server that says what a test tells it to, on a real socket; and what gpop says of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from gpop.migration import servers
from gpop.migration.pop3_client import Client
from gpop.migration.servers import TlsChoice

# From a command line (without its end) to what is sent back.
Answer = Callable[[bytes], bytes | Iterator[bytes]]


class Script:
    """Answers connections until the context ends; `asked` are the command lines it was sent."""

    def __init__(self, answer: Answer, greeting: bytes = b"+OK\r\n") -> None:
        self._answer = answer
        self._greeting = greeting
        self.asked: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"pop3://127.0.0.1:{self._listening.getsockname()[1]}"
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Script:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.sendall(self._greeting)
            file = connection.makefile("rb")
            while line := file.readline():
                self.asked.append(line.rstrip(b"\r\n"))
                said = self._answer(self.asked[-1])
                for octets in [said] if isinstance(said, bytes) else said:
                    connection.sendall(octets)

    def client(self, silence_s: float = 5, altogether_s: float = 20) -> Client:
        """Connect to it; every address is our own machine, so there is no TLS."""
        server = servers.locate(self.url, TlsChoice())
        return Client(server, silence_s, time.monotonic() + altogether_s)


def drop(*messages: bytes, ids: list[bytes] | None = None) -> Answer:
    """Return how a decent server answers that has these messages."""
    shown = ids or [b"id%d" % number for number in range(1, len(messages) + 1)]

    def answer(line: bytes) -> bytes:
        word, *rest = line.split()
        if word == b"STAT":
            return b"+OK %d %d\r\n" % (len(messages), sum(map(len, messages)))
        if word == b"LIST":
            lines = [b"%d %d" % (number, len(each)) for number, each in enumerate(messages, 1)]
            return b"\r\n".join([b"+OK", *lines, b".\r\n"])
        if word == b"UIDL":
            return b"\r\n".join([b"+OK", *(b"%d %b" % each for each in enumerate(shown, 1)), b".\r\n"])
        if word in (b"TOP", b"RETR"):
            message = messages[int(rest[0]) - 1]
            if rest[1:] == [b"0"]:
                message = message.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            stuffed = b"\r\n".join(
                b"." + each if each.startswith(b".") else each for each in message.split(b"\r\n")
            )
            return b"+OK\r\n" + stuffed + b".\r\n"
        if word == b"CAPA":
            return b"+OK\r\nTOP\r\nUIDL\r\n.\r\n"
        return b"+OK\r\n"

    return answer
