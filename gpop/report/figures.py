"""
The report: a plain dict, made of the answers to the questions.

It is what `--json` writes. Its keys are a promise (SCHEMA); tables, page and CSV are made from it and
nothing else. Times are milliseconds, sizes octets, moments UTC in ISO 8601.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from gpop import __version__
from gpop.maildrop.opening import HIT, REBUILD, REFRESH
from gpop.report import columns, findings, saved
from gpop.report.columns import BEHAVIOURS, OUTCOMES, QUANTILES, UNOPENED
from gpop.report.questions import TIMED, Questions, Row, plain
from gpop.report.store import Store

# Raised when a key of the report is renamed, dropped, or means something else. New keys may come at any time.
SCHEMA = 1
MOST_DAMAGED = 10


def make(
    store: Store, about: Row, top: int, progress: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Return the report on a store's view `entry`; `about` is what was asked for (since, until, user)."""
    ask = Questions(store, top, progress)
    ask.prepare()
    span = ask.span()
    period_s, periods = _periods(span)
    outcomes = ask.outcomes()
    total = sum(row["sessions"] for row in outcomes)
    report: dict[str, Any] = {
        "report": _about(store, about, ask.lines(), ask.dropped()),
        "cache": dict.fromkeys((*OUTCOMES, UNOPENED), 0)
        | {row["outcome"]: row["sessions"] for row in outcomes},
        "sessions": ask.sessions(),
        "outcomes": _shares(outcomes, total),
        "reasons": _shares(ask.reasons(), total),
        "over_time": [_moment(row) for row in _side_by_side(ask.outcomes(_period(period_s)), periods)],
        "period_s": period_s,
        "by_hour": _named(
            _side_by_side(ask.outcomes("hour(ts)"), range(24)), "hour", [f"{n:02}" for n in range(24)]
        ),
        "by_messages": _by_messages(ask),
        "saved": _saved(ask.spent()),
        "rebuild_times": [_cell(row) for row in ask.rebuild_times()],
        "durations": [_duration(row) for row in ask.durations()],
        "polling_most": ask.users("polls DESC"),
        "never_hit": ask.users("polls DESC", Questions.NEVER_HIT),
        "never_hit_accounts": ask.never_hitting(),
        "rebuilt_again": ask.rebuilt_again(),
        "largest": ask.users("most DESC NULLS LAST"),
        "slowest": ask.slowest(),
        "behaviours": [_said(row) for row in _shares(ask.counts("behaviour", "behaviour"), total)],
        "tls": _shares(ask.counts("coalesce(tls, 'cleartext')", "tls"), total),
        "auth_sources": _shares(ask.counts("coalesce(auth_source, '')", "auth_source"), total),
        "mechanisms": _shares(ask.counts("coalesce(mechanism, '')", "mechanism"), total),
        "close_reasons": _shares(ask.counts("coalesce(close_reason, '')", "close_reason"), total),
        "refused": ask.refused(),
        "refused_by_address": ask.refused_by_address(),
        "refused_by_reason": ask.refused_by_reason(),
        "faults": ask.faults(),
        "events": ask.events(),
    }
    report["findings"] = findings.find(report)
    return report


def _about(store: Store, asked: Row, lines: Row, dropped: int) -> Row:
    damaged, first = store.damaged(MOST_DAMAGED)
    return {
        "schema": SCHEMA,
        "gpop": __version__,
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        **{name: plain(value) for name, value in asked.items()},
        **lines,
        "inputs": [
            {
                "name": each.name,
                "octets": each.octets,
                "lines": each.rows + each.rejected,
                "problem": each.problem or None,
            }
            for each in store.reads
        ],
        "damaged": {"lines": damaged, "first": first},
        "dropped_lines": dropped,
    }


# From rows to the report


def _shares(rows: list[Row], total: int) -> list[Row]:
    for row in rows:
        row.pop("key", None)
        row["share"] = round(row["sessions"] / total, 6) if total else 0.0
    if rows and "outcome" in rows[0] and "reason" not in rows[0]:
        rows.sort(key=lambda row: (*OUTCOMES, UNOPENED).index(row["outcome"]))
    return rows


def _periods(span: Row) -> tuple[int, list[int]]:
    """How long a period of "over time" is, and the starts (seconds since 1970) of all from first to last."""
    if span["first"] is None:
        return columns.PERIODS_S[0], []
    first, last = (int(datetime.datetime.fromisoformat(span[name]).timestamp()) for name in ("first", "last"))
    for period_s in columns.PERIODS_S:
        if (last - first) / period_s < columns.MOST_PERIODS:
            break
    start = first // period_s * period_s
    return period_s, list(range(start, last + 1, period_s))


