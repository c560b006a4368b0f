"""A user with a shell, played: a process of his uid that does a thing again and again. And who opens what."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from tests.serving import PASSWORD, Server

_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# linux/inotify.h
IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_OPEN = 0x1, 0x2, 0x4, 0x20
IN_MOVE, IN_CREATE, IN_DELETE = 0xC0, 0x100, 0x200
CHANGES = IN_MODIFY | IN_ATTRIB | IN_MOVE | IN_CREATE | IN_DELETE
ANYTHING = CHANGES | IN_OPEN | IN_ACCESS
EVENT = struct.Struct("iIII")
DEADLINE_S = 60


def exchange(one: str, other: str) -> None:
    """Put two names in each other's place, at once: no moment is without either."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


class Shell:
    """A process of a user's that does `deed(n)` for n = 0, 1, ... until it is ended."""

    def __init__(self, uid: int, deed: Callable[[int], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                number = 0
                while True:
                    deed(number)
                    number += 1
            finally:
                os._exit(1)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), "the user's process had ended by itself"
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Watch:
    """What the kernel says was done with some paths, and with what is directly below them."""

    def __init__(self, *paths: Path, mask: int = ANYTHING) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths = {}
        for path in paths:
            number = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
            assert number > 0, (path, os.strerror(ctypes.get_errno()))
            self._paths[number] = path

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def events(self) -> list[tuple[str, int]]:
        """Return what was done since the last time: (path, mask)."""
        found = []
        while True:
            try:
                octets = os.read(self._fd, 65536)
            except BlockingIOError:
                return found
            at = 0
            while at < len(octets):
                number, mask, _, length = EVENT.unpack_from(octets, at)
                at += EVENT.size + length
                name = octets[at - length : at].rstrip(b"\0")
                found.append((f"{self._paths.get(number, '')}/{os.fsdecode(name)}", mask))


def session(server: Server, name: str, *commands: str) -> bytes:
    """Everything that a client is told who says all at once: from the answer to PASS on."""
    said = "".join(f"{line}\r\n" for line in (f"USER {name}", f"PASS {PASSWORD}", *commands))
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as client:
        client.sendall(said.encode())
        received = bytearray()
        while octets := client.recv(65536):
            received += octets
    greeting, user, rest = bytes(received).split(b"\r\n", 2)
    assert greeting.startswith(b"+OK") and user.startswith(b"+OK"), received
    return rest
