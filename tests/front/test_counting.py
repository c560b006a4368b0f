"""What a front counts, when a session that was taken over says what it likes."""

from __future__ import annotations

import os

import pytest

from gpop.broker.tallies import Lent
from gpop.front.counting import Counting
from gpop.privsep import messages
from gpop.tally import COUNT, LAYOUT, OTHER, Tally

HUGE = 2**64 - 1


@pytest.fixture
def lent() -> Lent:
    """A tally as the broker makes it."""
    return Lent.made("front")


def tally_of(lent: Lent) -> Tally:
    return Tally(os.dup(lent.fd), "front")


def counts(number: int) -> dict[str, int]:
    return {name: number for name in messages.COUNTS if name != "cache_us"}


def test_lies_stay_numbers(lent) -> None:
    """Sums wrap around, unknown names are "other": no counter is made, and nothing is raised."""
    tally = tally_of(lent)
    counting = Counting(tally)
    for _ in range(3):
        counting.session({"close_reason": "}\n{", "cache": "\U0001f4a9"}, counts(HUGE), HUGE, 5)
        counting.login("no code", "no source", HUGE)
        counting.login("AUTH", "no source", -5)
        counting.login("no code", "pam", 0)
    at = tally.at
    assert tally.numbers[at["sessions", OTHER]] == 3
    assert tally.numbers[at["logins", OTHER, OTHER]] == 3
    assert tally.numbers[at["logins", "AUTH", OTHER]] == 3
    assert tally.numbers[at["logins", OTHER, "pam"]] == 3
    assert tally.numbers[at["sent_octets",]] == (3 * HUGE) % 2**64
    assert tally.numbers[at["statcache", OTHER, "inf"]] == 3
    assert tally.numbers[at["decision", OTHER, "inf"]] == 3


def test_a_time_is_in_one_bucket(lent) -> None:
    """The first whose bound it does not exceed."""
    tally = tally_of(lent)
    first = tally.first_of("session")
    for time_us in (0, 50, 51, 100, 900_000_000, 900_000_001):
        tally.observe(first, time_us)
    bounds = {bound: tally.numbers[tally.at["session", bound]] for bound in ("50", "100", "900000000", "inf")}
    assert bounds == {"50": 2, "100": 2, "900000000": 1, "inf": 1}


def test_who_follows_counts_on(lent) -> None:
    """Counters of the process before stay, what was the case with it does not."""
    lent.belongs_to(7)
    before = Counting(tally_of(lent))
    before.connected(5)
    before.listens(2)
    lent.belongs_to(0)
    after = Counting(tally_of(lent))
    numbers, at = after.tally.numbers, after.tally.at
    keys = ("connections", "open_connections", "listening")
    assert [numbers[at[key,]] for key in keys] == [1, 0, 0]
    after.connected(1)
    assert numbers[at["connections",]] == 2


def test_another_versions_numbers_are_forgotten(lent) -> None:
    """A process of new code in the tally of an old one begins at 0: what is there means other things."""
    tally = tally_of(lent)
    for number in range(LAYOUT, COUNT):
        tally.numbers[number] = 99
    new = tally_of(lent)
    assert set(new.numbers[LAYOUT + 1 :]) == {0}


def test_nobody_can_shorten_a_tally(lent) -> None:
    """It would end whoever has it in memory with SIGBUS, the next front for one."""
    with pytest.raises(PermissionError):
        os.ftruncate(lent.fd, 0)
    with pytest.raises(OSError):  # it is open for reading only
        os.write(lent.reading_fd, b"x")
