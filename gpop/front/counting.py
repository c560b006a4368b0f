"""
PROCESS (part of the front): what a front counts of connections, logins and sessions, for the metrics.

What sessions say is believed no further than for the log: a name that is not known counts as "other".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpop.tally import ASKED_SOURCES, CACHE_OUTCOMES, MOST, OTHER, Tally

if TYPE_CHECKING:
    Totals = dict[str, Any]


class Counting:
    """A front's tally, in the words of a front."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._numbers = tally.numbers
        self._open_at, self._connections_at = tally.at["open_connections",], tally.at["connections",]
        self._session_at = tally.first_of("session")
        self._statcache_at = {outcome: tally.first_of("statcache", outcome) for outcome in CACHE_OUTCOMES}
        self._decision_at = {source: tally.first_of("decision", source) for source in ASKED_SOURCES}
        # What a session counts, and where it goes.
        self._totals_at = {
            "retr": tally.at["retrieved", "RETR"],
            "retr_octets": tally.at["retrieved_octets", "RETR"],
            "top": tally.at["retrieved", "TOP"],
            "top_octets": tally.at["retrieved_octets", "TOP"],
            "marked": tally.at["marked", "dele"],
            "expired": tally.at["marked", "retention"],
            "removed": tally.at["removed", "removed"],
            "not_removed": tally.at["removed", "not_removed"],
            "octets_sent": tally.at["sent_octets",],
        }

    def connected(self, now_open: int) -> None:
        """A connection was accepted."""
        self._numbers[self._connections_at] += 1
        self._numbers[self._open_at] = now_open

    def disconnected(self, now_open: int) -> None:
        """A connection has ended."""
        self._numbers[self._open_at] = now_open

    def listens(self, sockets: int) -> None:
        """It accepts on so many sockets now."""
        self.tally.set(("listening",), sockets)

    def login(self, result: str, source: str, auth_us: int) -> None:
        """A login is served, or was refused with a code; `auth_us` is 0 if auth was not asked."""
        tally = self.tally
        at = tally.at.get(("logins", result, source or "none"))
        if at is None:
            known = result if ("logins", result, OTHER) in tally.at else OTHER
            at = tally.at.get(("logins", known, source or "none")) or tally.at["logins", known, OTHER]
        self._numbers[at] = (self._numbers[at] + 1) & MOST
        if auth_us > 0 and source not in ("front", "broker", ""):
            tally.observe(self._decision_at.get(source) or self._decision_at[OTHER], auth_us)

    def session(self, totals: Totals, counts: dict[str, int], cache_us: int, duration_us: int) -> None:
        """A session has ended."""
        tally, numbers = self.tally, self._numbers
        at = tally.at.get(("sessions", totals["close_reason"])) or tally.at["sessions", OTHER]
        numbers[at] = (numbers[at] + 1) & MOST
        for name, at in self._totals_at.items():
            count = counts[name]
            if count:
                numbers[at] = (numbers[at] + count) & MOST
        outcome = totals.get("cache")
        if outcome:
            tally.observe(self._statcache_at.get(outcome) or self._statcache_at[OTHER], cache_us)
        tally.observe(self._session_at, duration_us)
