"""
The results of a run: every figure of every round, as JSON for programs, and what is computed from them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.bench.measuring import Cell

FORMAT = 2
TUNED = "dovecot-tuned"

# How a figure of a table is got from what was kept of a round.
METRICS = {
    "cpu_ms": lambda found: found["cpu_ms"],
    "p50_ms": lambda found: found["p50_ms"],
    "p99_ms": lambda found: found["p99_ms"],
    "kib": lambda found: found["kib"],
    "rate": lambda found: found["sessions"] / found["seconds"],
    "cores_used": lambda found: found["cpu_ms"] * found["sessions"] / found["seconds"] / 1e3,
    "broker_ms": lambda found: found["by_process"]["broker"],
}


class Results:
    """All cells of a run, and where it was made."""

    def __init__(self, about: dict[str, Any], cells: list[dict[str, Any]]) -> None:
        self.about = about
        self.cells = cells

    def add(self, cells: Iterable[Cell]) -> None:
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
        """Replace the file as a whole: who ends the bench while it writes keeps what was there."""
        whole = {"format": FORMAT, "about": self.about, "cells": self.cells}
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        new.replace(path)

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(cell["scenario"] for cell in self.cells))

    def servers(self, scenario: str) -> list[str]:
        """Those in a scenario, in the order in which they were named, gpop first."""
        found = list(dict.fromkeys(cell["server"] for cell in self.cells if cell["scenario"] == scenario))
        named: list[str] = list(self.about["servers"])
        place = {name: number for number, name in enumerate(named)}
        return sorted(found, key=lambda name: (not is_gpop(name), place.get(name, len(named))))

    def labels(self, scenario: str) -> list[str]:
        return list(dict.fromkeys(cell["label"] for cell in self.cells if cell["scenario"] == scenario))

    def cell(self, scenario: str, label: str, server: str) -> dict[str, Any] | None:
        for cell in self.cells:
            if (cell["scenario"], cell["label"], cell["server"]) == (scenario, label, server):
                return cell
        return None

    def figures(self, scenario: str, label: str, server: str, metric: str = "cpu_ms") -> list[float | None]:
        """One figure round by round; None where there is none."""
        cell = self.cell(scenario, label, server)
        return [found and METRICS[metric](found) for found in cell["rounds"]] if cell else []

    def known(self, scenario: str, label: str, server: str, metric: str = "cpu_ms") -> list[float]:
        """The same without rounds that have none."""
        figures = self.figures(scenario, label, server, metric)
        return [each for each in figures if each is not None]

    def median(self, scenario: str, label: str, server: str, metric: str = "cpu_ms") -> float | None:
        known = self.known(scenario, label, server, metric)
        return statistics.median(known) if known else None

    def ratio(
        self, scenario: str, label: str, server: str, peer: str, metric: str = "cpu_ms"
    ) -> float | None:
        """The median of the ratios of the rounds: what the machine did beside falls on both."""
        ours, theirs = (self.figures(scenario, label, each, metric) for each in (server, peer))
        ratios = [one / other for one, other in zip(ours, theirs, strict=False) if one is not None and other]
        return statistics.median(ratios) if ratios else None

    def best(self, scenario: str, label: str, metric: str, peers: Iterable[str]) -> str | None:
        """The peer with the least figure."""
        known = {peer: self.median(scenario, label, peer, metric) for peer in peers}
        costs = {peer: figure for peer, figure in known.items() if figure is not None}
        return min(costs, key=costs.__getitem__) if costs else None

    def failed(self) -> bool:
        """Whether any reply was wrong."""
        return any(cell["errors"] for cell in self.cells)


def is_gpop(server: str) -> bool:
    """Whether a server is gpop, of whatever commit and configuration; the others are peers."""
    return server.startswith("gpop")


def isolates(server: str) -> bool:
    """Whether a peer gives each session a process and a uid of its own."""
    return not is_gpop(server) and server != TUNED
