"""
EDGE: what follows when a process has no descriptor free for what it is handed.

Who handed it over has done nothing wrong, and nobody is ended for it. The line in the log names the
limit and what sets it; a shortage lasts as long as its cause, so there is a line now and then for each
kind of loss, with their number. What the broker has sent it is asked to send again.

Executed by every process that is handed descriptors.
"""

from __future__ import annotations

import resource
import time

from gpop.events import Log
from gpop.privsep import messages

LINE_EVERY_S = 10.0
# Of a front's descriptors, for logins under way (each has up to four for a moment) and for its own.
MOST_SPARED = 64
# What is lost with a frame of the broker's.
SENT_BY_BROKER = {
    messages.ATTACH: "the way between a front and auth",
    messages.LOG: "the log",
    messages.WRITER: "the log pipe of a process",
    messages.TALLY: "a tally",
}


def left_for_connections(limit: int) -> int:
    """Of so many descriptors, those that a front lets connections have."""
    return limit - min(MOST_SPARED, limit // 4)


class Shortage:
    """Counts what was lost for want of a descriptor, and says so in `log`."""

    __slots__ = ("_limit", "_log", "_said", "_times")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._limit = _limit()  # who is confined can't ask any more
        self._said: dict[str, float] = {}  # monotonic seconds, by what was lost
        self._times: dict[str, int] = {}  # since then

    def lost(self, sender: str, what: str) -> None:
        """`what` the process `sender` has handed over is lost."""
        now, times = time.monotonic(), self._times.get(what, 0) + 1
        if what in self._said and now - self._said[what] < LINE_EVERY_S:
            self._times[what] = times
            return
        self._said[what], self._times[what] = now, 0
        self._log.write(
            "descriptors_exhausted",
            "error",
            sender=sender,
            limit=_limit() or self._limit,
            times=times,
            problem=f"no descriptor was free for {what}: LimitNOFILE (ulimit -n) is too low",
        )

    def lost_from_broker(self, octets: bytes) -> bytes:
        """The same of a frame of the broker's, in `octets`; returns the frame that asks for it again."""
        frame = messages.decode(octets)
        self.lost("broker", SENT_BY_BROKER.get(frame.kind, "what it has sent"))
        pid = frame.fields.get("front", frame.fields.get("pid", 0))
        return messages.encode(messages.LOST, frame_kind=frame.kind, pid=pid)


def _limit() -> int:
    """How many descriptors this process may have; 0 if that can't be asked."""
    try:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        return 0
