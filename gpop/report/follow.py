"""
`gpop report --follow`: a log that is being written, the figures of its last minutes. EDGE: reads the file.

What comes is handed to DuckDB in pieces of whole lines. Rotation is noticed however it is done: a new file
under the name (the old one is read to its end first), or the same file cut short.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpop.report import columns, inputs
from gpop.report.columns import OUTCOMES, UNOPENED
from gpop.report.store import Store

# Of a log that is there already the end is shown, so that the view does not begin empty.
START_OCTETS = 8 << 20
MOST_AT_ONCE = 16 << 20
# Longer than any line: without an end by now, it is none.
MAX_REST_OCTETS = 1 << 20
# What is older is forgotten.
WINDOWS_S = {"minute": 60, "quarter": 900, "hour": 3600}
KEPT_S = max(WINDOWS_S.values())
FORGET_EVERY_S = 60
LAST_LINES = 5


class Tail:
    """The lines that a file gets, whatever becomes of the file; `rotations` counts new files and cut ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rotations = 0
        self._rest = b""
        self._fd = os.open(path, os.O_RDONLY)
        self._at = max(0, os.fstat(self._fd).st_size - START_OCTETS)
        # The first piece begins within a line, unless it is the first line.
        self._within = self._at > 0

    def read(self) -> bytes:
        """The whole lines that have come since the last call; empty if there are none yet."""
        octets = self._more()
        if not octets and self._is_rotated():
            octets = self._rest + b"\n" if self._rest else b""
            self._rest = b""
            return octets or self._more()
        return octets

    def _more(self) -> bytes:
        if os.fstat(self._fd).st_size < self._at:
            self.rotations += 1
            self._at, self._rest = 0, b""
        octets = os.pread(self._fd, MOST_AT_ONCE, self._at)
        self._at += len(octets)
        whole, ended, rest = (self._rest + octets).rpartition(b"\n")
        if not ended and len(rest) > MAX_REST_OCTETS:
            whole, ended, rest = rest, b"\n", b""
        self._rest = rest
        if ended and self._within:
            self._within = False
            whole = whole.partition(b"\n")[2]
        return whole + ended if whole else b""

    def _is_rotated(self) -> bool:
        """Whether another file has the name; then that one is open from now on."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError:
            return False  # between the two: the new one is not there yet
        if os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            return False
        os.close(self._fd)
        self._fd, self._at, self._within = fd, 0, False
        self.rotations += 1
        return True

    def close(self) -> None:
        os.close(self._fd)


class Stream:
    """The lines that standard input gets; `ended` once there will be no more."""

    rotations = 0

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""

    def read(self) -> bytes:
        """The whole lines that have come since the last call."""
        octets = self._rest
        while len(octets) < MOST_AT_ONCE and select.select([0], [], [], 0)[0]:
            more = os.read(0, 1 << 20)
            if not more:
                self.ended = True
                break
            octets += more
        whole, ended, self._rest = octets.rpartition(b"\n")
        if self.ended and self._rest:
            whole, ended, self._rest = octets, b"\n", b""
        return whole + ended

    def close(self) -> None:
        """Standard input stays open."""


@dataclass
class Followed:
    """What has come since the start, in numbers."""

    lines: int = 0
    damaged: int = 0
    cache: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*OUTCOMES, UNOPENED), 0))


def run(
    store: Store, name: str, user: str | None, interval_s: float, show: Callable[[dict[str, Any]], None]
) -> int:
    """Hand `show` the figures every `interval_s`, until Ctrl-C or the end of standard input."""
    tail = Stream() if name == inputs.STANDARD_INPUT else Tail(Path(name).absolute())
    followed = Followed()
    forgotten = time.monotonic()
    store.narrow(None, None, user)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                started = time.monotonic()
                while octets := tail.read():
                    _take(store, octets, followed)
                show(_figures(store, name, tail.rotations, followed))
                if isinstance(tail, Stream) and tail.ended:
                    return 0
                if started - forgotten > FORGET_EVERY_S:
                    forgotten = started
                    _forget(store)
                time.sleep(max(0.0, interval_s - (time.monotonic() - started)))
    finally:
        tail.close()
    return 0


def _take(store: Store, octets: bytes, followed: Followed) -> None:
    """Let the store have new lines, and count them."""
    # Not by the numbers of rows: DuckDB gives them anew when rows were deleted.
    before = _counts(store)
    rejected = store.read_chunk(octets)
    after = _counts(store)
    followed.lines += octets.count(b"\n")
    followed.damaged += after["damaged"] - before["damaged"] + rejected
    for outcome in followed.cache:
        followed.cache[outcome] += after[outcome] - before[outcome]


def _counts(store: Store) -> Counter[str]:
    """How many lines there are by outcome, and how many are damaged."""
    outcome = f"CASE WHEN cache IN {OUTCOMES} THEN cache ELSE '{UNOPENED}' END"
    rows = store.ask(f"SELECT {outcome}, count(*) FROM entry WHERE event = '{columns.SESSION}' GROUP BY 1")
    damaged = store.ask("SELECT count(*) FROM log WHERE damaged IS NOT NULL")[0][0]
    return Counter({**{str(name): int(count) for name, count in rows}, "damaged": int(damaged)})


def _forget(store: Store) -> None:
    """Drop what is older than any window, and what has no time."""
    store.ask(f"DELETE FROM log WHERE ts IS NULL OR ts < TIMESTAMP '{_ago(KEPT_S)}'")


def _ago(seconds: float) -> str:
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return f"{at:%Y-%m-%d %H:%M:%S.%f}"


def _figures(store: Store, name: str, rotations: int, followed: Followed) -> dict[str, Any]:
    return {
        "at": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "log": name,
        "rotations": rotations,
        "lines": followed.lines,
        "damaged": followed.damaged,
        "cache": dict(followed.cache),
        "windows": {window: _window(store, seconds) for window, seconds in WINDOWS_S.items()},
        "last": _last(store),
    }


def _window(store: Store, seconds: int) -> dict[str, Any]:
    """The figures of the last so many seconds."""
    since = f"ts >= TIMESTAMP '{_ago(seconds)}'"
    session = f"FROM entry WHERE event = '{columns.SESSION}' AND {since}"
    counts = ", ".join(f"count(*) FILTER (cache = '{outcome}')" for outcome in OUTCOMES)
    quantiles = ", ".join(
        f"quantile_disc(cache_ms, {part}) FILTER (cache IN {OUTCOMES})" for part in (0.5, 0.99)
    )
    row = store.ask(f"SELECT count(*), count(DISTINCT account), {counts}, {quantiles} {session}")[0]
    names = ("sessions", "accounts", *OUTCOMES, "p50_ms", "p99_ms")
    refused = store.ask(
        "SELECT coalesce(sum(coalesce(times, 1)), 0) FROM entry "
        f"WHERE {since} AND event = '{columns.REFUSED}'"
    )[0][0]
    errors = store.ask(f"SELECT count(*) FROM entry WHERE level = 'error' AND {since}")[0][0]
    return {
        "seconds": seconds,
        **dict(zip(names, row, strict=True)),
        "refused": int(refused),
        "errors": int(errors),
    }


def _last(store: Store) -> list[dict[str, Any]]:
    """The newest lines that are no ordinary session."""
    rows = store.ask(
        f"""SELECT ts, level, event, coalesce(account, "user", ''), coalesce(peer, ''),
            coalesce(fault, problem, reason, detail, close_reason, '')
        FROM entry WHERE level IN ('warning', 'error') ORDER BY ts DESC LIMIT {LAST_LINES}"""
    )
    names = ("at", "level", "event", "user", "peer", "what")
    return [
        dict(zip(names, (row[0].isoformat(timespec="milliseconds"), *row[1:]), strict=True)) for row in rows
    ]
