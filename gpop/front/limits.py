"""
PURE: how many connections of a front one address may have, and how often the log hears of limits.

Counted is what one front has, in memory that its connections bound; it knows no sockets and no
clock (`now`, monotonic seconds, is an argument). Executed by the front, as the service user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpop.accounts.addresses import Networks, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# What is kept of a connection that counts for no address: none is known yet, or it is trusted.
UNCOUNTED = b""
# Lines about one source and limit are at least so far apart: a flood of peers is no flood of lines.
LINE_EVERY_S = 10.0
# Lines about different sources, in that time: enough to see who it is, and for fail2ban to go on.
MAX_LINES = 100
# Sources of which is known how many lines about them were left out.
MAX_SOURCES = 1024


class Addresses:
    """Open connections by source: at most `most` of each, `trusted` networks aside."""

    def __init__(self, most: int, trusted: Sequence[str]) -> None:
        self.most = most
        self._trusted = Networks(trusted)
        self._open: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, peer: str) -> bytes | None:
        """
        Count a connection for the address `peer`, as soon as that is known.

        Returns what `leave` wants to have when the connection ends; None if the address has
        as many as it may, and this one is not counted.
        """
        if peer in self._trusted:
            return UNCOUNTED
        source = source_of(peer)
        count = self._open.get(source, 0)
        if count >= self.most:
            return None
        self._open[source] = count + 1
        return source

    def is_full(self, peer: str) -> bool:
        """Whether `enter` would say None."""
        return self._open.get(source_of(peer), 0) >= self.most and peer not in self._trusted

    def leave(self, source: bytes) -> None:
        """A connection has ended, of which `enter` said `source`."""
        if source == UNCOUNTED:
            return
        left = self._open[source] - 1
        if left:
            self._open[source] = left
        else:
            del self._open[source]


class LineRate:
    """At most `most` lines in `LINE_EVERY_S`, and how many were left out."""

    __slots__ = ("_began_s", "_left_out", "_lines", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._began_s = 0.0
        self._lines = self._left_out = 0

    def next(self, now: float) -> int | None:
        """Return how many were left out before the line to be written now; None if there is to be none."""
        if now - self._began_s >= LINE_EVERY_S:
            self._began_s, self._lines = now, 0
        if self._lines >= self._most:
            self._left_out += 1
            return None
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


class LogGate:
    """Says which of many like events of many sources get a line in the log, and how many the line is for."""

    def __init__(self) -> None:
        # (reason, source) -> [when its last line was, events since]; in order of these lines.
        self._last: dict[tuple[str, bytes], list[float]] = {}
        self._rate = LineRate(MAX_LINES)

    def __len__(self) -> int:
        return len(self._last)

    def passes(self, reason: str, source: bytes, now: float) -> int:
        """
        Return for how many events a line is to be written now, this one included; 0 for none.

        The first of a source is written at once, later ones at most every `LINE_EVERY_S`, and in
        that time no more than `MAX_LINES` in all.
        """
        last = self._last.get((reason, source))
        if last is not None and now - last[0] < LINE_EVERY_S:
            last[1] += 1
            return 0
        if self._rate.next(now) is None:
            if last is not None:
                last[1] += 1
            return 0
        self._last.pop((reason, source), None)
        self._last[reason, source] = [now, 0]
        if len(self._last) > MAX_SOURCES:
            del self._last[next(iter(self._last))]
        return int(last[1]) + 1 if last else 1
