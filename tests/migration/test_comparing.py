"""Where two servers' lists differ, and what that is called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpop.migration import comparing
from gpop.migration.comparing import Comparison, Listing


def listing(ids: str, octets: list[int] | None = None) -> Listing:
    """Return a listing with an id for each letter."""
    sizes = octets or [ord(letter) for letter in ids]
    return Listing(sizes, [letter.encode() for letter in ids], (len(ids), sum(sizes)))


def compare(old: str, new: str) -> Comparison:
    return comparing.compare(listing(old), listing(new), True, 10)


def found(old: str, new: str) -> list[tuple[str, int, int, bytes, bytes]]:
    return [
        (each.kind, each.old_number, each.new_number, each.old, each.new) for each in compare(old, new).shown
    ]


def test_the_same() -> None:
    """Nothing to say of two lists that are equal, or empty."""
    for ids in ("", "a", "abcdef"):
        same = compare(ids, ids)
        assert not same.counts and not same.later and same.messages == len(ids)


def test_new_mail_is_no_difference() -> None:
    """What only the new server has at its end came between the two questions."""
    more = compare("abc", "abcde")
    assert not more.counts and more.later == 2 and more.messages == 3


def test_the_new_server_may_not_have_less() -> None:
    """What only the old server has is missing, wherever it stands; an empty maildrop is no excuse."""
    assert found("abc", "ab") == [(comparing.MISSING, 3, 0, b"c", b"")]
    assert found("abc", "bc") == [(comparing.MISSING, 1, 0, b"a", b"")]
    assert compare("abc", "").counts == {comparing.MISSING: 3}


def test_one_missing_is_one_difference() -> None:
    """The numbers of all that follow shift, which is no difference of theirs; nor is later mail one."""
    shifted = compare("abcdef", "abdefgh")
    assert shifted.counts == {comparing.MISSING: 1} and shifted.later == 2


def test_another_id() -> None:
    """A message that has another id is named with both, in the middle and at the end."""
    assert found("abc", "aXc")[0] == (comparing.CHANGED, 2, 2, b"b", b"X")
    assert found("abc", "abX")[0] == (comparing.CHANGED, 3, 3, b"c", b"X")
    later = compare("abc", "abXde")
    assert later.counts == {comparing.CHANGED: 1} and later.later == 2
    assert compare("abc", "XYZ").counts == {comparing.CHANGED: 3}


def test_one_more_in_the_middle() -> None:
    """A message that only the new server has, before others, is no later mail."""
    assert found("abc", "aXbc") == [(comparing.ADDED, 0, 2, b"", b"X")]


def test_another_order() -> None:
    """The same ids in another order: each that has changed places, with both numbers."""
    assert found("abc", "bac") == [
        (comparing.MOVED, 1, 2, b"a", b"a"), (comparing.MOVED, 2, 1, b"b", b"b"),
    ]  # fmt: skip


def test_an_id_twice() -> None:
    """A server that gives an id twice is told so, whichever of the two it is."""
    assert found("aba", "ab")[0] == (comparing.REPEATED, 3, 0, b"a", b"")
    assert found("ab", "aab")[0] == (comparing.REPEATED, 0, 2, b"", b"a")


def test_sizes() -> None:
    """Sizes are compared by id, totals only where nothing else differs in number; or not at all."""
    old, new = listing("ab", [10, 20]), listing("ab", [10, 22])
    sized = comparing.compare(old, new, True, 10)
    assert [(each.kind, each.old, each.new) for each in sized.shown] == [
        (comparing.RESIZED, b"20", b"22"), (comparing.TOTALS, b"2 30", b"2 32"),
    ]  # fmt: skip
    assert not comparing.compare(old, new, False, 10).counts


def test_what_is_shown_is_bounded() -> None:
    """All are counted, the first of each kind are shown."""
    many = comparing.compare(
        Listing([1] * 5000, [b"o%d" % each for each in range(5000)], (5000, 5000)),
        Listing([1] * 5000, [b"n%d" % each for each in range(5000)], (5000, 5000)),
        True,
        3,
    )
    assert many.counts == {comparing.CHANGED: 5000} and len(many.shown) == 3


@given(st.text("abcd", max_size=8), st.text("abcd", max_size=8))
def test_nothing_is_overlooked(old: str, new: str) -> None:
    """Without a difference the old list is how the new one begins; with the same lists there is none."""
    both = comparing.compare(listing(old), listing(new), True, 10)
    if not both.counts:
        assert new.startswith(old) and both.later == len(new) - len(old)
    if old == new and len(set(old)) == len(old):
        assert not both.counts
