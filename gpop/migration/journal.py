"""
EDGE: which users a run has done, so that the next one goes on from there.

A file of JSON lines: first what the run was about, then a line for each user that needs nothing more. A
line that a kill cut off counts for nothing: that user is done again, which changes nothing that was
right. Executed by `gpop uidl import`, as whoever started it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

VERSION = 1
MAX_LINE_OCTETS = 65536


class JournalNotUsable(Exception):
    """The file is no journal of this run's; the text says why."""


class Journal:
    """The journal at `path` of a run that is about `subject`; `done` are the users of earlier runs."""

    def __init__(self, path: str, subject: dict[str, str], again: bool) -> None:
        """
        Open it, or make it; `again` begins a new one.

        Raises:
            JournalNotUsable: it is of another run, or no journal.
        """
        self.path = path
        self.done: set[bytes] = set()
        flags = (
            os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if again else 0)
        )
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalNotUsable(f"{path}: {error.strerror}") from None
        try:
            self._take_up(subject)
        except BaseException:
            os.close(self._fd)
            raise

    def _take_up(self, subject: dict[str, str]) -> None:
        head = {"gpop_uidl_journal": VERSION} | subject
        with open(self._fd, "rb", closefd=False) as file:
            first = file.readline(MAX_LINE_OCTETS)
            if not first:
                self._append(head)
                return
            found = _parsed(first)
            if found != head:
                raise JournalNotUsable(
                    f"{self.path}: this is the journal of another run ({_described(found)}); "
                    "--again begins a new one, --journal names another file"
                )
            last = first
            while line := file.readline(MAX_LINE_OCTETS):
                entry, last = _parsed(line), line
                if isinstance(entry, dict) and isinstance(entry.get("done"), str):
                    self.done.add(os.fsencode(entry["done"]))
        if not last.endswith(b"\n"):
            os.write(self._fd, b"\n")  # what was cut off is a line of its own, which says nothing

    def note(self, name: bytes) -> None:
        """A user needs nothing more."""
        self._append({"done": os.fsdecode(name)})

    def _append(self, entry: Mapping[str, object]) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _described(found: object) -> str:
    if not isinstance(found, dict) or "gpop_uidl_journal" not in found:
        return "no journal at all"
    return ", ".join(f"{key} {value}" for key, value in found.items() if key != "gpop_uidl_journal")
