"""
Latency: how long the whole poll takes for its client, with few and with many at once; fairness of fronts.

Each session begins with connecting, so queues for accepting, checking and forking are in it. The client is
one process that shares the machine with the server: compare servers, not machines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from loadtest.bench import maildrops
from loadtest.bench.kinds import Gpop
from loadtest.bench.measuring import Cell, measure
from loadtest.bench.stages import Ground, progress

CONCURRENCIES = (4, 200)
SIZE = "20"
# Of so many sessions p99 is more than the slowest one.
LEAST_SESSIONS = 400
# A front numbers its logins from a random multiple of this power of two: above it, the number is the front's.
FRONT_SHIFT = 20


class TwoFronts(Gpop):
    """gpop with two fronts."""

    fronts = 2


def run(ground: Ground) -> Iterator[list[Cell]]:
    """Measure every server, gpop with two fronts as well."""
    with ground.stage() as stage:
        servers = stage.new(ground.kinds)
        if Gpop in ground.kinds.values():
            servers += stage.new({"gpop, 2 fronts": TwoFronts})
        stage.start(servers, [maildrops.profile(SIZE, max(CONCURRENCIES))])
        for server in servers:
            for _ in range(2):
                drops = server.tree.of(SIZE)
                stage.load.run(server.port, "poll", drops, ground.concurrency, 0, len(drops))
        for concurrency in CONCURRENCIES:
            progress(f"latency at {concurrency}")
            cells = {
                server.name: Cell("latency", str(concurrency), server.name, concurrency) for server in servers
            }
            for _ in range(ground.rounds):
                servers.append(servers.pop(0))
                for server in servers:
                    drops = server.tree.of(SIZE)
                    at_least = LEAST_SESSIONS if len(drops) > 1 else 20
                    two_fronts = isinstance(server, TwoFronts)
                    before = sessions_by_front(server.log) if two_fronts else Counter[int]()
                    found = measure(stage.load, server, "poll", drops, concurrency, ground.seconds, at_least)
                    cell = cells[server.name]
                    if why := cell.note(found):
                        progress(f"{server.name}, latency at {concurrency}: {why}")
                    if two_fronts:
                        shares = (sessions_by_front(server.log) - before).values()
                        said = " and ".join(f"{share:,}" for share in sorted(shares, reverse=True))
                        cell.notes["sessions of each front in the last round"] = said
            yield list(cells.values())


def sessions_by_front(log: Path) -> Counter[int]:
    """Count the sessions that each front has logged."""
    found: Counter[int] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if '"session_closed"' in line:
            found[json.loads(line)["login_id"] >> FRONT_SHIFT] += 1
    return found
