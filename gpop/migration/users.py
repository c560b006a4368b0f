"""
EDGE: the list of users, `NAME` or `NAME:PASSWORD` a line.

Only names are kept, with the place of each line; a password is read from the open file by the process of
the user whose it is. Executed by `gpop uidl`, as whoever started it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

# The two together; as long as a command line with them could be for any server.
MAX_LINE_OCTETS = 4096
MAX_SHOWN_PROBLEMS = 10
CHUNK_OCTETS = 65536


class ListNotUsable(Exception):
    """The list of users can't be used; the text says what is wrong, line by line, and holds no password."""


@dataclass(frozen=True, slots=True)
class User:
    """A user of the list and where its line is."""

    name: bytes
    offset: int


class UserList:
    """The list; `close` it, above all in a process that has read the one password it is there for."""

    def __init__(self, path: str, with_passwords: bool) -> None:
        """
        Read the names; `path` may be "-", standard input.

        Raises:
            ListNotUsable: see there.
        """
        try:
            self._fd = _copy_of_stdin() if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ListNotUsable(f"{path}: {error.strerror}") from None
        self._with_passwords = with_passwords
        self.users: list[User] = []
        problems = self._read()
        if problems or not self.users:
            self.close()
            shown = problems[:MAX_SHOWN_PROBLEMS] or ["there is no user in it"]
            more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
            raise ListNotUsable("\n".join(f"{path}: {problem}" for problem in shown + more))

    def _read(self) -> list[str]:
        problems: list[str] = []
        seen: dict[bytes, int] = {}
        offset = 0
        with open(self._fd, "rb", buffering=CHUNK_OCTETS, closefd=False) as file:
            number = 0
            while line := file.readline(MAX_LINE_OCTETS + 1):
                number += 1
                at, offset = offset, offset + len(line)
                if len(line) > MAX_LINE_OCTETS:
                    return [*problems, f"line {number}: longer than {MAX_LINE_OCTETS} octets"]
                if not line.strip() or line.startswith(b"#"):
                    continue
                name, _, password = line.rstrip(b"\r\n").partition(b":")
                problem = _problem(name, password, self._with_passwords)
                if name in seen:
                    problem = f"the user of line {seen[name]} again"
                if problem:
                    problems.append(f"line {number}: {problem}")
                seen[name] = number
                self.users.append(User(name, at))
        return problems

    def password(self, user: User) -> bytes:
        """Return a user's password, b"" if the list has none."""
        line = os.pread(self._fd, MAX_LINE_OCTETS, user.offset).partition(b"\n")[0].removesuffix(b"\r")
        name, _, password = line.partition(b":")
        if name != user.name:
            raise ListNotUsable("the list of users has changed since it was read")
        return password

    def fileno(self) -> int:
        """Return the descriptor of the open file, which the processes of users need."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _problem(name: bytes, password: bytes, with_passwords: bool) -> str:
    if not name.strip() or any(octet < 0x20 or octet == 0x7F for octet in name):
        return "no name of a user"
    return "no password" if with_passwords and not password else ""


def _copy_of_stdin() -> int:
    """Return a descriptor of a file in memory that holds all of standard input."""
    fd = os.memfd_create("gpop-users", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as copy:
        while octets := os.read(0, CHUNK_OCTETS):
            copy.write(octets)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
