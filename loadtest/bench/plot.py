"""
The plot: CPU time of a poll against the size of the maildrop, log-log, one line per server.

Needs matplotlib, which nothing else here does: `pip install 'gpop[bench]'`.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from loadtest.bench.results import Results

MISSING = "--plot needs matplotlib: pip install 'gpop[bench]' (or pip install matplotlib)"


def is_possible() -> bool:
    """Say whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, path: Path) -> None:
    """Draw the polls of a run into `path`, whose ending chooses the format."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "gpop"  # the same figures make the same file
    matplotlib.rcParams["svg.fonttype"] = "none"
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    labels = results.labels("poll")
    for server in results.servers("poll"):
        known = [(int(label), results.median("poll", label, server)) for label in labels]
        points = [(size, cost) for size, cost in known if cost is not None]
        style = {"linewidth": 2.5} if server.startswith("gpop") else {"linewidth": 1.2, "linestyle": "--"}
        axes.plot(*zip(*points, strict=True), marker="o", label=server, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("messages in the maildrop")
    axes.set_ylabel("CPU ms per poll, whole server")
    axes.set_title("A poll that finds no new mail (USER PASS STAT UIDL QUIT)", fontsize=11)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.text(0.01, 0.005, results.about["machine"], fontsize=6, color="gray")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
