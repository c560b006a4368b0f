"""Who waits, how long, and who does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.addresses import packed, source_of
from gpop.accounts.penalties import PenaltyTable

KEY = b"k" * 32


def table(max_sources: int = 100) -> PenaltyTable:
    return PenaltyTable(KEY, ["127.0.0.0/8", "::1/128", "10.1.0.0/16"], 900.0, max_sources)


def test_the_delay_doubles_up_to_15_seconds() -> None:
    """2, 4, 8, 15, and no more."""
    penalties = table()
    source = source_of("192.0.2.1")
    assert penalties.delay_s(source, 0.0) == 0.0
    delays = []
    for attempt in range(6):
        penalties.failed(source, b"joe", b"wrong%d" % attempt, 0.0)
        delays.append(penalties.delay_s(source, 0.0))
    assert delays == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_the_same_wrong_password_again_raises_nothing() -> None:
    """A mail client with an old password is no guesser; another name with it is."""
    penalties = table()
    source = source_of("192.0.2.1")
    assert penalties.failed(source, b"joe", b"old", 0.0) == 2.0
    for _ in range(20):
        assert penalties.failed(source, b"joe", b"old", 1.0) == 0.0
    assert penalties.delay_s(source, 1.0) == 2.0
    assert penalties.failed(source, b"joeo", b"ld", 1.0) == 4.0


def test_other_sources_do_not_wait() -> None:
    """One address' failures are its own."""
    penalties = table()
    penalties.failed(source_of("192.0.2.1"), b"joe", b"x", 0.0)
    assert penalties.delay_s(source_of("192.0.2.2"), 0.0) == 0.0


def test_a_penalty_is_forgotten_after_a_while() -> None:
    """Counted from the last time it rose."""
    penalties = table()
    source = source_of("192.0.2.1")
    penalties.failed(source, b"joe", b"1", 0.0)
    penalties.failed(source, b"joe", b"2", 500.0)
    assert penalties.delay_s(source, 1399.0) == 4.0
    assert penalties.delay_s(source, 1400.0) == 0.0
    assert len(penalties) == 0
    assert penalties.failed(source, b"joe", b"2", 1400.0) == 2.0


def test_who_has_been_quiet_longest_is_forgotten_first() -> None:
    """The table is bounded."""
    penalties = table(max_sources=3)
    sources = [source_of(f"192.0.2.{number}") for number in range(4)]
    for source in sources[:3]:
        penalties.failed(source, b"joe", b"x", 0.0)
    penalties.failed(sources[0], b"joe", b"y", 1.0)
    penalties.failed(sources[3], b"joe", b"x", 2.0)
    assert len(penalties) == 3
    assert [penalties.delay_s(source, 2.0) for source in sources] == [4.0, 0.0, 2.0, 2.0]


def test_penalties_that_are_over_take_no_memory() -> None:
    """After a night of guesses from everywhere the table empties again, by those that come later."""
    penalties = table(max_sources=1000)
    for number in range(500):
        penalties.failed(b"%d" % number, b"name", b"wrong", 0.0)
    assert len(penalties) == 500
    for number in range(500):
        penalties.failed(b"late %d" % (number % 3), b"name", b"%d" % number, 900.0)
    assert len(penalties) == 3


def test_one_customer_is_one_source() -> None:
    """One IPv4 address, one IPv6 /64; an IPv4 address is itself in IPv6 clothes."""
    assert source_of("2001:db8:1:2::1") == source_of("2001:db8:1:2:ffff::9")
    assert source_of("2001:db8:1:2::1") != source_of("2001:db8:1:3::1")
    assert source_of("::ffff:192.0.2.1") == source_of("192.0.2.1")
    assert source_of("fe80::1%eth0") == source_of("fe80::1")


@pytest.mark.parametrize(
    "peer, trusted",
    [
        ("127.0.0.1", True),
        ("::ffff:127.0.0.5", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::2", False),
        ("192.0.2.1", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_trusted_networks(peer: str, trusted: bool) -> None:
    """A webmail host's users share its address."""
    assert table().is_trusted(peer) == trusted


def test_an_open_network_trusts_only_addresses() -> None:
    """0.0.0.0/0 and ::/0 are everybody who has an address, and no text that happens to be as long."""
    penalties = PenaltyTable(KEY, ["0.0.0.0/0", "::/0"], 900.0)
    assert penalties.is_trusted("192.0.2.1") and penalties.is_trusted("2001:db8::1")
    assert not penalties.is_trusted("text") and not penalties.is_trusted("sixteen octets!!")


@given(peer=st.text(max_size=64))
def test_any_peer_has_a_source(peer: str) -> None:
    """A frame may claim anything."""
    assert len(source_of(peer)) in (4, 8, 20)
    assert len(packed(peer)) in (4, 16, 20)


def test_no_password_is_kept() -> None:
    """Only keyed hashes of what was wrong."""
    penalties = table()
    penalties.failed(source_of("192.0.2.1"), b"joe", b"hunter2", 0.0)
    kept = [penalty.seen for penalty in penalties._penalties.values()]
    assert kept and b"hunter2" not in b"".join(map(b"".join, kept))
