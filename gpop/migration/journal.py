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

HEAD = "gpop_uidl_journal"
VERSION = 1
MAX_LINE_OCTETS = 65536


class JournalNotUsable(Exception):
    """The file is no journal of this run's; the text says why."""


class Journal:
    """The journal at `path` of a run that is about `subject`; `done` are the users of earlier runs."""

    def __init__(self, path: str, subject: dict[str, str], again: bool) -> None:
        """
        Open it, or make it; `again` begins a new one, in place of one that may be another run's.

        Raises:
            JournalNotUsable: it is of another run, or no journal.
        """
        self.path = path
        self.done: set[bytes] = set()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalNotUsable(f"{path}: {error.strerror}") from None
        try:
            self._take_up({HEAD: VERSION, **subject}, again)
        except OSError as error:
            os.close(self._fd)
            raise JournalNotUsable(f"{path}: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _take_up(self, head: dict[str, object], again: bool) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            first = file.readline(MAX_LINE_OCTETS)
            found = _parsed(first)
            if again and first:
                if not (isinstance(found, dict) and HEAD in found):
                    raise JournalNotUsable(
                        f"{self.path}: no journal, so it is left alone; --journal names one"
                    )
                os.ftruncate(self._fd, 0)
            if again or not first:
                self._append(head)
                return
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
    if not isinstance(found, dict) or HEAD not in found:
        return "no journal at all"
    return ", ".join(f"{key} {value}" for key, value in found.items() if key != HEAD)
