"""How often the log hears of connections that are no balancer's."""

from __future__ import annotations

from gpop.front.proxies import LINES_WINDOW_S, MAX_LINES, RefusalLines


def test_what_is_left_out_is_counted_and_told():
    """The rate is kept, the number is not lost, and afterwards all is as before."""
    lines = RefusalLines()
    began_s = 1000.0
    assert [lines.next(began_s) for _ in range(MAX_LINES)] == [{}] * MAX_LINES
    assert [lines.next(began_s + LINES_WINDOW_S / 2) for _ in range(5)] == [None] * 5
    assert lines.next(began_s + LINES_WINDOW_S) == {"unlogged": 5}
    assert lines.next(began_s + LINES_WINDOW_S) == {}
