"""
Does the log of the server show what the load test expects it to?

Reads the log line by line; `gpop report --json` tells the same numbers and far more. Executed by whoever
runs the load test.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# The last lines may be on their way.
WAIT_S = 5.0
REMOVED = "messages removed"


# Where a process was killed the log lacks what it could not write any more, or has more than its client knew.
COST_OF_A_KILL = ("process_ended", "session_died", "session_unreported")


def agreement(expected: dict[str, Any], log: Path, is_killed: bool = False) -> tuple[bool, str]:
    """Return whether they agree, and a table. `is_killed`: as far as they can with processes killed."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = in_log(log, expected["from"], expected["until"])
        agrees: Agrees = _Exactly(expected["unsure"])
        if is_killed:
            agrees = _Nearly(expected["unsure"] + found["cost"].total())
        rows = list(_rows(expected, found))
        right = all(agrees(*row) for row in rows)
        if right or time.monotonic() > deadline:
            return right, _table(rows, agrees)
        time.sleep(0.2)


def in_log(log: Path, start: str, end: str) -> dict[str, Counter[str]]:
    """Count what the log shows between two of its stamps."""
    found: dict[str, Counter[str]] = {"cache": Counter(), "close_reason": Counter(), "other": Counter()}
    found["cost"] = Counter()
    with open(log, "rb") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what a process says that is about to die; and the last line, half written
            if not isinstance(event, dict) or not start <= event.get("ts", "") <= end:
                continue
            if event["event"] == "session_closed":
                found["cache"][event["cache"]] += 1
                found["close_reason"][event["close_reason"]] += 1
                found["other"]["removed"] += event["removed"]
            elif event["event"] == "login_refused":
                found["other"]["refused"] += 1
            elif event["event"] in COST_OF_A_KILL:
                found["cost"][event["event"]] += 1
    return found


def _rows(expected: dict[str, Any], shown: dict[str, Counter[str]]) -> Iterator[tuple[str, int, int]]:
    """What is counted, what is expected of it, what the log has."""
    for group in ("cache", "close_reason"):
        for name in expected[group].keys() | {each for each in shown[group] if each}:
            yield f"{group} {name}", expected[group].get(name, 0), shown[group][name]
    yield "sessions", sum(expected["sessions"].values()), shown["cache"].total()
    yield "logins refused", expected["refused"], shown["other"]["refused"]
    yield REMOVED, expected["removed"], shown["other"]["removed"]


class Agrees(Protocol):
    """Whether what is expected of something is what is shown."""

    def __call__(self, what: str, expected: int, shown: int) -> bool: ...


@dataclass(frozen=True)
class _Exactly:
    """Sessions of which nobody knows may be counted anywhere; there are none unless something failed."""

    unsure: int

    def __call__(self, what: str, expected: int, shown: int) -> bool:
        return expected == shown if not self.unsure else shown >= expected

    def __str__(self) -> str:
        if not self.unsure:
            return ""
        return f"{self.unsure} sessions failed or were cut off: nobody knows what the log says of them."


@dataclass(frozen=True)
class _Nearly:
    """As many may be missing, or more than known, as were cut off or could not be reported."""

    most: int

    def __call__(self, what: str, expected: int, shown: int) -> bool:
        # How many an UPDATE has removed that was killed is no session's to tell; the disk was looked at.
        return what == REMOVED or abs(expected - shown) <= self.most

    def __str__(self) -> str:
        return f"As many as {self.most} sessions were cut off, or lacked a process to report to."


def _table(rows: list[tuple[str, int, int]], agrees: Agrees) -> str:
    lines = [f"{'':<24}{'expected':>10}{'in the log':>12}"]
    for row in sorted(rows):
        mark = "" if agrees(*row) else "  <- differs"
        name, expected, shown = row
        lines.append(f"{name:<24}{expected:>10}{shown:>12}{mark}")
    return "\n".join([*lines, str(agrees)]).rstrip("\n")
