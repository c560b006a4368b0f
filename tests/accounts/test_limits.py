"""How often, in auth: permits by key, in time that is an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpop.auth.limits import Buckets


def test_a_burst_then_one_for_each_delay() -> None:
    """What Outlook does: two at once, then nothing until a delay has gone by."""
    buckets = Buckets(60, 2)
    taken = [buckets.take(b"joe", now) for now in (0.0, 0.1, 0.2, 59.9, 60.0, 60.1, 119.9, 120.0)]
    assert taken == [True, True, False, False, True, False, False, True]


def test_a_refusal_costs_nothing() -> None:
    """Who asks too often is let in as soon as who waits."""
    buckets = Buckets(60, 1)
    assert buckets.take(b"joe", 0.0)
    assert not any(buckets.take(b"joe", float(now)) for now in range(1, 60))
    assert buckets.take(b"joe", 60.0)


def test_after_a_long_time_the_whole_burst_is_there_again_and_no_more() -> None:
    """A bucket does not overflow."""
    buckets = Buckets(60, 2)
    assert buckets.take(b"joe", 0.0)
    assert [buckets.take(b"joe", 10_000.0) for _ in range(3)] == [True, True, False]


def test_one_does_not_use_up_what_another_has() -> None:
    """A bucket for each account."""
    buckets = Buckets(60, 1)
    assert buckets.take(b"joe", 0.0) and buckets.take(b"ann", 0.0)
    assert not buckets.take(b"joe", 1.0)


def test_what_is_full_again_is_forgotten() -> None:
    """The table holds who logged in lately, not everybody who ever did."""
    buckets = Buckets(60, 2)
    for number in range(1000):
        buckets.take(b"%d" % number, number)
    assert len(buckets) <= 62


def test_the_table_is_bounded_and_forgets_who_was_quiet_longest() -> None:
    """Where there is no room the oldest starts afresh: that errs towards letting in."""
    buckets = Buckets(3600, 1, max_keys=10)
    for number in range(20):
        assert buckets.take(b"%d" % number, float(number))
    assert len(buckets) == 10
    assert not buckets.take(b"19", 20.0)
    assert buckets.take(b"0", 20.0)


@given(
    st.lists(st.floats(0, 10), max_size=60),
    st.integers(1, 5),
    st.floats(0.5, 5),
)
def test_no_span_of_time_sees_more_than_it_may(pauses: list[float], burst: int, every_s: float) -> None:
    """Against the slow rule: in any span of t seconds at most burst + t / every_s are let in."""
    buckets = Buckets(every_s, burst)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause / 5
        if buckets.take(b"joe", now):
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - taken[first]) / every_s + 1e-3
