"""
Which files a report is made of, and how each is packed. EDGE: looks at the first octets, reads no more.

What is not a regular file (standard input, a pipe) is a stream: it can be read once, from front to end.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

STANDARD_INPUT = "-"
PLAIN, GZIP, ZSTD, PARQUET = "none", "gzip", "zstd", "parquet"
_MAGIC = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD, b"PAR1": PARQUET}
_NOT_READ = {b"BZh": ("bzip2", "bzcat"), b"\xfd7zXZ": ("xz", "xzcat")}
MAGIC_OCTETS = 6


class BadInput(Exception):
    """Logs that can't be read as they were named; the text has a line for each."""


@dataclass
class Input:
    """One log: what it is called, where it is, how it is packed; `stream` if it can't be read twice."""

    name: str
    path: Path
    packing: str
    octets: int
    stream: bool = False


def find(arguments: list[str]) -> list[Input]:
    """
    Return the logs that the arguments name: files, patterns, `-`. A file that is named twice is read once.

    Raises:
        BadInput: with all that is wrong.
    """
    found: dict[object, Input] = {}
    problems = []
    for name in (each for argument in arguments for each in _expanded(argument)):
        try:
            key, log = _looked_at(name)
            found.setdefault(key, log)
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
        except BadInput as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise BadInput("\n".join(problems))
    return list(found.values())


def _expanded(argument: str) -> list[str]:
    """A pattern that the shell left alone is looked up here; a file that is called like one is that file."""
    if argument != STANDARD_INPUT and glob.has_magic(argument) and not os.path.lexists(argument):
        return sorted(glob.glob(argument)) or [argument]
    return [argument]


def _looked_at(name: str) -> tuple[object, Input]:
    if name == STANDARD_INPUT:
        return name, Input("standard input", Path("/dev/stdin"), PLAIN, 0, stream=True)
    path = Path(name).absolute()
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BadInput(f"is a directory; name the logs in it: '{name.rstrip('/')}/*.log*'")
    if not stat.S_ISREG(status.st_mode):
        return (status.st_dev, status.st_ino), Input(name, path, PLAIN, 0, stream=True)
    with path.open("rb") as file:
        packed = packing(file.read(MAGIC_OCTETS))
    return (status.st_dev, status.st_ino), Input(name, path, packed, status.st_size)


def packing(first: bytes) -> str:
    """How a log is packed that begins with these octets."""
    for magic, (kind, reader) in _NOT_READ.items():
        if first.startswith(magic):
            raise BadInput(f"is packed with {kind}, which is not read; use {reader} FILE | gpop report -")
    return next((kind for magic, kind in _MAGIC.items() if first.startswith(magic)), PLAIN)


def open_stream(log: Input) -> BinaryIO:
    """Open a stream; standard input stays open when it is closed."""
    if log.name == "standard input":
        return os.fdopen(os.dup(0), "rb", buffering=0)
    return log.path.open("rb", buffering=0)
