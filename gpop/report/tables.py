"""
The tables of a report: which rows, which columns, what kind of value stands in each.

Terminal, page and CSV show these and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpop.report.words import COUNT, MOMENT, MS, OCTETS, SECONDS, SHARE, TEXT, TOTAL

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its key in the rows, its heading, its kind; `narrow` if a narrow terminal has room for it."""

    key: str
    heading: str
    kind: str
    narrow: bool = True


@dataclass(frozen=True)
class Table:
    """A table: what `--csv` calls it, its title, its columns, a line about it, and where its rows are."""

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


# Of the times that stand side by side a terminal of 80 columns has room for these.
NARROW_TIMES = (("hit", "p50_ms"), ("refresh", "p50_ms"), ("rebuild", "p99_ms"))


def _side_by_side(key: str, heading: str, kind: str = TEXT) -> tuple[Column, ...]:
    """Sessions, shares and times of the three outcomes."""
    shares = [Column(f"{each}_share", f"{each}\n%", SHARE) for each in ("hit", "refresh", "rebuild")]
    times = [
        Column(f"{each}_{name}", f"{each}\n{name.removesuffix('_ms')} ms", MS, (each, name) in NARROW_TIMES)
        for each in ("hit", "refresh", "rebuild")
        for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    ]
    return (Column(key, heading, kind), Column("sessions", "sessions", COUNT), *shares, *times)


def _with_shares(name: str) -> Callable[[dict[str, Any]], list[Row]]:
    def rows(report: dict[str, Any]) -> list[Row]:
        outcomes = ("hit", "refresh", "rebuild")
        return [
            row
            | {f"{each}_share": row[each] / row["sessions"] if row["sessions"] else None for each in outcomes}
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
    Column("cache_ms", "opening", TOTAL, False),
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
        (
            Column("outcome", "cache", TEXT),
            Column("sessions", "sessions", COUNT),
            Column("share", "share", SHARE),
            *_TIMES,
            Column("total_ms", "in all", TOTAL),
        ),
        "The time is that to open the maildrop: from the lock until STAT can be answered.",
        _at("outcomes"),
    ),
    Table(
        "reasons",
        "Why it was no hit, or how it was one",
        (
            Column("outcome", "cache", TEXT),
            Column("reason", "reason", TEXT),
            Column("sessions", "sessions", COUNT),
            Column("share", "share", SHARE),
            *_TIMES,
            Column("total_ms", "in all", TOTAL, False),
        ),
        "",
        _at("reasons"),
    ),
    Table(
        "saved",
        "What the cache saved, by messages in the maildrop",
        (
            Column("messages", "messages", TEXT),
            Column("hit", "hits", COUNT),
            Column("refresh", "refreshes", COUNT),
            Column("rebuild", "rebuilds", COUNT),
            Column("hit_ms", "hit ms", MS, False),
            Column("refresh_ms", "refresh ms", MS, False),
            Column("rebuild_ms", "rebuild ms", MS),
            Column("basis", "which is", TEXT, False),
            Column("took_ms", "took", TOTAL, False),
            Column("saved_wall_ms", "saved", TOTAL),
            Column("saved_cpu_ms", "CPU saved", TOTAL, False),
        ),
        "Had each hit and each refresh been a rebuild: an estimate from the rebuilds in this log.",
        lambda report: report["saved"]["by_messages"],
    ),
    Table(
        "over_time", "Over time", _side_by_side("start", "from (UTC)", MOMENT), "", _with_shares("over_time")
    ),
    Table("by_hour", "By hour of the day", _side_by_side("hour", "hour (UTC)"), "", _with_shares("by_hour")),
    Table(
        "by_messages",
        "By messages in the maildrop",
        _side_by_side("messages", "messages"),
        "",
        _with_shares("by_messages"),
    ),
    Table("polling_most", "Who polls most", _USER, "", _at("polling_most")),
    Table(
        "never_hit",
        "Who polls and never hits",
        _USER,
        "Three sessions or more, and none of them a hit.",
        _at("never_hit"),
    ),
    Table(
        "largest",
        "The largest maildrops",
        (
            Column("account", "account", TEXT),
            Column("messages", "messages", COUNT),
            Column("octets", "octets", OCTETS),
            Column("sessions", "sessions", COUNT),
            Column("hit", "hits", COUNT),
            Column("refresh", "refreshes", COUNT),
            Column("rebuild", "rebuilds", COUNT),
            Column("cache_ms", "opening", TOTAL),
        ),
        "",
        _at("largest"),
    ),
    Table(
        "slowest",
        "The slowest sessions",
        (
            Column("at", "ended (UTC)", MOMENT),
            Column("account", "account", TEXT),
            Column("duration_ms", "lasted ms", MS),
            Column("outcome", "cache", TEXT),
            Column("cache_ms", "opening ms", MS),
            Column("auth_ms", "login ms", MS, False),
            Column("messages", "messages", COUNT, False),
            Column("retr", "fetched", COUNT, False),
            Column("octets_sent", "sent", OCTETS),
            Column("close_reason", "ended by", TEXT, False),
            Column("peer", "address", TEXT, False),
        ),
        "",
        _at("slowest"),
    ),
    Table(
        "behaviours",
        "What clients did",
        (
            Column("what", "session", TEXT),
            Column("sessions", "sessions", COUNT),
            Column("share", "share", SHARE),
            Column("accounts", "accounts", COUNT),
            Column("octets_sent", "sent", OCTETS),
            Column("mean_ms", "mean ms", MS),
        ),
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
        (
            Column("address", "address", TEXT),
            Column("refused", "refused", COUNT),
            Column("guesses", "wrong", COUNT),
            Column("names", "names", COUNT),
            Column("reason", "mostly", TEXT),
            Column("first", "first (UTC)", MOMENT, False),
            Column("last", "last (UTC)", MOMENT),
        ),
        "Wrong: refused with [AUTH]. Names: how many different ones were tried.",
        _at("refused_by_address"),
    ),
    Table(
        "refused_by_reason",
        "Refused logins by reason",
        (
            Column("code", "code", TEXT),
            Column("reason", "reason", TEXT),
            Column("refused", "refused", COUNT),
            Column("addresses", "addresses", COUNT),
        ),
        "",
        _at("refused_by_reason"),
    ),
    Table(
        "faults",
        "Faults and warnings",
        (
            Column("level", "level", TEXT),
            Column("event", "event", TEXT),
            Column("what", "what", TEXT),
            Column("times", "times", COUNT),
            Column("first", "first (UTC)", MOMENT, False),
            Column("last", "last (UTC)", MOMENT),
            Column("example", "last about", TEXT, False),
        ),
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
)
BY_NAME = {table.name: table for table in TABLES}
