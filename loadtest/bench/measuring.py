"""
One measurement: what a server used while sessions were made, over their number. And where figures are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtest.bench import cpu
from loadtest.bench.load import Load, Result
from loadtest.bench.maildrops import Maildrop
from loadtest.bench.servers import Server


@dataclass(slots=True)
class Figure:
    """What sessions came to in one round; milliseconds of CPU time are per session."""

    cpu_ms: float
    user_ms: float
    system_ms: float
    sessions: int
    seconds: float
    p50_ms: float
    p99_ms: float
    by_process: dict[str, float]  # milliseconds as well


@dataclass(slots=True)
class Memory:
    """What each of `count` connections, sessions or messages added to a server."""

    kib: float
    count: int


@dataclass(slots=True)
class Cell:
    """One server in one scenario under one label, which is mostly a size of maildrop."""

    scenario: str
    label: str
    server: str
    concurrency: int
    rounds: list[Figure | Memory | None] = field(default_factory=list)  # None: no figure, `errors` say why
    errors: list[str] = field(default_factory=list)  # replies that were wrong
    notes: dict[str, str] = field(default_factory=dict)  # what else there is to say

    def note(self, found: Figure | Memory | Result) -> str:
        """Keep what a round came to; returns why it is no figure."""
        if not isinstance(found, Result):
            self.rounds.append(found)
            return ""
        self.rounds.append(None)
        self.errors += found.errors
        return "; ".join(found.errors) or "too little CPU time for this meter"


def measure(
    load: Load,
    server: Server,
    script: str,
    maildrops: list[Maildrop],
    concurrency: int,
    seconds: float = 0.0,
    at_least: int = 0,
) -> Figure | Result:
    """
    Return what sessions cost; the Result instead if one went wrong, or they cost too little to tell.

    Without `seconds`: one session for each maildrop.
    """
    at_least = at_least or (concurrency if seconds else len(maildrops))
    return measure_all(
        [server], lambda: load.run(server.port, script, maildrops, concurrency, seconds, at_least)
    )


def measure_all(servers: Sequence[Server], sessions: Callable[[], Result]) -> Figure | Result:
    """The same for servers that count as one, and for whatever `sessions` does to them."""
    before = sum((cpu.settled(server.meter) for server in servers), cpu.NOTHING)
    processes_before = _by_process(servers)
    result = sessions()
    used = sum((cpu.settled(server.meter) for server in servers), cpu.NOTHING) - before
    if result.failed or not result.sessions or used.total <= servers[0].meter.least_s:
        return result
    per_session_ms = 1e3 / result.sessions
    return Figure(
        cpu_ms=used.total * per_session_ms,
        user_ms=used.user * per_session_ms,
        system_ms=used.system * per_session_ms,
        sessions=result.sessions,
        seconds=result.seconds,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        by_process={
            kind: (now - processes_before[kind]) * per_session_ms
            for kind, now in _by_process(servers).items()
        },
    )


def _by_process(servers: Sequence[Server]) -> dict[str, float]:
    total: dict[str, float] = {}
    for server in servers:
        for kind, seconds in server.by_process().items():
            total[kind] = total.get(kind, 0.0) + seconds
    return total
