"""
The plot: CPU time of a poll against the size of the maildrop, log-log, one line per server.

Needs matplotlib, which nothing else here does: `pip install 'gpop[bench]'`.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from loadtest.bench.report import rounded
from loadtest.bench.results import Results, is_gpop

MISSING = "--plot needs matplotlib: pip install 'gpop[bench]' (or pip install matplotlib)"
# Told apart without colours too (Okabe and Ito's, which the colour-blind see), gpop above all.
GPOP_STYLES = (("#0072b2", "o"), ("#56b4e9", "o"), ("#004466", "o"))
PEER_STYLES = (("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#555555", "P"))


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
    figure, axes = pyplot.subplots(figsize=(7.5, 5))
    sizes = sorted(map(int, results.labels("poll")))
    styles = {True: iter(GPOP_STYLES * 9), False: iter(PEER_STYLES * 9)}
    for server in results.servers("poll"):
        ours = is_gpop(server)
        colour, marker = next(styles[ours])
        _line(results, axes, sizes, server, colour, marker)
    _label(axes, sizes)
    axes.set_title("CPU time of a poll that finds no new mail (USER PASS STAT UIDL QUIT)", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
    about = results.about
    said = (
        f"{about['machine']}; {about['time']}; medians of {about['rounds']} rounds, bars from least to most"
    )
    figure.text(0.01, 0.008, said, fontsize=6.5, color="#666666")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _line(results: Results, axes: Any, sizes: list[int], server: str, colour: str, marker: str) -> None:
    """One server; gpop's own figures stand beside its points, peers' are in the table."""
    known = {size: results.known("poll", str(size), server) for size in sizes}
    measured = [size for size in sizes if known[size]]
    medians = [results.median("poll", str(size), server) or 0.0 for size in measured]
    if not measured:
        return
    below = [median - min(known[size]) for size, median in zip(measured, medians, strict=True)]
    above = [max(known[size]) - median for size, median in zip(measured, medians, strict=True)]
    ours = is_gpop(server)
    axes.errorbar(
        measured,
        medians,
        yerr=(below, above),
        color=colour,
        marker=marker,
        markersize=6 if ours else 5,
        linewidth=2.6 if ours else 1.2,
        linestyle="-" if ours else "--",
        elinewidth=1,
        capsize=2,
        zorder=3 if ours else 2,
        label=server,
    )
    if server == "gpop":
        for size, median in zip(measured, medians, strict=True):
            axes.annotate(
                rounded(median),
                (size, median),
                textcoords="offset points",
                xytext=(0, -14),
                ha="center",
                fontsize=8,
                color=colour,
            )


def _label(axes: Any, sizes: list[int]) -> None:
    """Numbers as people write them, at the sizes that were measured."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    low, high = axes.get_ylim()
    ticks = [base * 10**power for power in range(-2, 6) for base in (1, 2, 5)]
    shown = [tick for tick in ticks if low / 1.5 <= tick <= high]
    axes.set_yticks(shown, [f"{tick:,g}" for tick in shown])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low / 1.5, high)
    axes.set_xlabel("messages in the maildrop")
    axes.set_ylabel("CPU ms per session, whole server")
    axes.grid(True, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