def _period(period_s: int) -> str:
    return f"CAST(floor(epoch(ts) / {period_s}) AS BIGINT) * {period_s}"


def _side_by_side(rows: list[Row], keys: Any) -> list[Row]:
    """One row for each key, with the figures of all outcomes beside each other; keys without sessions too."""
    found: dict[Any, Row] = {key: _nothing(key) for key in keys}
    for row in rows:
        if row["key"] not in found:
            continue
        into = found[row["key"]]
        into["sessions"] += row["sessions"]
        into[row["outcome"]] = row["sessions"]
        if row["outcome"] in TIMED:
            into |= {f"{row['outcome']}_{name}": row[name] for name in (*QUANTILES, "max_ms")}
    return list(found.values())


def _nothing(key: Any) -> Row:
    counts = dict.fromkeys((*OUTCOMES, UNOPENED), 0)
    times = {f"{outcome}_{name}": None for outcome in TIMED for name in (*QUANTILES, "max_ms")}
    return {"key": key, "sessions": 0, **counts, **times}


def _moment(row: Row) -> Row:
    start = datetime.datetime.fromtimestamp(row.pop("key"), datetime.UTC)
    return {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", **row}


def _named(rows: list[Row], name: str, names: list[str]) -> list[Row]:
    return [{name: names[row.pop("key")], **row} for row in rows]


def _by_messages(ask: Questions) -> list[Row]:
    rows = ask.outcomes(columns.size_class(columns.DECADES), "messages IS NOT NULL")
    known = range(len(columns.DECADES))
    return _named(_side_by_side(rows, known), "messages", columns.size_names(columns.DECADES))


def _saved(rows: list[Row]) -> Row:
    """The estimate of `saved` for every size class, and together."""
    table: dict[tuple[int, str], saved.Spent] = {
        (row["size"], row["outcome"]): saved.Spent(
            row["sessions"], float(row["messages"]), row["total_ms"], row["quick_ms"]
        )
        for row in rows
    }
    sizes = range(len(columns.SIZES))
    nothing = saved.Spent()
    known = saved.points([table.get((size, REBUILD), nothing) for size in sizes])
    found = []
    for size, name in enumerate(columns.size_names(columns.SIZES)):
        rebuilds, hits, refreshes = (table.get((size, each), nothing) for each in (REBUILD, HIT, REFRESH))
        if not (rebuilds.sessions or hits.sessions or refreshes.sessions):
            continue
        saving = saved.saving(rebuilds, [hits, refreshes], known)
        spent = [("hit", hits), ("refresh", refreshes), ("rebuild", rebuilds)]
        found.append(
            {"messages": name, **{each: of.sessions for each, of in spent}}
            | {f"{each}_ms": round(of.mean_ms, 3) if of.sessions else None for each, of in spent[:2]}
            | {"rebuild_ms": _rounded(saving.rebuild_ms), "basis": saving.basis}
            | {"saved_wall_ms": _rounded(saving.wall_ms), "saved_cpu_ms": _rounded(saving.cpu_ms)}
            | {"took_ms": round(sum(of.total_ms for _, of in spent), 3)}
        )
    return _in_all(found)


def _in_all(rows: list[Row]) -> Row:
    known = [row for row in rows if row["saved_wall_ms"] is not None]
    wall_ms = round(sum(row["saved_wall_ms"] for row in known), 3) if known else None
    took_ms = round(sum(row["took_ms"] for row in rows), 3)
    return {
        "wall_ms": wall_ms,
        "cpu_ms": round(sum(row["saved_cpu_ms"] for row in known), 3) if known else None,
        "took_ms": took_ms,
        "without_cache_ms": None if wall_ms is None else round(took_ms + wall_ms, 3),
        "by_messages": rows,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _cell(row: Row) -> Row:
    size, half = row.pop("size"), row.pop("half_decade")
    edges = columns.SIZES
    return {
        "messages_from": edges[size],
        "messages_to": edges[size + 1] - 1 if size + 1 < len(edges) else None,
        "from_ms": _step_edge(half, 2),
        "to_ms": _step_edge(half + 1, 2),
        **row,
    }


def _duration(row: Row) -> Row:
    sixth = row.pop("sixth")
    return {"from_ms": _step_edge(sixth, 6), "to_ms": _step_edge(sixth + 1, 6), **row}


def _step_edge(step: int, per_decade: int) -> float:
    return float(f"{10 ** (step / per_decade):.4g}")


def _said(row: Row) -> Row:
    return row | {"what": next((what for name, what, _ in BEHAVIOURS if name == row["behaviour"]), "")}
