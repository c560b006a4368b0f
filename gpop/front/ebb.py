"""
PROCESS (part of the front): after a flood of connections its memory goes back to the system.

malloc keeps what is free between pieces that are in use: after 2,000 handshakes that nobody finished that was
100 MiB, for good. Knows how many connections there are, and nothing of them. Executed as the service user.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

# Fewer have not needed enough to be worth the call, which takes some ms after many more.
MANY = 128
# Connections go by the thousand when they go: not in the midst of it.
AFTER_S = 1.0


class Ebb:
    """
    Watches the number of connections; each time that it has fallen to less than half, memory is given back.

    After a flood that goes on down to the last one: what the few that are left hold lies anywhere in
    the memory of those that have gone, and keeps a page each.
    """

    __slots__ = ("_clear_caches", "_connections", "_most", "_timer", "_trim")

    def __init__(self, hub: Any) -> None:
        # Looked up while there still is a file system; musl has none, and gives memory back by itself.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        # Python 3.13 calls it otherwise.
        self._clear_caches = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
        self._timer = hub.loop.timer(AFTER_S)
        self._connections = 0
        self._most = 0  # many, or what has been left of so many

    def note(self, connections: int) -> None:
        """So many there are now."""
        self._connections = connections
        if connections > self._most:
            if connections >= MANY:
                self._most = connections
        elif connections * 2 < self._most and not self._timer.active:
            self._timer.start(self._give_back)

    def _give_back(self) -> None:
        self._timer.stop()
        self._most = self._connections
        if self._connections < MANY:
            # Not before: it looks at every object there is, and everybody waits for that.
            gc.collect()
        # For each wait gevent looks up "stop" in a new string, and Python's cache of attributes keeps 4,096
        # names: small objects again, each in a page that would be free.
        self._clear_caches()
        if self._trim is not None:
            self._trim(0)
