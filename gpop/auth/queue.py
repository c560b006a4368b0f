"""
PURE: who is checked next when more logins wait than may be checked at once.

Round robin between sources, and no source ever has all the places: a quarter of them, at
least one, stays for the others. Bounded in total and per source; when it is full, who comes
from a source with few in line takes the place of the last in the longest line, so that a
few busy sources can't keep the others out. Where thousands of sources each guess once, that is no help: so
there are two such queues, one for who has logged in before. Knows nothing of what waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")
# One of so many turns is theirs, however many known ones wait.
TURNS_OF_STRANGERS = 4


class FairQueue(Generic[Item]):
    """
    Items that wait for one of `places`, by source.

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
        self._waiting: OrderedDict[bytes, deque[Item]] = OrderedDict()

    def put(self, source: bytes, item: Item) -> Item | None:
        """Let `item` wait behind its source's others; return who has to go for it, maybe itself."""
        line = self._waiting.get(source, deque())
        if len(line) >= self.max_waiting_per_source:
            return item
        displaced = None
        if self.waiting >= self.max_waiting:
            longest = max(self._waiting, key=lambda other: len(self._waiting[other]))
            if len(self._waiting[longest]) <= len(line) + 1:
                return item
            displaced = self._waiting[longest].pop()
            self.waiting -= 1
        line.append(item)
        self._waiting.setdefault(source, line)
        self.waiting += 1
        return displaced

    def take(self) -> Item | None:
        """Return the next item and give it a place, None if there is none or no place for it."""
        if self.occupied >= self.places:
            return None
        for source in self._waiting:
            if self._occupied_by.get(source, 0) < self.places_per_source:
                break
        else:
            return None
        line = self._waiting[source]
        item = line.popleft()
        self.waiting -= 1
        if line:
            self._waiting.move_to_end(source)
        else:
            del self._waiting[source]
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

    def remove(self, source: bytes, item: Item) -> bool:
        """Take `item` out of the line, if it is there."""
        line = self._waiting.get(source)
        if line is None or item not in line:
            return False
        line.remove(item)
        self.waiting -= 1
        if not line:
            del self._waiting[source]
        return True


class Lanes(Generic[Item]):
    """
    Two queues for the same `places`: who has logged in before goes first, and strangers are not forgotten.

    Strangers, from however many sources, never have all the places, and every fourth turn is theirs.
    """

    def __init__(self, places: int, max_waiting: int, max_waiting_per_source: int) -> None:
        self.places = places
        self._known: FairQueue[Item] = FairQueue(places, max_waiting, max_waiting_per_source)
        others = max(1, places - max(1, places // 4))
        self._strangers: FairQueue[Item] = FairQueue(others, max_waiting, max_waiting_per_source)
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
