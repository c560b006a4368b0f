"""
PURE: where what two servers list of one maildrop differs.

Unique-ids say which message is which, so a message that is missing in the middle is one difference and
not one for each that follows. Messages at the end of one side only are mail that came between the two
questions, and told apart. Knows no server. Executed by `gpop uidl verify`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server lists: octets and unique-id of each message, in order, and what STAT says."""

    octets: list[int]
    unique_ids: list[bytes]
    drop_listing: tuple[int, int]


# The kinds of differences, by what they mean to a client.
CHANGED = "another unique-id"  # it fetches the message again
ADDED = "not on the old server"  # it fetches that too
MISSING = "not on the new server"
MOVED = "another place in the order"
RESIZED = "other octets"
REPEATED = "a unique-id given twice"
TOTALS = "another drop listing (STAT)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: message-number and value on each side, 0 and empty where a side has none."""

    kind: str
    old_number: int
    new_number: int
    old: bytes
    new: bytes


@dataclass(slots=True)
class Comparison:
    """
    The first differences of each kind, and how many there are of it.

    Attributes:
        messages: how many are on both sides.
        later: how many more there are at the end of the new server's list.
    """

    most_shown: int
    messages: int = 0
    later: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[Difference] = field(default_factory=list)

    def add(self, kind: str, old_number: int, new_number: int, old: bytes = b"", new: bytes = b"") -> None:
        """Count a difference, and keep it if it is one of the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= self.most_shown:
            self.shown.append(Difference(kind, old_number, new_number, old, new))


def compare(old: Listing, new: Listing, with_octets: bool, most_shown: int) -> Comparison:
    """Return where `new` differs from `old`, with at most `most_shown` differences of each kind in full."""
    found = Comparison(most_shown)
    in_old, in_new = _numbers(old, found, True), _numbers(new, found, False)
    old_end, new_end = _end_alone(old.unique_ids, in_new), _end_alone(new.unique_ids, in_old)
    # At the ends messages stand beside each other that only their own side has: one message with two ids.
    # A few that only the new server has after that came later; the old server has no excuse for more.
    changed = min(len(old.unique_ids) - old_end, len(new.unique_ids) - new_end)
    found.later = len(new.unique_ids) - new_end - changed
    for one, other in zip(range(old_end, old_end + changed), range(new_end, new_end + changed), strict=True):
        found.add(CHANGED, one + 1, other + 1, old.unique_ids[one], new.unique_ids[other])
    _compare_ids(old.unique_ids[:old_end], new.unique_ids[:new_end], in_old, in_new, found)
    for index in range(old_end + changed, len(old.unique_ids)):
        found.add(MISSING, index + 1, 0, old=old.unique_ids[index])
    common = [shown for shown in in_old if shown in in_new]
    found.messages = len(common)
    _compare_order(common, in_old, in_new, found)
    if with_octets:
        _compare_octets(old, new, common, in_old, in_new, found)
    return found


def _numbers(listing: Listing, found: Comparison, is_old: bool) -> dict[bytes, int]:
    """Return the message-number of each unique-id; the first, where one is given twice."""
    numbers: dict[bytes, int] = {}
    for number, shown in enumerate(listing.unique_ids, 1):
        if numbers.setdefault(shown, number) != number:
            found.add(REPEATED, *((number, 0, shown, b"") if is_old else (0, number, b"", shown)))
    return numbers


def _end_alone(unique_ids: list[bytes], on_other_side: dict[bytes, int]) -> int:
    """Return from which index on no message is on the other side."""
    end = len(unique_ids)
    while end and unique_ids[end - 1] not in on_other_side:
        end -= 1
    return end


def _compare_ids(
    old: list[bytes], new: list[bytes], in_old: dict[bytes, int], in_new: dict[bytes, int], found: Comparison
) -> None:
    """Find messages that one side has alone; two at the same place are one with two ids."""
    alone_in_old = {index: shown for index, shown in enumerate(old) if shown not in in_new}
    alone_in_new = {index: shown for index, shown in enumerate(new) if shown not in in_old}
    for index in sorted({*alone_in_old, *alone_in_new}):
        one, other = alone_in_old.get(index), alone_in_new.get(index)
        if one is not None and other is not None:
            found.add(CHANGED, index + 1, index + 1, one, other)
        elif one is not None:
            found.add(MISSING, index + 1, 0, old=one)
        elif other is not None:
            found.add(ADDED, 0, index + 1, new=other)


def _compare_order(
    common: list[bytes], in_old: dict[bytes, int], in_new: dict[bytes, int], found: Comparison
) -> None:
    for expected, shown in zip(common, sorted(common, key=in_new.__getitem__), strict=True):
        if expected != shown:
            found.add(MOVED, in_old[expected], in_new[expected], expected, expected)


def _compare_octets(
    old: Listing,
    new: Listing,
    common: list[bytes],
    in_old: dict[bytes, int],
    in_new: dict[bytes, int],
    found: Comparison,
) -> None:
    for shown in common:
        before, after = old.octets[in_old[shown] - 1], new.octets[in_new[shown] - 1]
        if before != after:
            found.add(RESIZED, in_old[shown], in_new[shown], b"%d" % before, b"%d" % after)
    if len(common) == len(old.octets) == len(new.octets) and old.drop_listing != new.drop_listing:
        found.add(TOTALS, 0, 0, b"%d %d" % old.drop_listing, b"%d %d" % new.drop_listing)
