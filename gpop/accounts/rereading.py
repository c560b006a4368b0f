"""
EDGE: a file of root's that is read whole, and again whenever it changed.

What its lines mean is said by who derives from it. Executed by auth and by commands, as root.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from abc import ABC, abstractmethod

from gpop.accounts.account import SourceUnavailable

MAX_FILE_OCTETS = 64 * 1024 * 1024
MAX_PROBLEMS = 100  # reported one by one; the rest is a number
# A file changed this shortly before it was read may change again within the same clock tick.
UNSETTLED_S = 2.0
ABSENT = b"absent"  # in place of a digest

Signature = tuple[int, int, int, int, int]


def signature(status: os.stat_result) -> Signature:
    """Return what differs when a file was changed or replaced."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class RereadFile(ABC):
    """
    The file at `path`, read again whenever it changed (`refresh`).

    Attributes:
        problems: (line number, text) of what can't be used, line 0 for the file itself.
        problem_count: all of them, also those beyond MAX_PROBLEMS.
        fault: why the file can't be read at present, "" when it can.
    """

    MAY_BE_ABSENT = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.problem_count = 0
        self.fault = "not read yet"
        self._digest = b""
        self._signature: Signature | None = None
        self._read_again_at = 0.0

    @abstractmethod
    def take_in(self, octets: bytes, mode: int) -> None:
        """Replace what was known by what the file says now; `mode` is that of its status."""

    def refresh(self) -> bool:
        """Read the file again if it changed; say whether anything is new, a fault included."""
        try:
            status = os.stat(self.path)
            unchanged = signature(status) == self._signature
            if unchanged and not (self._read_again_at and time.time() >= self._read_again_at):
                return False
            return self._load()
        except (OSError, SourceUnavailable) as error:
            if self.MAY_BE_ABSENT and isinstance(error, FileNotFoundError):
                return self._forget()
            fault = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self._signature = None
            is_new, self.fault = fault != self.fault, fault
            return is_new

    def _forget(self) -> bool:
        """There is no file, which says nothing, as an empty one."""
        is_new = bool(self.fault) or self._digest != ABSENT
        if is_new:
            self.problems, self.problem_count = [], 0
            self.take_in(b"", 0)
        self._signature, self._digest, self.fault = None, ABSENT, ""
        return is_new

    def _load(self) -> bool:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceUnavailable("not a regular file")
            if before.st_size > MAX_FILE_OCTETS:
                raise SourceUnavailable(f"{before.st_size} octets, at most {MAX_FILE_OCTETS} are read")
            octets = file.read(MAX_FILE_OCTETS + 1)
            after = os.fstat(fd)
        digest = hashlib.blake2b(octets).digest() + bytes([bool(before.st_mode & 0o004)])
        is_new = bool(self.fault) or digest != self._digest
        if is_new:
            self.problems, self.problem_count = [], 0
            self.take_in(octets, before.st_mode)
        self._digest, self.fault = digest, ""
        # Changed while it was read: the signature of before will not match, so it is read once more.
        self._signature = signature(before)
        changed = max(after.st_mtime, after.st_ctime)
        self._read_again_at = changed + UNSETTLED_S if time.time() < changed + UNSETTLED_S else 0.0
        return is_new

    def report(self, number: int, text: str) -> None:
        """Note that a line can't be used, and why."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append((number, text))
