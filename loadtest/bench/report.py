"""
Figures as tables for people (Markdown), as JSON for programs, and as a plot.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.bench.maildrops import BIG
from loadtest.bench.rounds import TITLES, Cell, retr_script

FORMAT = 1


class Results:
    """All cells of a run, and where it was made."""

    def __init__(self, about: dict[str, Any], cells: list[dict[str, Any]]) -> None:
        self.about = about
        self.cells = cells

    def add(self, cells: list[Cell]) -> None:
        self.cells += [asdict(cell) for cell in cells]

    @classmethod
    def read(cls, path: Path) -> Results:
        """
        Read what `write` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            read = json.loads(path.read_text("utf-8"))
        except ValueError:
            read = None
        if not isinstance(read, dict) or read.get("format") != FORMAT:
            raise ValueError(f"{path} was not written by this version of the bench")
        return cls(read["about"], read["cells"])

    def write(self, path: Path) -> None:
        whole = {"format": FORMAT, "about": self.about, "cells": self.cells}
        path.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(cell["scenario"] for cell in self.cells))

    def servers(self) -> list[str]:
        """In the order in which they were named, gpop first."""
        names: list[str] = list(self.about["servers"])
        return sorted(names, key=lambda name: not name.startswith("gpop"))

    def labels(self, scenario: str) -> list[str]:
        return list(dict.fromkeys(cell["label"] for cell in self.cells if cell["scenario"] == scenario))

    def figures(self, scenario: str, label: str, server: str) -> list[float | None]:
        """CPU milliseconds per session, round by round; None where there is no figure."""
        for cell in self.cells:
            if (cell["scenario"], cell["label"], cell["server"]) == (scenario, label, server):
                return [found and found["cpu_ms"] for found in cell["rounds"]]
        return []

    def median(self, scenario: str, label: str, server: str) -> float | None:
        known = [each for each in self.figures(scenario, label, server) if each is not None]
        return statistics.median(known) if known else None

    def ratio(self, scenario: str, label: str, server: str, peer: str) -> float | None:
        """The median of the ratios of the rounds: what the machine did beside falls on both."""
        both = zip(self.figures(scenario, label, server), self.figures(scenario, label, peer), strict=True)
        ratios = [one / other for one, other in both if one is not None and other]
        return statistics.median(ratios) if ratios else None

    def failed(self) -> bool:
        """Whether any reply was wrong."""
        return any(cell["errors"] for cell in self.cells)


def machine() -> str:
    """One line that says what the figures were measured on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} core{'s' * (cores != 1)}, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of the report."""
    about = results.about
    versions = ", ".join(dict.fromkeys(about["versions"].values()))
    load = f"load average {about['load_before']:.1f} before, {about['load_after']:.1f} after"
    yield f"{about['machine']}; {load}"
    yield f"{versions}; accounts from {about['accounts']}; {about['concurrency']} sessions at once"
    yield f"CPU ms per session, whole server, by {about['meter']}: median of {about['rounds']} rounds (range)"
    for scenario in results.scenarios():
        yield ""
        yield from _table(results, scenario)
    yield from _split(results)


def _table(results: Results, scenario: str) -> Iterator[str]:
    labels = results.labels(scenario)
    servers = results.servers()
    yield f"### {TITLES[scenario]}"
    yield ""
    yield from _row(["server", *(_column(scenario, label) for label in labels)])
    yield "|---" + "|--:" * len(labels) + "|"
    for server in servers:
        yield from _row([server, *(_cell(results, scenario, label, server) for label in labels)])
    subject = servers[0]
    for peer in servers[1:]:
        ratios = (results.ratio(scenario, label, subject, peer) for label in labels)
        yield from _row([f"{subject} : {peer}", *(f"**{_rounded(each)}**" for each in ratios)])


def _row(cells: list[str]) -> Iterator[str]:
    yield "| " + " | ".join(cells) + " |"


def _column(scenario: str, label: str) -> str:
    if label in BIG:
        return BIG[label]
    if scenario == "retr" and retr_script(label) == "retr-pipelined":
        return f"{int(label):,} pipelined"
    return f"{int(label):,} of 8 KB" if scenario == "retr" else f"{int(label):,}"


def _cell(results: Results, scenario: str, label: str, server: str) -> str:
    median = results.median(scenario, label, server)
    if median is None:
        return "none"
    known = [each for each in results.figures(scenario, label, server) if each is not None]
    return f"{_rounded(median)} ({_rounded(min(known))}-{_rounded(max(known))})"


def _rounded(figure: float | None) -> str:
    """Three digits that mean something, no more."""
    if figure is None:
        return "-"
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 0.1 else f"{figure:.3f}"


def _split(results: Results) -> Iterator[str]:
    """Where the CPU time of gpop's polls goes, process by process."""
    rows = []
    for cell in results.cells:
        rounds = [each for each in cell["rounds"] if each and each["by_process"]]
        if cell["scenario"] == "poll" and rounds:
            kinds = rounds[0]["by_process"]
            parts = [statistics.median(each["by_process"][kind] for each in rounds) for kind in kinds]
            parts += [statistics.median(each[name] for each in rounds) for name in ("user_ms", "system_ms")]
            rows.append(([*kinds, "whole, user", "whole, system"], cell, parts))
    if not rows:
        return
    columns = rows[0][0]
    yield ""
    yield "### Where a poll's CPU time goes: ms per session by process"
    yield ""
    yield from _row(["server", "messages", *columns])
    yield "|---|--:" + "|--:" * len(columns) + "|"
    for _, cell, parts in rows:
        yield from _row([cell["server"], f"{int(cell['label']):,}", *(_rounded(part) for part in parts)])
