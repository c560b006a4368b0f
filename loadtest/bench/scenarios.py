"""
The scenarios by name, what their tables show, and who measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loadtest.bench import latency, memory, passwords, scale
from loadtest.bench.maildrops import BIG
from loadtest.bench.measuring import Cell
from loadtest.bench.rounds import retr_script
from loadtest.bench.stages import Ground

TITLES = {
    "stat": "STAT only (USER PASS STAT QUIT), no new mail: CPU ms per session",
    "poll": "Poll (USER PASS STAT UIDL QUIT), no new mail: CPU ms per session",
    "refresh": "Refresh: a poll after one message was delivered: CPU ms per session",
    "rebuild": "Rebuild: a poll after what the server keeps beside the mail was lost: CPU ms per session",
    "retr": "RETR of every message: CPU ms per session",
    "passwords": "Polls of 20 messages with accounts from PAM: CPU ms per session",
    "memory": "Memory in KiB",
    "latency": "Latency of polls of 20 messages: ms, by sessions at once",
    "scale": "Scale: polls of 20 messages",
}
# These have servers and mail of their own; the others share one set, measured size by size.
ON_THEIR_OWN: dict[str, Callable[[Ground], Iterator[list[Cell]]]] = {
    "passwords": passwords.run,
    "memory": memory.run,
    "latency": latency.run,
    "scale": scale.run,
}
# A column is a label and a metric.
Column = tuple[str, str]


def columns(scenario: str, labels: list[str]) -> list[Column]:
    """The columns of a scenario's table."""
    if scenario == "latency":
        return [(label, metric) for label in labels for metric in ("p50_ms", "p99_ms")]
    if scenario == "memory":
        return [(label, "kib") for label in labels]
    if scenario == "scale":
        return [
            (label, metric) for label in labels for metric in ("rate", "cores_used", "cpu_ms", "broker_ms")
        ]
    return [(label, "cpu_ms") for label in labels]


def heading(scenario: str, column: Column) -> str:
    """What stands above a column."""
    label, metric = column
    if scenario == "latency":
        return f"{metric.partition('_')[0]} at {label}"
    if scenario == "memory":
        return memory.LABELS[label]
    if scenario == "scale":
        return scale.HEADINGS[metric]
    if scenario == "passwords":
        return f"pam_{label}"
    if label in BIG:
        return BIG[label]
    if scenario == "retr":
        one_by_one = retr_script(label) == "retr"
        return f"{int(label):,} of 8 KB" if one_by_one else f"{int(label):,} pipelined"
    return f"{int(label):,}"
