"""
A POP3 server that is broken in one way: a proxy before a real gpop, which spoils one thing, once.

What it spoils is what the load test has to notice: a message that is lost, a unique-id that is
another one, an octet that is wrong. Without a switch it passes everything on as it is.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import BinaryIO

LOSE_MESSAGE = "a message is lost"
CHANGE_UNIQUE_ID = "a unique-id changes"
WRONG_OCTET = "one octet is wrong"
MULTI_LINE = (b"CAPA", b"RETR", b"LIST", b"UIDL")


class BrokenServer(socketserver.ThreadingTCPServer):
    """
    Listens on a port of the kernel's choice, in threads of its own; `with` ends it.

    Attributes:
        spoiled: how often it has done its damage; never more than once.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, port: int, switch: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.behind = ("127.0.0.1", port)
        self.switch = switch
        self.spoiled = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Some clients leave in the middle; that is what they are for."""


class _Connection(socketserver.StreamRequestHandler):
    """One client, and the real server for it."""

    server: BrokenServer

    def handle(self) -> None:
        with socket.create_connection(self.server.behind, 20) as sock, sock.makefile("rb") as answers:
            self.wfile.write(answers.readline())
            while command := self.rfile.readline():
                if command.strip() == b"QUIT" and self.server.switch == LOSE_MESSAGE:
                    self._lose(sock, answers)
                sock.sendall(command)
                self.wfile.write(self._spoiled(command, _answer(command, answers)))

    def _lose(self, sock: socket.socket, answers: BinaryIO) -> None:
        """Remove a message that nobody has asked to remove."""
        with self.server.lock:
            if not self.server.spoiled:
                sock.sendall(b"DELE 1\r\n")
                self.server.spoiled = int(answers.readline().startswith(b"+OK"))

    def _spoiled(self, command: bytes, answer: bytes) -> bytes:
        word = command.split()[0]
        start = answer.find(b"\r\n") + 2
        with self.server.lock:
            if self.server.spoiled or not answer.startswith(b"+OK") or len(answer) - start < 100:
                return answer
            if self.server.switch == CHANGE_UNIQUE_ID and word == b"UIDL":
                self.server.spoiled = 1
                end = answer.index(b"\r\n", start)
                return answer[: end - 1] + bytes([answer[end - 1] ^ 1]) + answer[end:]
            if self.server.switch == WRONG_OCTET and word == b"RETR":
                self.server.spoiled = 1
                at = answer.index(b"example.org", start)
                return answer[:at] + b"E" + answer[at + 1 :]
        return answer


def _answer(command: bytes, answers: BinaryIO) -> bytes:
    """Read the whole answer to a command."""
    lines = [answers.readline()]
    if lines[0].startswith(b"+OK") and command.split()[0] in MULTI_LINE:
        while (line := answers.readline()) not in (b".\r\n", b""):
            lines.append(line)
        lines.append(line)
    return b"".join(lines)
