"""Who has logged in before."""

from __future__ import annotations

from gpop.accounts.known import NAMES_PER_ROW, ROWS, Known


def test_a_name_is_known_from_where_it_has_logged_in() -> None:
    """From there and from nowhere else, and no other name from there."""
    known = Known(b"key")
    known.note(b"ab", b"c")
    assert known.has(b"ab", b"c")
    assert not any(known.has(*other) for other in ((b"a", b"bc"), (b"ab", b"d"), (b"x", b"c"), (b"", b"abc")))


def test_who_has_been_away_for_longest_is_forgotten() -> None:
    """The table is bounded, whoever logs in from wherever."""
    known = Known(b"key", rows=1)
    names = [b"%d" % number for number in range(NAMES_PER_ROW + 2)]
    for name in names[:NAMES_PER_ROW]:
        known.note(b"source", name)
    assert all(known.has(b"source", name) for name in names[:NAMES_PER_ROW])
    known.note(b"source", names[0])
    for name in names[NAMES_PER_ROW:]:
        known.note(b"source", name)
    assert [name for name in names if not known.has(b"source", name)] == names[1:3]


def test_one_that_logs_in_again_and_again_displaces_nobody() -> None:
    """It has one place, and those who share its row keep theirs."""
    known = Known(b"key", rows=1)
    for name in (b"a", *[b"b"] * 100):
        known.note(b"source", name)
    assert known.has(b"source", b"a") and known.has(b"source", b"b")


def test_many_names_are_known_at_once() -> None:
    """Rows fill unevenly, but of half as many names as there are places nearly all are found."""
    known = Known(b"key")
    names = [b"%d" % number for number in range(ROWS * NAMES_PER_ROW // 2)]
    for name in names:
        known.note(b"source", name)
    assert sum(known.has(b"source", name) for name in names) > 0.97 * len(names)
