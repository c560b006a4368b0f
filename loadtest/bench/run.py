"""
A run: every scenario after the other, results kept after each, everything removed at its end.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.bench import cpu, kinds, maildrops, report, scenarios
from loadtest.bench.results import Results
from loadtest.bench.rounds import Bench, labels_of
from loadtest.bench.servers import NotHere
from loadtest.bench.stages import Ground, Kinds, ground, progress

Keep = Callable[[Results], None]


def chosen(names: list[str], by_name: bool) -> Kinds:
    """
    Return the servers to measure, those that are not here left out.

    Raises:
        NotHere: one of them can't be measured, and they were asked for `by_name`.
    """
    found: Kinds = {}
    for name in names:
        try:
            kind = kinds.kind_of(name)
            kind.check()
            found[name] = kind
        except NotHere as reason:
            if by_name:
                raise
            print(f"without {name}: {reason}", file=sys.stderr)
    return found


def run(options: Namespace, wanted: Kinds, keep: Keep) -> Results:
    """
    Make everything, measure, and remove everything; `keep` is given the results whenever there are more.

    Raises:
        NotHere: a server that was asked for does not run.
        Interrupted: a signal came; everything is removed, and what was measured was kept.
    """
    os.umask(0o022)
    results = Results(_about(options, wanted), [])

    def more() -> None:
        results.about["load_after"] = os.getloadavg()[0]
        keep(results)

    def make(folder: Path) -> Ground:
        return Ground(
            folder,
            wanted,
            options.rounds,
            options.seconds,
            options.concurrency,
            options.idle_connections,
            options.idle_sessions,
            options.pam,
            options.meter,
        )

    with ground(make, options.folder) as place:
        together = [name for name in options.scenarios if name not in scenarios.ON_THEIR_OWN]
        if together:
            _measure_together(place, together, options.sizes, results, more)
        for name in options.scenarios:
            if name in scenarios.ON_THEIR_OWN:
                for cells in scenarios.ON_THEIR_OWN[name](place):
                    results.add(cells)
                    more()
        results.about["complete"] = True
        more()
    return results


def _measure_together(
    place: Ground, names: list[str], sizes: list[int], results: Results, more: Callable[[], None]
) -> None:
    """The scenarios that share servers and mail, size by size."""
    labels = list(dict.fromkeys(label for each in names for label in labels_of(each, sizes)))
    profiles = [maildrops.profile(label, place.concurrency) for label in labels]
    with place.stage() as stage:
        stage.start(stage.new(place.kinds), profiles)
        bench = Bench(stage, place.rounds, place.seconds, place.concurrency)
        progress("opening every maildrop twice")
        bench.prime([str(size) for size in sizes])
        for name in names:
            for label in labels_of(name, sizes):
                if name == "retr":
                    bench.prime_retr(label)
                progress(f"{name} {label}")
                results.add(bench.run(name, label))
                more()


def _about(options: Namespace, wanted: Kinds) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": report.machine(),
        "load_before": os.getloadavg()[0],
        "load_after": os.getloadavg()[0],
        "complete": False,
        "servers": list(wanted),
        "versions": {kind.__name__: kind.check() for kind in wanted.values()},
        "accounts": f"PAM ({options.pam})" if options.pam else "passwd-file",
        "meter": cpu.kind_here(options.meter),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "concurrency": options.concurrency,
        "root": maildrops.ROOT,
    }
