"""
Scale: gpop's sessions per second on one core and on two, with more fronts, and with two whole servers.

A server's processes are bound to cores, the load generator (two processes) is not: it shares them, so seconds
say less than CPU time does. From that: what so many cores could do if they did nothing else, and what one
broker could, who forks every session of its server.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from loadtest.bench import maildrops
from loadtest.bench.kinds import Gpop
from loadtest.bench.load import Load, Result
from loadtest.bench.measuring import Cell, measure_all
from loadtest.bench.servers import Server
from loadtest.bench.stages import Ground, progress

SIZE = "20"
CONCURRENCY = 16
ACCOUNTS = 32
HEADINGS = {
    "rate": "sessions/s",
    "cores_used": "cores used",
    "cpu_ms": "CPU ms/session",
    "broker_ms": "broker's part",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """So many servers with so many fronts each, all on the same cores."""

    servers: int
    fronts: int
    cores: int

    @property
    def name(self) -> str:
        def many(count: int, what: str) -> str:
            return f"{count} {what}{'s' * (count != 1)}"

        brokers = f"{self.servers} brokers, " if self.servers > 1 else ""
        return f"gpop: {brokers}{many(self.fronts * self.servers, 'front')}, {many(self.cores, 'core')}"


LAYOUTS = (Layout(1, 1, 1), Layout(1, 1, 2), Layout(1, 2, 2), Layout(2, 1, 2))


def run(ground: Ground) -> Iterator[list[Cell]]:
    """Measure gpop alone, in every layout that this machine has the cores for."""
    if Gpop not in ground.kinds.values():
        progress("scale is about gpop, which was not asked for")
        return
    cores = sorted(os.sched_getaffinity(0))
    layouts = [layout for layout in LAYOUTS if layout.cores <= len(cores)]
    with ground.stage() as stage:
        sets: dict[str, list[Server]] = {}
        cells = {}
        for layout in layouts:
            pinned = cores[: layout.cores]
            group = stage.new({f"{layout.name}, {number}": Gpop for number in range(layout.servers)})
            for server in group:
                server.cores = frozenset(pinned)
                if isinstance(server, Gpop):
                    server.fronts = layout.fronts
            sets[layout.name] = group
            cells[layout.name] = cell = Cell("scale", SIZE, layout.name, CONCURRENCY)
            cell.notes["cores"] = str(layout.cores)
            cell.notes["brokers"] = str(layout.servers)
            cell.notes["pinned to"] = f"core{'s' * (len(pinned) > 1)} {', '.join(map(str, pinned))}"
        everyone = [server for group in sets.values() for server in group]
        stage.start(everyone, [maildrops.profile(SIZE, ACCOUNTS)])
        loads = [stage.load, ground.new_load()]
        for _ in range(2):
            for server in everyone:
                _load([server], loads, 0.0)
        for number in range(ground.rounds):
            progress(f"scale, round {number}")
            for layout in layouts:
                group = sets[layout.name]
                found = measure_all(group, partial(_load, group, loads, ground.seconds))
                if why := cells[layout.name].note(found):
                    progress(f"{layout.name}: {why}")
        yield list(cells.values())


def _load(group: list[Server], loads: list[Load], seconds: float) -> Result:
    """Have each generator make half of the sessions, on maildrops of its own; return what both came to."""
    for number, (load, server) in enumerate(zip(loads, itertools.cycle(group), strict=False)):
        drops = server.tree.of(SIZE)
        mine = drops[number :: len(loads)]
        if mine:
            load.begin(server.port, "poll", mine, CONCURRENCY // len(loads), seconds, len(mine))
    total = Result()
    for number, load in enumerate(loads):
        if number < len(group[0].tree.of(SIZE)):
            one = load.finish()
            total.sessions += one.sessions
            total.failed += one.failed
            total.errors += one.errors
            total.seconds = max(total.seconds, one.seconds)
            total.p50_ms = max(total.p50_ms, one.p50_ms)
            total.p99_ms = max(total.p99_ms, one.p99_ms)
    return total
