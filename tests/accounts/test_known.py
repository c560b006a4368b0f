"""Who has logged in before."""

from __future__ import annotations

from gpop.accounts.known import Known


def test_a_name_is_known_from_where_it_has_logged_in() -> None:
    """From there and from nowhere else, and no other name from there."""
    known = Known(b"key")
    known.note(b"ab", b"c")
    assert known.has(b"ab", b"c")
    assert not any(known.has(*other) for other in ((b"a", b"bc"), (b"ab", b"d"), (b"x", b"c"), (b"", b"abc")))


def test_who_has_been_away_for_longest_is_forgotten() -> None:
    """The table is bounded, whoever logs in from wherever."""
    known = Known(b"key", most=3)
    for name in (b"a", b"b", b"c", b"a", b"d", b"e"):
        known.note(b"source", name)
    assert len(known) == 3
    assert [name for name in (b"a", b"b", b"c", b"d", b"e") if known.has(b"source", name)] == [
        b"a",
        b"d",
        b"e",
    ]
