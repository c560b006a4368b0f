"""
Memory of gpop's lasting processes through a run: sampled into a CSV file, judged, drawn.

What is taken is `Anonymous` of /proc/PID/smaps_rollup, with what is swapped: pages that hold data of
the process's own. ("Private" would not do for the broker: as long as a session lives that it has forked
they share most of these.) Executed by the load test's command; the picture needs matplotlib.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY_S = 3.0
COUNTED = ("Anonymous:", "Swap:")
FIELDS = ("seconds", "process", "pid", "own_kib")
# From the second quarter of a run to its last one a process may grow by so much. A front has caches of TLS,
# of names and of greenlets, and arenas of malloc; a broker's tables are as large as there are sessions.
MOST_GROWTH_KIB = {"broker": 512, "auth": 1024, "front": 2048, "log": 512}
# With fewer samples in a quarter there is nothing to say.
FEWEST_SAMPLES = 10
MATPLOTLIB_MISSING = (
    "There is no picture of the memory: pip install 'gpop[bench]' (or pip install matplotlib)"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process had of its own, some seconds after the start."""

    seconds: float
    process: str
    pid: int
    own_kib: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one kind of process: the median of the second quarter of a run, that of the last one, the most."""

    process: str
    second_kib: float
    last_kib: float
    most_kib: int

    @property
    def is_flat(self) -> bool:
        return self.last_kib - self.second_kib <= MOST_GROWTH_KIB[self.process]

    def __str__(self) -> str:
        grown = self.last_kib - self.second_kib
        return (
            f"{self.process:<8}{self.second_kib:>9.0f} KiB, then {self.last_kib:.0f}: {grown:+.0f} KiB, "
            f"may be {MOST_GROWTH_KIB[self.process]}; at most {self.most_kib}"
            f"{'' if self.is_flat else '  <- grows'}"
        )


def own_kib(rollup: str) -> int:
    """What a smaps_rollup says of pages that are a process's own."""
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(COUNTED))


class Memory(threading.Thread):
    """Samples, until `end`, the processes that `processes` names each time: kind by pid."""

    def __init__(self, processes: Callable[[], dict[int, str]], table: Path) -> None:
        super().__init__(name="memory", daemon=True)
        self.samples: list[Sample] = []
        self._processes = processes
        self._table = table
        self._ended = threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        with open(self._table, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(FIELDS)
            while not self._ended.is_set():
                for sample in self._sampled(time.monotonic() - started):
                    self.samples.append(sample)
                    rows.writerow([f"{sample.seconds:.1f}", sample.process, sample.pid, sample.own_kib])
                file.flush()
                self._ended.wait(EVERY_S)

    def _sampled(self, seconds: float) -> Iterable[Sample]:
        for pid, process in self._processes().items():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has just ended
            yield Sample(seconds, process, pid, own_kib(rollup))

    def end(self) -> None:
        self._ended.set()
        self.join()


def largest(samples: Iterable[Sample]) -> dict[str, list[tuple[float, int]]]:
    """By kind of process: at each time the largest of them, because it is the one that might grow."""
    found: dict[str, dict[float, int]] = defaultdict(dict)
    for each in samples:
        series = found[each.process]
        series[each.seconds] = max(each.own_kib, series.get(each.seconds, 0))
    return {process: sorted(series.items()) for process, series in found.items()}


def growth(samples: list[Sample]) -> list[Growth]:
    """Judge each kind of process; none of a run that was too short. The first quarter is its warm-up."""
    if not samples:
        return []
    quarter_s = samples[-1].seconds / 4
    judged = []
    for process, series in largest(samples).items():
        second = [kib for seconds, kib in series if quarter_s <= seconds < 2 * quarter_s]
        last = [kib for seconds, kib in series if seconds >= 3 * quarter_s]
        if process in MOST_GROWTH_KIB and min(len(second), len(last)) >= FEWEST_SAMPLES:
            most = max(kib for _, kib in series)
            judged.append(Growth(process, statistics.median(second), statistics.median(last), most))
    return judged


def draw(samples: list[Sample], path: Path) -> bool:
    """Draw them; False if there is no matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        return False
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "gpop"
    matplotlib.rcParams["svg.fonttype"] = "none"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    for process, series in sorted(largest(samples).items()):
        minutes = [seconds / 60 for seconds, _ in series]
        axes.plot(minutes, [kib / 1024 for _, kib in series], label=process, linewidth=1)
    axes.set(xlabel="minutes", ylabel="own memory, MiB", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(MOST_GROWTH_KIB))
    axes.grid(alpha=0.3)
    # Without a date and the like the same samples make the same file.
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return True
