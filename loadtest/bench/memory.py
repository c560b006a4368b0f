"""
Memory: of a connection before login, of an idle session, and what a message adds while it is retrieved.

From /proc/PID/smaps_rollup of every process of the server: "private" is what no other process shares, PSS
counts shared pages in parts, so its sum is what is really there. Buffers of sockets are the kernel's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from loadtest.bench import cpu, maildrops
from loadtest.bench.holding import Clients, allow_descriptors, read_slowly
from loadtest.bench.kinds import Gpop
from loadtest.bench.load import Result
from loadtest.bench.maildrops import BIG, BIG_OCTETS, Profile
from loadtest.bench.measuring import Cell, Memory
from loadtest.bench.servers import Server
from loadtest.bench.stages import Ground, Stage, progress

PRIVATE = ("Private_Clean", "Private_Dirty")
PSS = ("Pss",)
ANONYMOUS = ("Pss_Anon",)
SIZE = "20"
ONE_BIG = next(iter(BIG))
# A fourth of it: what is the same for both does not grow with the message.
QUARTER = Profile("quarter", 1, 1, BIG_OCTETS // 4)
# Connections and sessions that are opened and closed before anything is measured: what is made once is made.
WARMING = 50
FRONTS = 2
LABELS = {
    "idle": "idle conn.",
    "session": "session",
    "retr-small": "RETR 8 KB",
    "retr-quarter": "RETR 12 MB",
    "retr-big": "RETR 50 MB",
    "retr-big-anon": "of it anon.",
}
MEANINGS = (
    "idle conn.: private memory per connection before login. session: PSS per idle session.",
    "RETR: what the whole server grew by at most while one client read slowly: PSS, of it anonymous.",
)


def run(ground: Ground) -> Iterator[list[Cell]]:
    """Measure every server, once: memory once used is not given back, so a second round would find less."""
    connections = min(ground.idle_connections, allow_descriptors(2 * ground.idle_connections))
    with ground.stage() as stage:
        servers = stage.new(ground.kinds)
        for server in servers:
            if isinstance(server, Gpop):
                server.fronts = FRONTS
                server.most_connections = connections + WARMING
        stage.start(
            servers,
            [maildrops.profile(SIZE, ground.idle_sessions), QUARTER, maildrops.profile(ONE_BIG, 1)],
        )
        for server in servers:
            cells = {
                label: Cell("memory", label, server.name, min(connections, server.most_connections))
                for label in LABELS
            }
            progress(f"memory of {server.name}")
            try:
                _measure(stage, server, connections, ground.idle_sessions, cells)
            except OSError as error:
                why = cells["idle"].note(Result(failed=1, errors=[str(error)]))
                progress(f"{server.name}, memory: {why}")
            yield [cell for cell in cells.values() if cell.rounds]


def _measure(stage: Stage, server: Server, connections: int, sessions: int, cells: dict[str, Cell]) -> None:
    drops = server.tree.of(SIZE)[:sessions]
    (quarter,), (big,) = server.tree.of(QUARTER.label)[:1], server.tree.of(ONE_BIG)[:1]
    everything = [*drops, quarter, big]
    for _ in range(2):
        stage.load.run(server.port, "poll", everything, WARMING, 0, len(everything))

    def clients_hold(count: int) -> Callable[[Clients], None]:
        return lambda clients: clients.connect(count)

    def clients_log_in(clients: Clients) -> None:
        clients.log_in(drops)

    count = min(connections, server.most_connections)
    _added(server, PRIVATE, clients_hold(min(count, WARMING)))
    cells["idle"].note(Memory(_added(server, PRIVATE, clients_hold(count)) / count, count))
    _added(server, PSS, clients_log_in)
    cells["session"].note(Memory(_added(server, PSS, clients_log_in) / len(drops), len(drops)))
    for label, drop in (("retr-small", drops[0]), ("retr-quarter", quarter), ("retr-big", big)):
        looks: list[tuple[float, float]] = []
        read_slowly(server.port, drop, partial(_look, server, looks))
        for kind, at in ((label, 0), (f"{label}-anon", 1)):
            if kind in cells:
                series = [look[at] for look in looks]
                cells[kind].note(Memory(max(series) - series[0], 1))


def _look(server: Server, looks: list[tuple[float, float]]) -> None:
    """Note what the server uses now."""
    looks.append((used_kib(server, PSS), used_kib(server, ANONYMOUS)))


def _added(server: Server, fields: tuple[str, ...], hold: Callable[[Clients], None]) -> float:
    """Return the KiB that a server has more while clients hold something."""
    cpu.settled(server.meter)
    before = used_kib(server, fields)
    with Clients(server.port) as clients:
        hold(clients)
        cpu.settled(server.meter)
        added = used_kib(server, fields) - before
    cpu.settled(server.meter)
    return added


def used_kib(server: Server, fields: tuple[str, ...]) -> float:
    """Add up fields of smaps_rollup over every process of a server."""
    total = 0
    for pid in server.meter.pids():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        for line in lines:
            name, _, rest = line.partition(":")
            if name in fields:
                total += int(rest.split()[0])
    return total
