"""
PROCESS (part of the front): whose login goes to auth next, where auth takes them more slowly than they come.

One at a time. Who has logged in from there before goes first; of strangers so many wait and no more,
so that a flood of guesses is answered at once and keeps nobody waiting. Knows nothing of what is sent.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gevent

# Auth takes a login in less than a ms unless it is short of CPU: then these are some seconds' worth.
MAX_STRANGERS = 1024


class TooMany(OSError):
    """So many strangers wait that one more would only make it worse."""


class Turns:
    """`take` a turn, waiting for it, and `give` it back."""

    __slots__ = ("_hub", "_known", "_strangers", "_taken")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._taken = False
        self._known: deque[gevent.Greenlet] = deque()
        self._strangers: deque[gevent.Greenlet] = deque()

    def is_taken(self) -> bool:
        return self._taken

    def take(self, is_known: bool) -> None:
        """Wait until it is this greenlet's turn. Raises TooMany."""
        if not self._taken:
            self._taken = True
            return
        if not is_known and len(self._strangers) >= MAX_STRANGERS:
            raise TooMany
        line = self._known if is_known else self._strangers
        this = gevent.getcurrent()
        line.append(this)
        try:
            self._hub.switch()
        except BaseException:
            if this in line:
                line.remove(this)
            else:
                self.give()  # it was its turn already
            raise

    def give(self) -> None:
        """The next one's turn."""
        line = self._known or self._strangers
        if line:
            # Handed over as it is, taken: nobody who comes meanwhile gets in between.
            self._hub.loop.run_callback(line.popleft().switch)
        else:
            self._taken = False
