"""
What is common to the files in which other servers keep their ids: bounds, and how one is refused.

Pure. A file that is not wholly understood is not used at all: its lines depend on each other (a later
one may replace an earlier one), so a part of it may say something else than the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

# Of a million messages, each with the longest name; read whole, by the owner's process.
MAX_STATE_OCTETS = 128 * 1024 * 1024
MAX_LINE_OCTETS = 4096
MAX_UID = (1 << 32) - 1
MAX_DIGITS = 10


class BadState(Exception):
    """A file is not what its server writes; `line` (from 1) and `reason` say where and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def lines(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """
    Yield the lines of a file, numbered from 1, without their ends.

    Raises:
        BadState: the last one has no end, so there was more of it; or one is longer than any can be.
    """
    if len(octets) > MAX_STATE_OCTETS:
        raise BadState(1, f"the file is larger than {MAX_STATE_OCTETS} octets")
    # One by one: of nothing but line ends a list would be eight times as large as the file.
    number, at = 1, 0
    while (end := octets.find(b"\n", at)) >= 0:
        if end - at > MAX_LINE_OCTETS:
            raise BadState(number, f"longer than {MAX_LINE_OCTETS} octets")
        yield number, octets[at:end]
        number, at = number + 1, end + 1
    if at < len(octets):
        raise BadState(number, "is cut off: the file does not end with a line end")


def number_of(field: bytes, line: int, what: str, least: int = 0) -> int:
    """Return the number that a field is, of 32 bits. Raises BadState."""
    if not (field.isdigit() and len(field) <= MAX_DIGITS and least <= int(field) <= MAX_UID):
        raise BadState(line, f"{what} is not a number from {least} to {MAX_UID}")
    return int(field)


def checked_name(name: bytes, line: int) -> bytes:
    """Return a file name if it can be one. Raises BadState."""
    if not name or b"/" in name or b"\0" in name:
        raise BadState(line, "not the name of a file")
    return name
