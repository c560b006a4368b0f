"""
What password checks cost, and what the auth cache saves: polls with accounts from PAM.

"permit" accepts everybody, so what is left is the server's own work around a check; "unix" computes a hash
that is dear on purpose (yescrypt), as nearly every system has it.
"""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.bench import kinds, maildrops
from loadtest.bench.accounts import STACKS
from loadtest.bench.measuring import Cell
from loadtest.bench.rounds import Bench
from loadtest.bench.stages import Ground, progress

SIZE = "20"


def run(ground: Ground) -> Iterator[list[Cell]]:
    """Measure every server with both stacks, gpop also without its cache."""
    if not maildrops.ROOT:
        progress("passwords: PAM needs root")
        return
    wanted = dict(ground.kinds)
    if kinds.Gpop in wanted.values():
        wanted["gpop-nocache"] = kinds.GpopWithoutCache
    for pam in STACKS:
        with ground.stage(pam) as stage:
            stage.start(stage.new(wanted), [maildrops.profile(SIZE, ground.concurrency)])
            bench = Bench(stage, ground.rounds, ground.seconds, ground.concurrency)
            bench.prime([SIZE])
            progress(f"passwords, {pam}")
            cells = bench.run("poll", SIZE)
            for cell in cells:
                cell.scenario, cell.label = "passwords", pam
            yield cells
