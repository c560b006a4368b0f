"""
The tables of a report: which rows, which columns, what kind of value stands in each. PURE.

Terminal, page and CSV show these and no others. What came from a log is hostile: `shown` and `cell` let nothing
through that a terminal or a spreadsheet would act upon (the page escapes what HTML would).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpop.events import printable

Row = dict[str, Any]

TEXT, COUNT, SHARE, MS, OCTETS, MOMENT, SECONDS = "text", "count", "share", "ms", "octets", "moment", "seconds"
# A field of the log has 512 characters at most; a table needs fewer to say who is meant.
MAX_SHOWN = 60
# A spreadsheet takes a cell that begins like this for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%")


@dataclass(frozen=True)
class Column:
    """A column: its key in the rows, its heading, its kind; `narrow` if a terminal of 80 columns has room for it."""

    key: str
    heading: str
    kind: str
    narrow: bool = True


@dataclass(frozen=True)
class Table:
    """A table: what `--csv` calls it, its title, its columns, where its rows are, and a line that explains it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    note: str = ""
    rows: Callable[[dict[str, Any]], list[Row]] = field(default=lambda report: [])

    def of(self, report: dict[str, Any]) -> list[Row]:
        """Its rows in a report."""
        return self.rows(report)


def _at(name: str) -> Callable[[dict[str, Any]], list[Row]]:
    return lambda report: report[name]


def _side_by_side(key: str, heading: str, kind: str = TEXT) -> tuple[Column, ...]:
    """Sessions, shares and times of the three outcomes."""
    shares = [Column(f"{each}_share", f"{each} %", SHARE) for each in ("hit", "refresh", "rebuild")]
    times = [
        Column(f"{each}_{name}", f"{each} {name.removesuffix('_ms')} ms", MS, name == "p50_ms" or (each, name) == ("rebuild", "p99_ms"))
        for each in ("hit", "refresh", "rebuild")
        for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    ]
    return (Column(key, heading, kind), Column("sessions", "sessions", COUNT), *shares, *times)


def _with_shares(name: str) -> Callable[[dict[str, Any]], list[Row]]:
    def rows(report: dict[str, Any]) -> list[Row]:
        outcomes = ("hit", "refresh", "rebuild")
        return [
            row | {f"{each}_share": row[each] / row["sessions"] if row["sessions"] else None for each in outcomes}
            for row in report[name]
        ]

    return rows


_TIMES = tuple(Column(f"{name}_ms", f"{name} ms", MS) for name in ("p50", "p90", "p99", "max"))
_USER = (
    Column("account", "account", TEXT),
    Column("sessions", "sessions", COUNT),
    Column("interval_s", "every", SECONDS),
    Column("hit", "hits", COUNT),
    Column("refresh", "refreshes", COUNT),
    Column("rebuild", "rebuilds", COUNT),
    Column("reason", "if not, mostly", TEXT),
    Column("messages", "messages", COUNT, False),
    Column("octets", "octets", OCTETS, False),
    Column("cache_ms", "opening ms", MS, False),
    Column("addresses", "addresses", COUNT, False),
)


def _shares_of(name: str, title: str, key: str, heading: str, note: str = "") -> Table:
    shown = (
        Column(key, heading, TEXT),
        Column("sessions", "sessions", COUNT),
        Column("share", "share", SHARE),
        Column("accounts", "accounts", COUNT),
        Column("octets_sent", "sent", OCTETS),
        Column("mean_ms", "mean ms", MS),
    )
    return Table(name, title, shown, note, _at(name))


