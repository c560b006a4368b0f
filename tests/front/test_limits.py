"""How many connections an address may have, and how many lines a flood makes: without any socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.front.limits import (
    LINE_EVERY_S,
    MAX_LINES,
    MAX_SOURCES,
    UNCOUNTED,
    Addresses,
    LineRate,
    LogGate,
)

PEERS = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "127.0.0.1"])


def addresses(most: int = 2) -> Addresses:
    return Addresses(most, ["127.0.0.0/8", "::1/128"])


def test_an_address_has_so_many_and_no_more() -> None:
    """One that is full disturbs no other; one that leaves makes room for one."""
    counted = addresses()
    source = counted.enter("192.0.2.1")
    assert source and counted.enter("192.0.2.1") == source
    assert counted.enter("192.0.2.1") is None
    assert counted.enter("192.0.2.2")
    counted.leave(source)
    assert counted.enter("192.0.2.1") == source
    assert counted.enter("192.0.2.1") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_ipv6_counts_by_64(first: str, second: str, same: bool) -> None:
    """A customer has a /64, and as many addresses as there are in it."""
    counted = addresses(1)
    assert counted.enter(first)
    assert (counted.enter(second) is None) == same


def test_trusted_networks_are_not_counted() -> None:
    """A webmail host may have as many as it wants, and nothing is kept of it."""
    counted = addresses()
    for peer in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 5:
        assert counted.enter(peer) == UNCOUNTED
        counted.leave(UNCOUNTED)
    assert len(counted) == 0


@given(st.lists(PEERS))
def test_nothing_is_kept_of_who_left(peers: list[str]) -> None:
    """Memory is bounded by the connections there are."""
    counted = addresses(3)
    entered = [source for peer in peers if (source := counted.enter(peer)) is not None]
    for source in entered:
        counted.leave(source)
    assert len(counted) == 0


def test_lines_that_are_left_out_are_counted() -> None:
    """The rate is kept, the number is not lost, and afterwards all is as before."""
    lines, began_s = LineRate(3), 1000.0
    assert [lines.next(began_s) for _ in range(3)] == [0] * 3
    assert [lines.next(began_s + LINE_EVERY_S / 2) for _ in range(5)] == [None] * 5
    assert lines.next(began_s + LINE_EVERY_S) == 5
    assert lines.next(began_s + LINE_EVERY_S) == 0


def test_the_first_line_comes_at_once_and_the_next_says_how_many() -> None:
    """A flood of one source is a line each `LINE_EVERY_S`, and no event is lost in the sum."""
    gate = LogGate()
    lines = [gate.passes("limit", b"a", now / 10) for now in range(301)]
    assert lines[0] == 1
    assert [each for each in lines if each] == [1, 100, 100, 100]


def test_sources_and_reasons_have_lines_of_their_own() -> None:
    """Who floods keeps nobody else out of the log."""
    gate = LogGate()
    assert gate.passes("limit", b"a", 0.0) == 1
    assert gate.passes("limit", b"a", 1.0) == 0
    assert gate.passes("limit", b"b", 1.0) == 1
    assert gate.passes("other", b"a", 1.0) == 1


def test_many_sources_make_few_lines_too() -> None:
    """A flood from everywhere is no flood of lines, and memory stays bounded."""
    gate = LogGate()
    lines = [gate.passes("limit", b"%d" % number, number / 10_000) for number in range(50_000)]
    assert sum(map(bool, lines)) == MAX_LINES
    for window in range(1, 20):
        for number in range(1000):
            gate.passes("limit", b"%d %d" % (window, number), window * LINE_EVERY_S)
    assert len(gate) <= MAX_SOURCES
    assert gate.passes("limit", b"new", 1000.0) == 1
