"""
PROCESS (part of the front): whose login goes to auth next, where auth takes them more slowly than they come.

One at a time, by the same order in which auth has them checked (`accounts.queue`): sources take turns, within
a source names do, and who has logged in before from there goes before strangers. Of these so many wait
and no more, so that a flood of guesses is answered at once. Knows nothing of what is sent.
"""

from __future__ import annotations

from typing import Any

import gevent

from gpop.accounts.queue import Lanes

# Auth takes a login in less than a ms unless it is short of CPU: then these are some seconds' worth.
MAX_STRANGERS = 1024


class TooMany(OSError):
    """So many strangers wait that one more would only make it worse."""


class _Waiting:
    """A greenlet that waits for its turn; `waits` no more when it has it, or has been ended."""

    __slots__ = ("greenlet", "has_turn", "is_known", "source", "waits")

    def __init__(self, source: bytes, is_known: bool) -> None:
        self.greenlet = gevent.getcurrent()
        self.source = source
        self.is_known = is_known
        self.waits = True
        self.has_turn = False

    def go_on(self) -> None:
        if self.waits:
            self.greenlet.switch()

    def go_away(self) -> None:
        if self.waits:
            self.greenlet.throw(TooMany)


class Turns:
    """`take` a turn or `wait` for it, and `give` it back. `most`: so many wait, at most."""

    __slots__ = ("_hub", "_lanes", "_taken")

    def __init__(self, hub: Any, most: int) -> None:
        self._hub = hub
        self._taken = False
        self._lanes: Lanes[_Waiting] = Lanes(1, most, MAX_STRANGERS, most)

    def take(self) -> bool:
        """Take the turn if it is free, as it nearly always is; False if it is not."""
        was_taken, self._taken = self._taken, True
        return not was_taken

    def wait(self, source: bytes, name: bytes, is_known: bool) -> None:
        """
        Wait until it is this greenlet's turn.

        Raises:
            TooMany: too many strangers wait, and this one is of a source that has most in line.
        """
        lane = self._lanes.lane(is_known)
        this = _Waiting(source, is_known)
        displaced = lane.put(source, name, this)
        if displaced is this:
            raise TooMany
        if displaced:
            # Not from here: a greenlet that another one throws into would not come back to that one.
            self._hub.loop.run_callback(displaced.go_away)
        try:
            self._hub.switch()
        except BaseException:
            if this.has_turn:
                self.give()
            else:
                lane.remove(source, name, this)
            raise
        finally:
            this.waits = False

    def give(self) -> None:
        """The next one's turn."""
        following = self._lanes.take()
        if following is None:
            self._taken = False
            return
        # The lanes are for the order alone: that there is one turn is known here.
        self._lanes.lane(following.is_known).give_back(following.source)
        following.has_turn = True
        # Handed over as it is, taken: nobody who comes meanwhile gets in between.
        self._hub.loop.run_callback(following.go_on)