TABLES = (
    Table(
        "outcomes",
        "What the cache did",
        (Column("outcome", "cache", TEXT), Column("sessions", "sessions", COUNT), Column("share", "share", SHARE),
         *_TIMES, Column("total_ms", "in all ms", MS)),
        "The time is that to open the maildrop: from the lock until STAT can be answered.",
        _at("outcomes"),
    ),
    Table(
        "reasons",
        "Why it was no hit, or how it was one",
        (Column("outcome", "cache", TEXT), Column("reason", "reason", TEXT), Column("sessions", "sessions", COUNT),
         Column("share", "share", SHARE), *_TIMES, Column("total_ms", "in all ms", MS, False)),
        "",
        _at("reasons"),
    ),
    Table(
        "saved",
        "What the cache saved, by messages in the maildrop",
        (Column("messages", "messages", TEXT), Column("hit", "hits", COUNT), Column("refresh", "refreshes", COUNT),
         Column("rebuild", "rebuilds", COUNT), Column("hit_ms", "hit ms", MS), Column("refresh_ms", "refresh ms", MS),
         Column("rebuild_ms", "rebuild ms", MS), Column("basis", "which is", TEXT, False),
         Column("took_ms", "took ms", MS, False),
         Column("saved_wall_ms", "saved ms", MS), Column("saved_cpu_ms", "of it CPU ms", MS, False)),
        "Had each hit and each refresh been a rebuild: an estimate from the rebuilds in this log.",
        lambda report: report["saved"]["by_messages"],
    ),
    Table("over_time", "Over time", _side_by_side("start", "from (UTC)", MOMENT), "", _with_shares("over_time")),
    Table("by_hour", "By hour of the day", _side_by_side("hour", "hour (UTC)"), "", _with_shares("by_hour")),
    Table("by_messages", "By messages in the maildrop", _side_by_side("messages", "messages"), "", _with_shares("by_messages")),
    Table("polling_most", "Who polls most", _USER, "", _at("polling_most")),
    Table("never_hit", "Who polls and never hits", _USER, "Three sessions or more, and none of them a hit.", _at("never_hit")),
    Table(
        "largest",
        "The largest maildrops",
        (Column("account", "account", TEXT), Column("messages", "messages", COUNT), Column("octets", "octets", OCTETS),
         Column("sessions", "sessions", COUNT), Column("hit", "hits", COUNT), Column("refresh", "refreshes", COUNT),
         Column("rebuild", "rebuilds", COUNT), Column("cache_ms", "opening ms", MS)),
        "",
        _at("largest"),
    ),
    Table(
        "slowest",
        "The slowest sessions",
        (Column("at", "ended (UTC)", MOMENT), Column("account", "account", TEXT), Column("duration_ms", "lasted ms", MS),
         Column("outcome", "cache", TEXT), Column("cache_ms", "opening ms", MS), Column("auth_ms", "login ms", MS, False),
         Column("messages", "messages", COUNT, False), Column("retr", "fetched", COUNT), Column("octets_sent", "sent", OCTETS),
         Column("close_reason", "ended by", TEXT, False), Column("peer", "address", TEXT, False)),
        "",
        _at("slowest"),
    ),
    Table(
        "behaviours",
        "What clients did",
        (Column("what", "session", TEXT), Column("sessions", "sessions", COUNT), Column("share", "share", SHARE),
         Column("accounts", "accounts", COUNT), Column("octets_sent", "sent", OCTETS), Column("mean_ms", "mean ms", MS)),
        "",
        _at("behaviours"),
    ),
    _shares_of("tls", "TLS", "tls", "version"),
    _shares_of("auth_sources", "Who decided the login", "auth_source", "source", "cache is the auth cache."),
    _shares_of("mechanisms", "Mechanisms", "mechanism", "mechanism"),
    _shares_of("close_reasons", "How sessions ended", "close_reason", "ended by"),
    Table(
        "refused_by_address",
        "Refused logins by address",
        (Column("address", "address", TEXT), Column("refused", "refused", COUNT), Column("guesses", "wrong", COUNT),
         Column("names", "names", COUNT), Column("reason", "mostly", TEXT), Column("first", "first (UTC)", MOMENT, False),
         Column("last", "last (UTC)", MOMENT)),
        "Wrong: refused with [AUTH]. Names: how many different ones were tried.",
        _at("refused_by_address"),
    ),
    Table(
        "refused_by_reason",
        "Refused logins by reason",
        (Column("code", "code", TEXT), Column("reason", "reason", TEXT), Column("refused", "refused", COUNT),
         Column("addresses", "addresses", COUNT)),
        "",
        _at("refused_by_reason"),
    ),
    Table(
        "faults",
        "Faults and warnings",
        (Column("level", "level", TEXT), Column("event", "event", TEXT), Column("what", "what", TEXT),
         Column("times", "times", COUNT), Column("first", "first (UTC)", MOMENT, False), Column("last", "last (UTC)", MOMENT),
         Column("example", "last about", TEXT, False)),
        "",
        _at("faults"),
    ),
    Table(
        "events",
        "All events",
        (Column("event", "event", TEXT), Column("level", "level", TEXT), Column("lines", "lines", COUNT)),
        "",
        _at("events"),
    ),
)  # fmt: skip
BY_NAME = {table.name: table for table in TABLES}
NUMBERS = (COUNT, SHARE, MS, OCTETS, SECONDS)


def clean(text: str, most: int = MAX_SHOWN) -> str:
    """Text from a log with all escaped that a terminal would not just show, and cut."""
    shown = printable(text.encode("utf-8", "backslashreplace"), 4 * most)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def shown(value: Any, kind: str) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if kind == SHARE:
        return percent(value)
    if kind == MS:
        return milliseconds(value)
    if kind == OCTETS:
        return octets(value)
    if kind == SECONDS:
        return seconds(value)
    if kind == MOMENT:
        return clean(str(value)).replace("T", " ").removesuffix("Z").partition(".")[0]
    return f"{value:,}" if kind == COUNT else clean(str(value)) or "(none)"


def percent(share: float) -> str:
    """A share; one that is not nothing never looks like nothing."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def milliseconds(value: float) -> str:
    """A time in ms with three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def octets(value: float) -> str:
    """A size with its unit."""
    for unit in ("octets", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f}" if unit == "octets" else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError(value)


def seconds(value: float) -> str:
    """A length of time with its unit: "0.25 s", "42 s", "5 min", "3.2 h", "9 d"."""
    if value < 10:
        return f"{value:.2g} s"
    for unit, of_it in (("s", 120), ("min", 120), ("h", 48)):
        if value < of_it:
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
        value /= 24 if unit == "h" else 60
    return f"{value:,.0f} d"


def cell(value: Any) -> Any:
    """A value for a spreadsheet: numbers as they are, text that is no formula to anybody."""
    if not isinstance(value, str):
        return value
    text = printable(value.encode("utf-8", "backslashreplace"), 4 * len(value))
    return f"'{text}" if text.startswith(FORMULA) else text
