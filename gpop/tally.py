"""
EDGE: what a process counts, in memory that the metrics process can read.

A tally is a page of whole numbers. One process writes it, and to count is to add to memory: no call of
the kernel, nothing to wait for, and nothing to lose when a process dies. The metrics process reads it when
it is asked for metrics (`metrics.exposition`). The broker makes tallies and lends them (`broker.tallies`);
the process that follows a dead one counts on in its tally.

What can be counted is laid down here, label values included, so nobody's input makes a series. Executed by
broker, fronts, auth and log, each on its own tally; it knows no metric's name and nothing of HTTP.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib

from gpop.events import EVENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    Key = tuple[str, ...]

COUNT = 1024
SIZE = 8 * COUNT
NUMBERS = struct.Struct(f"{COUNT}Q")
MOST = 2**64 - 1

# The head: which of KINDS it is for; its process, 0 while it has none; when that has last said that it is
# at work (CLOCK_MONOTONIC, milliseconds); the layout of what follows, which another version may have changed.
KIND, PID, ANSWERED_MS, LAYOUT = range(4)
HEAD = struct.Struct("2Q")
FIRST = 4
KINDS = ("", "broker", "front", "auth", "log")

# In microseconds. A hit takes some 100, a password check 50,000, a rebuild up to seconds, a session up to
# hours. One row of bounds for all times.
BOUNDS_US = (
    *(50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000, 300_000_000, 900_000_000),
)
SUM_AT = len(BOUNDS_US) + 1  # behind the bounds, and what is above the last

OTHER = "other"
# As docs/log.md has them. What a session, or another process, says beyond that is counted as OTHER.
CLOSE_REASONS = (
    *("quit", "disconnect", "autologout", "takeover", "shutdown", "in_use", "unavailable", "fault"),
    OTHER,
)
CACHE_OUTCOMES = ("hit", "refresh", "rebuild", "off", OTHER)
LOGIN_RESULTS = ("accepted", "AUTH", "SYS/TEMP", "SYS/PERM", "IN-USE", "LOGIN-DELAY", OTHER)
# Who decided: a kind of account source, the auth cache, or without asking either a front or the broker.
LOGIN_SOURCES = ("pam", "passwd-file", "cache", "front", "broker", "none", OTHER)
ASKED_SOURCES = ("pam", "passwd-file", "cache", OTHER)
RESTARTED = ("front", "auth", "metrics", "log")


def _histogram(name: str, *labels: str) -> tuple[Key, ...]:
    bounds = [str(bound) for bound in BOUNDS_US]
    return tuple((name, *labels, part) for part in (*bounds, "inf", "sum"))


def _histograms(name: str, values: tuple[str, ...]) -> tuple[Key, ...]:
    return tuple(key for value in values for key in _histogram(name, value))


# What there is at the moment: it is 0 again when a process ends.
GAUGES: dict[str, tuple[Key, ...]] = {
    "broker": (("running_sessions",), ("started_s",)),
    "front": (("open_connections",), ("listening",)),
    "auth": (("undecided_logins",), ("running_checks",), ("penalised_sources",), ("auth_cache_entries",)),
    "log": (),
}
# What only grows.
_EVERYBODYS: tuple[Key, ...] = (("log_lines_dropped",), *[("events", event) for event in EVENTS])
COUNTS: dict[str, tuple[Key, ...]] = {
    "broker": (*_EVERYBODYS, *[("restarts", name) for name in RESTARTED], *_histogram("fork")),
    "auth": _EVERYBODYS,
    "log": _EVERYBODYS,
    "front": (
        *_EVERYBODYS,
        ("connections",),
        *[("sessions", reason) for reason in CLOSE_REASONS],
        *[("logins", result, source) for result in LOGIN_RESULTS for source in LOGIN_SOURCES],
        *[("retrieved", command) for command in ("RETR", "TOP")],
        *[("retrieved_octets", command) for command in ("RETR", "TOP")],
        *[("marked", reason) for reason in ("dele", "retention")],
        *[("removed", outcome) for outcome in ("removed", "not_removed")],
        ("sent_octets",),
        *_histograms("decision", ASKED_SOURCES),
        *_histograms("statcache", CACHE_OUTCOMES),
        *_histogram("session"),
    ),
}


def places(kind: str) -> dict[Key, int]:
    """Return where in a tally of `kind` each of its numbers stands."""
    return {key: FIRST + number for number, key in enumerate((*GAUGES[kind], *COUNTS[kind]))}


def layout(kind: str) -> int:
    """Return a number that is the same as long as the layout of a kind is; never 0."""
    return zlib.crc32(repr((GAUGES[kind], COUNTS[kind])).encode()) | 1 << 32


class Tally:
    """
    The tally of this process, which is a `kind`.

    Attributes:
        numbers: all of it; whoever counts often adds to these itself.
        at: where in it each number stands.
    """

    __slots__ = ("at", "numbers")

    def __init__(self, fd: int, kind: str, forked_from: bool = False) -> None:
        """
        Take over `fd`, a tally of the broker's making, and go on where the process before has ended.

        `forked_from`: children of this process must not have it in their memory.
        """
        memory = mmap.mmap(fd, SIZE)
        os.close(fd)
        if forked_from:
            memory.madvise(mmap.MADV_DONTFORK)
        self.numbers = memoryview(memory).cast("Q")
        self.at = places(kind)
        if self.numbers[LAYOUT] != layout(kind):
            for number in range(FIRST, COUNT):
                self.numbers[number] = 0
            self.numbers[LAYOUT] = layout(kind)

    def add(self, key: Key, number: int = 1) -> None:
        """Count; a number of somebody else's may be as large as it likes."""
        at = self.at[key]
        self.numbers[at] = (self.numbers[at] + number) & MOST

    def set(self, key: Key, number: int) -> None:
        """Say how many there are now."""
        self.numbers[self.at[key]] = number

    def observe(self, first: int, time_us: int) -> None:
        """Count a time in the histogram whose first number stands at `first`."""
        at = first
        for bound in BOUNDS_US:
            if time_us <= bound:
                break
            at += 1
        self.numbers[at] = (self.numbers[at] + 1) & MOST
        at = first + SUM_AT
        self.numbers[at] = (self.numbers[at] + time_us) & MOST

    def first_of(self, name: str, *labels: str) -> int:
        """Return the place of a histogram's first number."""
        return self.at[name, *labels, str(BOUNDS_US[0])]

    def answer(self, now: float) -> None:
        """Say that this process is at work, at `now` (monotonic seconds)."""
        self.numbers[ANSWERED_MS] = int(now * 1000)
