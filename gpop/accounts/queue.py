"""
PURE: who goes next when more logins wait than may be at work: for a check in auth, for auth in a front.

Round robin between sources, and no source ever has all the places: a quarter of them, at
least one, stays for the others. Within a source, round robin between names: users who share an address do
not wait for one of them. Bounded in total and per source; when it is full, who comes
from a source with few in line takes the place of the last in the longest line, so that a
few busy sources can't keep the others out. Where thousands of sources each guess once, that is no help: so
there are two such queues, one for who has logged in before. Knows nothing of what waits. Executed by auth, as
root, and by fronts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")
# One of so many turns is theirs, however many known ones wait.
TURNS_OF_STRANGERS = 4


class Line(Generic[Item]):
    """What waits of one source; names take turns."""

    __slots__ = ("_by_name", "length")

    def __init__(self) -> None:
        self.length = 0
        self._by_name: OrderedDict[bytes, deque[Item]] = OrderedDict()

    def put(self, name: bytes, item: Item) -> None:
        self._by_name.setdefault(name, deque()).append(item)
        self.length += 1

    def take(self) -> Item:
        """Return the first item of the name whose turn it is."""
        name, items = next(iter(self._by_name.items()))
        item = items.popleft()
        self._by_name.move_to_end(name)
        self._shrink(name)
        return item

    def take_last(self) -> Item:
        """Return the last item of the name that has most."""
        name = max(self._by_name, key=lambda other: len(self._by_name[other]))
        item = self._by_name[name].pop()
        self._shrink(name)
        return item

    def remove(self, name: bytes, item: Item) -> bool:
        """Take `item` out, if it is there."""
        if item not in self._by_name.get(name, ()):
            return False
        self._by_name[name].remove(item)
        self._shrink(name)
        return True

    def _shrink(self, name: bytes) -> None:
        self.length -= 1
        if not self._by_name[name]:
            del self._by_name[name]


class FairQueue(Generic[Item]):
    """
    Items that wait for one of `places`, by source and name.

    An item taken occupies a place of its source until `give_back`.
    """

    def __init__(self, places: int, max_waiting: int, max_waiting_per_source: int) -> None:
        self.places = places
        self.places_per_source = max(1, places - max(1, places // 4))
        self.max_waiting = max_waiting
        self.max_waiting_per_source = max_waiting_per_source
        self.waiting = 0
        self.occupied = 0
        self._occupied_by: dict[bytes, int] = {}
        self._lines: OrderedDict[bytes, Line[Item]] = OrderedDict()

    def put(self, source: bytes, name: bytes, item: Item) -> Item | None:
        """Let `item` wait behind its source's others; return who has to go for it, maybe itself."""
        line = self._lines.get(source) or Line()
        if line.length >= self.max_waiting_per_source:
            return item
        displaced = None
        if self.waiting >= self.max_waiting:
            displaced = self._displaced_by(line)
            if displaced is None:
                return item
        line.put(name, item)
        self._lines.setdefault(source, line)
        self.waiting += 1
        return displaced

    def _displaced_by(self, line: Line[Item]) -> Item | None:
        """Take out whose place an item gets that comes to `line`; None if no line is so much longer."""
        if self.waiting == len(self._lines):
            return None  # one of each: a spray, of which each one looks for the longest
        longest = max(self._lines.values(), key=lambda other: other.length)
        if longest.length <= line.length + 1:
            return None
        self.waiting -= 1
        return longest.take_last()

    def take(self) -> Item | None:
        """Return the next item and give it a place, None if there is none or no place for it."""
        if self.occupied >= self.places:
            return None
        for source in self._lines:
            if self._occupied_by.get(source, 0) < self.places_per_source:
                break
        else:
            return None
        item = self._lines[source].take()
        self._lines.move_to_end(source)
        self._shrink(source)
        self._occupied_by[source] = self._occupied_by.get(source, 0) + 1
        self.occupied += 1
        return item

    def give_back(self, source: bytes) -> None:
        """Free a place that an item of `source` had."""
        left = self._occupied_by[source] - 1
        if left:
            self._occupied_by[source] = left
        else:
            del self._occupied_by[source]
        self.occupied -= 1

    def remove(self, source: bytes, name: bytes, item: Item) -> bool:
        """Take `item` out of the line, if it is there."""
        line = self._lines.get(source)
        if line is None or not line.remove(name, item):
            return False
        self._shrink(source)
        return True

    def _shrink(self, source: bytes) -> None:
        self.waiting -= 1
        if not self._lines[source].length:
            del self._lines[source]


class Lanes(Generic[Item]):
    """
    Two queues for the same `places`: who has logged in before goes first, and strangers are not forgotten.

    Strangers, from however many sources, never have all the places, and every fourth turn is theirs.
    """

    def __init__(self, places: int, max_known: int, max_strangers: int, max_waiting_per_source: int) -> None:
        self.places = places
        self._known: FairQueue[Item] = FairQueue(places, max_known, max_waiting_per_source)
        others = max(1, places - max(1, places // 4))
        self._strangers: FairQueue[Item] = FairQueue(others, max_strangers, max_waiting_per_source)
        self._turns = 0

    def lane(self, is_known: bool) -> FairQueue[Item]:
        """The queue of either; what was taken is given back to it."""
        return self._known if is_known else self._strangers

    def take(self) -> Item | None:
        """Return the next item and give it a place, None if there is none or no place for it."""
        if self._known.occupied + self._strangers.occupied >= self.places:
            return None
        lanes = (self._known, self._strangers)
        for lane in lanes if (self._turns + 1) % TURNS_OF_STRANGERS else reversed(lanes):
            item = lane.take()
            if item is not None:
                self._turns += 1
                return item
        return None
