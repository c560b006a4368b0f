"""
The columns that lines of the log become, and the classes that sessions are put in.

The names of events, counts and outcomes are gpop's own, imported; docs/log.md says what the fields mean.
"""

from __future__ import annotations

from itertools import pairwise

from gpop.events import EVENTS
from gpop.maildrop.opening import HIT, OFF, REBUILD, REFRESH
from gpop.privsep.messages import COUNTS


def event(name: str) -> str:
    """The name of an event of gpop's; the report can't ask for one that is never written."""
    if name not in EVENTS:
        raise ValueError(name)
    return name


SESSION = event("session_closed")
REFUSED = event("login_refused")
LINES_DROPPED = event("log_lines_dropped")
UNREPORTED = event("session_unreported")

OUTCOMES = (HIT, REFRESH, REBUILD, OFF)
# A session whose maildrop was not opened has no outcome.
UNOPENED = "unopened"

_TEXT, _TEXTS, _NUMBER, _MS = "VARCHAR", "VARCHAR[]", "BIGINT", "DOUBLE"
# Every column but the time. What else a line says is not kept.
FIELDS = {
    **dict.fromkeys(("level", "event", "process", "peer", "local", "proxy", "user", "account"), _TEXT),
    **dict.fromkeys(("tls", "cipher", "mechanism", "auth_source", "cache", "cache_reason"), _TEXT),
    **dict.fromkeys(("close_reason", "fault", "code", "reason", "source", "problem", "detail"), _TEXT),
    **dict.fromkeys(("ended", "signal", "exit_status"), _TEXT),
    **dict.fromkeys(("problems",), _TEXTS),
    **dict.fromkeys(("peer_port", "local_port", "login_id", "times", "lines"), _NUMBER),
    **dict.fromkeys((name for name in COUNTS if name != "cache_us"), _NUMBER),
    **dict.fromkeys(("auth_ms", "cache_ms", "duration_ms"), _MS),
}
TIME = "ts"

# From so many messages on; a class ends where the next one begins. Two a decade for charts and for what a
# rebuild costs, one a decade for tables.
SIZES = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000)
DECADES = (0, 1, 10, 100, 1000, 10_000, 100_000)

# Lengths of time (s) that "over time" may be cut into: the first that gives at most MOST_PERIODS.
PERIODS_S = (1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
MOST_PERIODS = 100

# Times are counted in steps of a hundredth of e, so a quantile is at most 1 % above the true one.
STEPS_PER_E = 100
QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}

# What a session did, first match first. `what` is said to people.
BEHAVIOURS = (
    ("cut_off", "left without QUIT", "close_reason IN ('disconnect', 'autologout', 'takeover', 'shutdown')"),
    ("failed", "not served, or a fault", "close_reason <> 'quit'"),
    ("drains", "fetched, and removed what it fetched", "retr > 0 AND marked >= retr"),
    ("fetches_and_removes", "fetched, and removed some", "retr > 0 AND marked > 0"),
    ("keeps", "fetched, and left all on the server", "retr > 0"),
    ("removes", "removed without fetching", "marked > 0"),
    ("looks", "looked into messages with TOP", "top > 0"),
    ("polls", "polled: fetched and removed nothing", "true"),
)


def size_class(edges: tuple[int, ...]) -> str:
    """SQL for the number of the class that `messages` is in."""
    cases = " ".join(
        f"WHEN messages >= {edge} THEN {number}" for number, edge in reversed(list(enumerate(edges)))
    )
    return f"CASE {cases} END"


def size_names(edges: tuple[int, ...]) -> list[str]:
    """What people call the classes: "0", "1-9", "100,000 and more"."""
    names = [f"{low:,}-{high - 1:,}" if high - low > 1 else f"{low:,}" for low, high in pairwise(edges)]
    return [*names, f"{edges[-1]:,} and more"]


def behaviour() -> str:
    """SQL for what a session did."""
    cases = " ".join(f"WHEN {condition} THEN '{name}'" for name, _, condition in BEHAVIOURS)
    return f"CASE {cases} END"


def step(column: str) -> str:
    """SQL for the step that a time in ms is counted in; zero has one of its own."""
    return (
        f"CASE WHEN {column} > 0 THEN CAST(ceil(ln({column}) * {STEPS_PER_E}) AS INTEGER) ELSE -1000000 END"
    )
