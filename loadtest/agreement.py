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
from pathlib import Path
from typing import Any

# The last lines may be on their way.
WAIT_S = 5.0


def agreement(expected: dict[str, Any], log: Path) -> tuple[bool, str]:
    """Return whether they agree, and a table of both."""
    deadline = time.monotonic() + WAIT_S
    while True:
        rows = list(_rows(expected, in_log(log, expected["from"], expected["until"])))
        agrees = all(_agrees(right, shown, expected["unsure"]) for _, right, shown in rows)
        if agrees or time.monotonic() > deadline:
            return agrees, _table(rows, expected["unsure"])
        time.sleep(0.2)


def in_log(log: Path, start: str, end: str) -> dict[str, Counter[str]]:
    """Count what the log shows between two of its stamps."""
    found: dict[str, Counter[str]] = {"cache": Counter(), "close_reason": Counter(), "other": Counter()}
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
    return found


def _rows(expected: dict[str, Any], shown: dict[str, Counter[str]]) -> Iterator[tuple[str, int, int]]:
    """What is counted, what is expected of it, what the log has."""
    for group in ("cache", "close_reason"):
        for name in expected[group].keys() | {each for each in shown[group] if each}:
            yield f"{group} {name}", expected[group].get(name, 0), shown[group][name]
    yield "sessions", sum(expected["sessions"].values()), shown["cache"].total()
    yield "logins refused", expected["refused"], shown["other"]["refused"]
    yield "messages removed", expected["removed"], shown["other"]["removed"]


def _agrees(expected: int, shown: int, unsure: int) -> bool:
    """Sessions of which nobody knows may be counted anywhere; there are none unless something failed."""
    return expected == shown if not unsure else shown >= expected


def _table(rows: list[tuple[str, int, int]], unsure: int) -> str:
    lines = [f"{'':<24}{'expected':>10}{'in the log':>12}"]
    for name, expected, shown in sorted(rows):
        mark = "" if _agrees(expected, shown, unsure) else "  <- differs"
        lines.append(f"{name:<24}{expected:>10}{shown:>12}{mark}")
    if unsure:
        lines.append(f"{unsure} sessions failed or were cut off: nobody knows what the log says of them.")
    return "\n".join(lines)
