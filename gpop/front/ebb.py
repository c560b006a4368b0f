"""
PROCESS (part of the front): after a flood of connections its memory goes back to the system.

malloc keeps what is free between pieces that are in use: after 2,000 handshakes that nobody finished that was
100 MiB, for good. Knows how many connections there are, and nothing of them. Executed as the service user.
"""

from __future__ import annotations

import ctypes
from typing import Any

# Fewer have not needed enough to be worth the call, which takes some ms after many more.
MANY = 128
# Connections go by the thousand when they go: not in the midst of it.
AFTER_S = 1.0


class Ebb:
    """Watches the number of connections; where it has fallen to less than half, memory is given back."""

    __slots__ = ("_connections", "_most", "_timer", "_trim")

    def __init__(self, hub: Any) -> None:
        # Looked up while there still is a file system; musl has none, and gives memory back by itself.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._timer = hub.loop.timer(AFTER_S)
        self._connections = self._most = 0

    def note(self, connections: int) -> None:
        """So many there are now."""
        self._connections = connections
        if connections > self._most:
            self._most = connections
        elif self._most >= MANY and connections * 2 < self._most and not self._timer.active:
            self._timer.start(self._give_back)

    def _give_back(self) -> None:
        self._timer.stop()
        self._most = self._connections
        if self._trim is not None:
            self._trim(0)
