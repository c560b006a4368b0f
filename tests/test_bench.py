"""
The benchmark suite runs, for root and for others, and leaves nothing, so that it does when it is needed.

Figures are not looked at. How a report reads is tested on made-up ones.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench import kinds, maps, report
from loadtest.bench.maildrops import BIG
from loadtest.bench.measuring import Cell, Figure
from loadtest.bench.results import Results

TOP = Path(__file__).parents[1]
BENCH = [sys.executable, "-m", "loadtest.bench"]
SHORT = ["--quick", "--servers", "gpop", "--sizes", "20", "--rounds", "1", "--seconds", "0.1"]
TIMEOUT_S = 120
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that mail users get through, which pytest's own are not; empty again after each test."""
    path = Path(tempfile.mkdtemp(prefix="gpop-test-bench-"))
    path.chmod(0o777)
    yield path
    left = [entry.name for entry in path.iterdir() if entry.name != "figures.json"]
    shutil.rmtree(path)
    assert left == []
    assert processes_of(path) == []


def processes_of(folder: Path) -> list[str]:
    """Command lines in which that folder is named."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and process.name != str(os.getpid()):
            found.append(command)
    return found


def run(folder: Path, *arguments: str, **how: Any) -> tuple[str, dict[str, Any]]:
    """Run the bench; returns what it prints, and its figures."""
    figures = folder / "figures.json"
    command = [*BENCH, *SHORT, *arguments, "--folder", str(folder), "--json", str(figures)]
    done = subprocess.run(
        command, check=False, cwd=TOP, capture_output=True, text=True, timeout=TIMEOUT_S, **how
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(figures.read_text())


def cells_without_figures(figures: dict[str, Any]) -> list[str]:
    return [f"{cell['scenario']} {cell['label']}" for cell in figures["cells"] if None in cell["rounds"]]


def test_quick_run(folder: Path) -> None:
    """A first look ends with a table, verified replies and figures to keep."""
    printed, figures = run(folder)
    assert "| gpop " in printed
    assert figures["about"]["complete"]
    assert [cell["scenario"] for cell in figures["cells"]] == ["poll"]
    assert not cells_without_figures(figures) or figures["about"]["meter"] == "/proc"


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has seen it in the test before")
def test_quick_run_without_root(folder: Path) -> None:
    """It is of use to somebody who may do nothing: no jails, one account, /proc for a meter."""
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import loadtest"], cwd=TOP, check=True, **who)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this clone, or its Python, can be read by root only")
    _, figures = run(folder, "--seconds", "0.5", env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, **who)
    assert not figures["about"]["root"]
    assert [cell["errors"] for cell in figures["cells"]] == [[]]


def test_memory_and_scale(folder: Path) -> None:
    """The scenarios with servers of their own run through as well."""
    few = ["--idle-connections", "20", "--idle-sessions", "2"]
    printed, figures = run(folder, "--scenarios", "memory,scale", *few)
    assert {cell["scenario"] for cell in figures["cells"]} == {"memory", "scale"}
    assert not [cell["errors"] for cell in figures["cells"] if cell["errors"]]
    assert "pinned to core" in printed


def test_an_ended_run_keeps_its_figures_and_leaves_nothing(folder: Path) -> None:
    """What was measured before a signal is there; more signals do not disturb the removal."""
    kept = folder / "figures.json"
    command = [*BENCH, *SHORT, "--scenarios", "stat,poll", "--seconds", "1"]
    command += ["--folder", str(folder), "--json", str(kept)]
    with subprocess.Popen(
        command, cwd=TOP, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stderr
        for line in bench.stderr:
            if "poll 20" in line:
                bench.send_signal(signal.SIGTERM)
            if "removing everything" in line:
                bench.send_signal(signal.SIGINT)
                bench.send_signal(signal.SIGTERM)
        assert bench.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    figures = json.loads(kept.read_text())
    assert [cell["scenario"] for cell in figures["cells"]] == ["stat"]
    assert not figures["about"]["complete"]


# The report


def made_up(cost: dict[str, float]) -> Results:
    """Results of a whole run with plausible figures, `cost` by server."""
    about = {
        "time": "2026-11-01 12:00",
        "machine": "A processor with a long name, 64 cores, Linux 6.1.0-18-amd64, CPython 3.11.2",
        "load_before": 0.1,
        "load_after": 2.0,
        "complete": True,
        "servers": list(cost),
        "versions": {"Gpop": "gpop at 0123456789", "Dovecot": "Dovecot 2.3.19.1", "Courier": "Courier"},
        "accounts": "passwd-file",
        "meter": "cgroup v2",
        "rounds": 5,
        "seconds": 1.5,
        "concurrency": 4,
        "root": True,
    }
    results = Results(about, [])
    sizes = ["20", "1000", "10000", "100000"]
    wanted = [*itertools.product(("stat", "poll", "refresh", "rebuild"), sizes)]
    wanted += [("retr", label) for label in ("20", "1000", *BIG)]
    for (scenario, label), (server, each) in itertools.product(wanted, cost.items()):
        rounds = [Figure(each * part, 1, 1, 100, 1.0, 1.0, 2.0, {}) for part in (0.9, 1.0, 1.1)]
        results.add([Cell(scenario, label, server, 4, [*rounds])])
    return results


def test_the_report_fits_a_terminal() -> None:
    """Every line of the report of a whole run is at most 100 columns wide, whatever the figures are."""
    results = made_up(dict.fromkeys(kinds.KINDS, 1234.5))
    assert [line for line in report.tables(results) if len(line) > report.WIDTH] == []


def test_the_report_says_what_is_met() -> None:
    """Beside a ratio stands what it is meant to be; the best isolating peer is never the one that shares."""
    lines = list(report.tables(made_up({"gpop": 1, "dovecot-tuned": 2, "dovecot-secure": 8, "courier": 4})))
    text = "\n".join(lines)
    poll = text[text.index("### Poll") : text.index("### Refresh")].splitlines()
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in poll if row.startswith("| ")}
    assert [cell.strip() for cell in rows["vs dovecot-tuned"]] == ["0.50"] * 4
    assert [cell.strip() for cell in rows["which is"]] == ["courier"] * 4
    targets = [row for row in poll if row.startswith("|   target")]
    assert "≤ 1 met" in targets[0]
    assert "≤ 0.4 MISSED" in targets[0]
    assert "≤ 0.35 met" in targets[1]


def test_a_ratio_is_that_of_the_rounds() -> None:
    """A machine that is slow for one round is so for both servers, and the ratio does not move."""
    results = made_up({"gpop": 1})
    slow = [Figure(cost, 0, 0, 1, 1.0, 0, 0, {}) for cost in (20, 2, 2)]
    results.add([Cell("poll", "20", "courier", 4, [*slow])])
    ours = [Figure(cost, 0, 0, 1, 1.0, 0, 0, {}) for cost in (10, 1, 1)]
    results.add([Cell("poll", "20", "gpop@HEAD", 4, [*ours])])
    assert results.ratio("poll", "20", "gpop@HEAD", "courier") == 0.5


def test_maps_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column, of the kinds that need no program of Postfix's; the others are left out without it."""
    monkeypatch.delenv("GPOP_MAP_TOOLS", raising=False)
    monkeypatch.setattr(maps, "NAMES", 10)
    monkeypatch.setattr(maps, "ROUNDS", 1)
    figures = maps.run(3000, ["lmdb", "text"])
    assert set(figures) == {"lmdb", "text"}
    for row in figures.values():
        assert set(row) == set(maps.COLUMNS)
        assert all(row[column] > 0 for column in ("file_mb", "exact_us", "catch_all_us", "none_us"))
