"""
What the cache has saved: an estimate, from what rebuilds of the same log took. PURE.

Had there been no cache, each hit and each refresh would have been a rebuild. What that would have taken
follows from the rebuilds that there were, by the number of messages:

- wall time: the mean of the rebuilds in the same size class;
- CPU time, which no line of the log says: what the quickest tenth of them took at most. Those had nothing to
  wait for, folders and messages were in memory, so that their time was work. For hits and refreshes the same.

A class with fewer than ENOUGH rebuilds gets a value from the classes that have them: on the line between its
two neighbours; below the smallest in proportion to the messages; above the largest the same as there. The
last two say too little rather than too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

ENOUGH = 3
MEASURED, BETWEEN, BELOW, ABOVE = (
    "measured",
    "between measured sizes",
    "below the smallest measured",
    "above the largest measured",
)
UNKNOWN = "no rebuilds to judge by"


@dataclass
class Spent:
    """What the sessions of a size class and outcome took: their number, mean messages, total and quick ms."""

    sessions: int = 0
    messages: float = 0.0
    total_ms: float = 0.0
    quick_ms: float = 0.0

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.sessions if self.sessions else 0.0


@dataclass
class Point:
    """What a rebuild of a maildrop with so many messages takes."""

    messages: float
    wall_ms: float
    cpu_ms: float


@dataclass
class Saving:
    """What the cache saved in one size class; None where there is nothing to judge by."""

    rebuild_ms: float | None
    basis: str
    wall_ms: float | None
    cpu_ms: float | None


def points(rebuilds: list[Spent]) -> list[Point]:
    """What rebuilds take, by rising number of messages: by classes with enough of them, or else by all."""
    sound = [each for each in rebuilds if each.sessions >= ENOUGH] or [
        each for each in rebuilds if each.sessions
    ]
    found = [Point(each.messages, each.mean_ms, each.quick_ms) for each in sound]
    return sorted(found, key=lambda point: point.messages)


def rebuild_of(messages: float, known: list[Point]) -> tuple[Point | None, str]:
    """What a rebuild with so many messages would take, and where that comes from."""
    if not known:
        return None, UNKNOWN
    first, last = known[0], known[-1]
    if messages < first.messages:
        part = messages / first.messages
        return Point(messages, first.wall_ms * part, first.cpu_ms * part), BELOW
    if messages >= last.messages:
        return Point(messages, last.wall_ms, last.cpu_ms), ABOVE
    low, high = next((low, high) for low, high in pairwise(known) if low.messages <= messages < high.messages)
    part = (messages - low.messages) / (high.messages - low.messages)
    wall_ms = low.wall_ms + part * (high.wall_ms - low.wall_ms)
    return Point(messages, wall_ms, low.cpu_ms + part * (high.cpu_ms - low.cpu_ms)), BETWEEN


def saving(rebuilds: Spent, others: list[Spent], known: list[Point]) -> Saving:
    """What hits and refreshes (`others`) of one size class saved against rebuilding each time."""
    sessions = sum(each.sessions for each in others)
    messages = (
        sum(each.messages * each.sessions for each in others) / sessions if sessions else rebuilds.messages
    )
    if rebuilds.sessions >= ENOUGH:
        point: Point | None = Point(rebuilds.messages, rebuilds.mean_ms, rebuilds.quick_ms)
        basis = MEASURED
    else:
        point, basis = rebuild_of(messages, known)
    if point is None:
        return Saving(None, basis, None, None)
    wall_ms = sum(each.sessions * point.wall_ms - each.total_ms for each in others)
    cpu_ms = sum(each.sessions * (point.cpu_ms - each.quick_ms) for each in others)
    return Saving(point.wall_ms, basis, wall_ms, cpu_ms)
