"""What the cache saved: the model, with numbers that can be done in the head."""

from __future__ import annotations

from pathlib import Path

from gpop.report import saved
from gpop.report.saved import Point, Spent
from tests.report.conftest import Run, session, write

SMALL, LARGE = Point(100, 10, 4), Point(1100, 110, 54)


def test_between_measured_sizes_it_is_on_the_line() -> None:
    """Half way between two sizes, half way between their times."""
    assert saved.rebuild_of(600, [SMALL, LARGE]) == (Point(600, 60, 29), saved.BETWEEN)


def test_beyond_them_it_says_too_little() -> None:
    """Below the smallest it goes down to nothing with the messages, above the largest it stays."""
    assert saved.rebuild_of(50, [SMALL, LARGE]) == (Point(50, 5, 2), saved.BELOW)
    assert saved.rebuild_of(9000, [SMALL, LARGE]) == (Point(9000, 110, 54), saved.ABOVE)
    assert saved.rebuild_of(0, [Point(0, 1, 1)]) == (Point(0, 1, 1), saved.ABOVE)


def test_without_rebuilds_nothing_is_said() -> None:
    """Hits alone don't tell what they spared."""
    found = saved.saving(Spent(), [Spent(5, 10, 1, 0.1)], saved.points([]))
    assert (found.wall_ms, found.cpu_ms, found.basis) == (None, None, saved.UNKNOWN)


def test_what_is_measured_goes_before_what_is_estimated() -> None:
    """A class with enough rebuilds has their mean, and their quick tenth for CPU time."""
    rebuilds = Spent(4, 100, 80, 12)
    hits, refreshes = Spent(10, 100, 5, 0.4), Spent(2, 100, 8, 3)
    found = saved.saving(rebuilds, [hits, refreshes], [SMALL])
    assert found.basis == saved.MEASURED and found.rebuild_ms == 20
    assert found.wall_ms == 12 * 20 - 13
    assert round(found.cpu_ms or 0, 6) == 12 * 12 - 10 * 0.4 - 2 * 3


def test_the_report_adds_it_up(tmp_path: Path, report: Run) -> None:
    """Three rebuilds of 10 ms and seven hits of 1 ms: 63 ms saved, 37 ms taken, 100 without a cache."""
    lines = [session(cache="rebuild", cache_reason="absent", cache_ms=10.0) for _ in range(3)]
    lines += [session(cache_ms=1.0) for _ in range(7)]
    found = report("--json", write(tmp_path / "log", *lines)).json()["saved"]
    assert (found["wall_ms"], found["took_ms"], found["without_cache_ms"]) == (63.0, 37.0, 100.0)
    assert found["cpu_ms"] == 63.0


def test_what_it_cost_is_said_too(tmp_path: Path, report: Run) -> None:
    """Where refreshes are dearer than rebuilds the saving is below nothing, and said so."""
    lines = [session(cache="rebuild", cache_reason="absent", cache_ms=1.0) for _ in range(3)]
    lines += [session(cache="refresh", cache_reason="new_changed", cache_ms=3.0) for _ in range(2)]
    assert report("--json", write(tmp_path / "log", *lines)).json()["saved"]["wall_ms"] == -4.0
