"""
Questions in SQL, asked of the table that the lines became, and the report that their answers are: a plain dict.

The report is what `--json` writes. Its keys are a promise (SCHEMA); tables, page and CSV are made from it and
nothing else. Times are milliseconds, sizes octets, moments UTC in ISO 8601.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from gpop import __version__
from gpop.events import LIMIT_REASONS
from gpop.maildrop.opening import HIT, REBUILD, REFRESH
from gpop.report import columns, findings, saved
from gpop.report.columns import BEHAVIOURS, OUTCOMES, QUANTILES, UNOPENED
from gpop.report.store import Store

# Raised when a key of the report is renamed, dropped, or means something else. New keys may come at any time.
SCHEMA = 1
MOST_DAMAGED = 10
# Fewer sessions, and it says nothing that none of them was a hit: the first can be none.
FEWEST_POLLS = 3
TIMED = (HIT, REFRESH, REBUILD)

Row = dict[str, Any]


class Questions:
    """Asks a store about its view `entry`, and hands back rows as dicts; `top` is the length of lists."""

    def __init__(self, store: Store, top: int, progress: Callable[[float], None] = lambda _: None) -> None:
        self._store = store
        self._top = top
        self._progress = progress
        self._asked = 0

    def ask(self, names: str, question: str) -> list[Row]:
        """The rows, with these names for their columns."""
        rows = self._store.ask(question)
        self._asked += 1
        self._progress(min(1.0, self._asked / QUESTIONS))
        return [dict(zip(names.split(), map(_plain, row), strict=True)) for row in rows]

    def one(self, names: str, question: str) -> Row:
        """The only row."""
        return self.ask(names, question)[0]

    # What it is about

    def prepare(self) -> None:
        """Make the views that the questions are asked of."""
        outcomes = ", ".join(f"'{name}'" for name in OUTCOMES)
        self._store.ask(f"""
            CREATE OR REPLACE VIEW session AS SELECT *,
                CASE WHEN cache IN ({outcomes}) THEN cache ELSE '{UNOPENED}' END AS outcome,
                coalesce(account, "user", '') AS who,
                {columns.behaviour()} AS behaviour
            FROM entry WHERE event = '{columns.SESSION}'""")
        self._store.ask(f"""
            CREATE OR REPLACE VIEW refusal AS SELECT *, coalesce(times, 1) AS logins,
                coalesce(peer, 'unknown') AS address
            FROM entry WHERE event = '{columns.REFUSED}'""")

    def lines(self) -> Row:
        return self.one("lines first last", "SELECT count(*), min(ts), max(ts) FROM entry")

    def events(self) -> list[Row]:
        return self.ask(
            "event level lines",
            "SELECT event, coalesce(level, ''), count(*) FROM entry GROUP BY ALL ORDER BY count(*) DESC, event LIMIT 100",
        )

    def dropped(self) -> int:
        question = f"SELECT coalesce(sum(lines), 0) FROM entry WHERE event = '{columns.LINES_DROPPED}'"
        return int(self.one("dropped", question)["dropped"])

    # Sessions and the cache

    def sessions(self) -> Row:
        return self.one(
            "sessions accounts messages_sent octets_sent removed expired duration_ms auth_ms",
            """SELECT count(*), count(DISTINCT who), coalesce(sum(retr), 0), coalesce(sum(octets_sent), 0),
                coalesce(sum(removed), 0), coalesce(sum(expired), 0), avg(duration_ms), avg(auth_ms)
            FROM session""",
        )

    def outcomes(self, by: str = "''", where: str = "true") -> list[Row]:
        """Sessions by outcome and what opening the maildrop took, for each value of the SQL expression `by`."""
        parts = ", ".join(f"min(longest) FILTER (upto >= {part} * of)" for part in QUANTILES.values())
        return self.ask(
            f"key outcome sessions {' '.join(QUANTILES)} max_ms total_ms",
            f"""WITH steps AS (
                SELECT {by} AS key, outcome, {columns.step("cache_ms")} AS step, count(*) AS n,
                    max(cache_ms) AS longest, sum(cache_ms) AS total
                FROM session WHERE {where} GROUP BY ALL),
            summed AS (SELECT *, sum(n) OVER (PARTITION BY key, outcome ORDER BY step) AS upto,
                sum(n) OVER (PARTITION BY key, outcome) AS of FROM steps)
            SELECT key, outcome, sum(n), {parts}, max(longest), sum(total)
            FROM summed GROUP BY key, outcome ORDER BY key, outcome""",
        )

    def reasons(self) -> list[Row]:
        reason = "outcome || ' ' || coalesce(cache_reason, '')"
        rows = self.outcomes(by=reason, where=f"outcome <> '{UNOPENED}'")
        for row in rows:
            row["reason"] = row.pop("key").partition(" ")[2]
        return sorted(rows, key=lambda row: (OUTCOMES.index(row["outcome"]), -row["sessions"]))

    def span(self) -> Row:
        return self.one("first last", "SELECT min(ts), max(ts) FROM session")

    def spent(self) -> list[Row]:
        """What each outcome took by size class: all of it, and the quickest tenth."""
        return self.ask(
            "size outcome sessions messages total_ms quick_ms",
            f"""WITH steps AS (
                SELECT {columns.size_class(columns.SIZES)} AS size, outcome, {columns.step("cache_ms")} AS step,
                    count(*) AS n, sum(messages) AS messages, sum(cache_ms) AS total, max(cache_ms) AS longest
                FROM session WHERE messages IS NOT NULL AND cache_ms IS NOT NULL GROUP BY ALL),
            summed AS (SELECT *, sum(n) OVER (PARTITION BY size, outcome ORDER BY step) AS upto,
                sum(n) OVER (PARTITION BY size, outcome) AS of FROM steps)
            SELECT size, outcome, sum(n), sum(messages) / sum(n), sum(total), min(longest) FILTER (upto >= 0.1 * of)
            FROM summed GROUP BY size, outcome ORDER BY size""",
        )

    def rebuild_times(self) -> list[Row]:
        """For the heat map: rebuilds by size class and half decade of time."""
        return self.ask(
            "size half_decade rebuilds",
            f"""SELECT {columns.size_class(columns.SIZES)} AS size,
                CAST(floor(log10(greatest(cache_ms, 0.001)) * 2) AS INTEGER) AS half, count(*)
            FROM session WHERE outcome = '{REBUILD}' AND messages IS NOT NULL AND cache_ms IS NOT NULL
            GROUP BY ALL ORDER BY size, half""",
        )

    def durations(self) -> list[Row]:
        """Sessions by how long they lasted, six classes a decade."""
        return self.ask(
            "sixth outcome sessions",
            """SELECT CAST(floor(log10(greatest(duration_ms, 0.1)) * 6) AS INTEGER) AS sixth, outcome, count(*)
            FROM session WHERE duration_ms IS NOT NULL GROUP BY ALL ORDER BY sixth, outcome""",
        )

    # Users

    def users(self, order: str, having: str = "true") -> list[Row]:
        return self.ask(
            "account sessions interval_s hit refresh rebuild messages octets cache_ms reason addresses",
            f"""SELECT who, count(*) AS polls, date_diff('millisecond', min(ts), max(ts)) / 1000 / nullif(count(*) - 1, 0),
                {", ".join(f"count(*) FILTER (outcome = '{outcome}')" for outcome in TIMED)},
                max(messages) AS most, max(octets) AS largest, sum(cache_ms) AS spent,
                mode(cache_reason) FILTER (outcome <> '{HIT}'), approx_count_distinct(peer)
            FROM session GROUP BY who HAVING {having} ORDER BY {order}, who LIMIT {self._top}""",
        )

    def never_hitting(self) -> int:
        question = f"SELECT count(*) FROM (SELECT who FROM session GROUP BY who HAVING {self.NEVER_HIT})"
        return int(self.one("accounts", question)["accounts"])

    # A maildrop that could not be opened could not be a hit.
    NEVER_HIT = (
        f"count(*) FILTER (outcome <> '{UNOPENED}') >= {FEWEST_POLLS} AND count(*) FILTER (outcome = '{HIT}') = 0"
    )

    def slowest(self) -> list[Row]:
        names = "ts who duration_ms outcome cache_reason cache_ms auth_ms messages retr octets_sent close_reason peer"
        return self.ask(
            names.replace("who", "account").replace("ts ", "at "),
            f"SELECT {', '.join(names.split())} FROM session WHERE duration_ms IS NOT NULL "
            f"ORDER BY duration_ms DESC, ts LIMIT {self._top}",
        )

    def counts(self, by: str, name: str) -> list[Row]:
        """Sessions by an SQL expression, which the rows call `name`."""
        return self.ask(
            f"{name} sessions accounts octets_sent mean_ms",
            f"""SELECT {by} AS key, count(*), count(DISTINCT who), coalesce(sum(octets_sent), 0), avg(duration_ms)
            FROM session GROUP BY key ORDER BY count(*) DESC, key LIMIT 50""",
        )

    # What went wrong

    def refused(self) -> Row:
        return self.one(
            "refused guesses addresses names",
            """SELECT coalesce(sum(logins), 0), coalesce(sum(logins) FILTER (code = 'AUTH'), 0),
                count(DISTINCT address), count(DISTINCT "user") FROM refusal""",
        )

    def refused_by_address(self) -> list[Row]:
        return self.ask(
            "address refused guesses names first last reason",
            f"""SELECT address, sum(logins), coalesce(sum(logins) FILTER (code = 'AUTH'), 0), count(DISTINCT "user"),
                min(ts), max(ts), mode(reason)
            FROM refusal GROUP BY address ORDER BY sum(logins) DESC, address LIMIT {self._top}""",
        )

    def refused_by_reason(self) -> list[Row]:
        return self.ask(
            "code reason refused addresses",
            """SELECT coalesce(code, ''), coalesce(reason, ''), sum(logins), count(DISTINCT address)
            FROM refusal GROUP BY ALL ORDER BY sum(logins) DESC, 1, 2 LIMIT 50""",
        )

    def faults(self) -> list[Row]:
        """What is logged as an error, or as a warning that is not about a login; and each fault of a session."""
        said = "coalesce(fault, problem, reason, signal, close_reason, '')"
        return self.ask(
            "level event what times first last example",
            f"""SELECT coalesce(level, '') AS gravity, event, {said} AS what, sum(coalesce(times, 1)) AS n, min(ts), max(ts),
                arg_max(coalesce(account, "user", detail, ended, peer, ''), ts)
            FROM entry WHERE (level IN ('error', 'warning') OR fault IS NOT NULL) AND event <> '{columns.REFUSED}'
            GROUP BY ALL ORDER BY gravity, n DESC, event, what
            LIMIT {5 * self._top}""",
        )


# So many are asked for a report; the progress bar goes by it.
QUESTIONS = 29


def make(
    store: Store, about: Row, top: int, progress: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Return the report on what a store's view `entry` holds. `about`: what was asked for (since, until, user)."""
    ask = Questions(store, top, progress)
    ask.prepare()
    span = ask.span()
    period_s, periods = _periods(span)
    outcomes = ask.outcomes()
    total = sum(row["sessions"] for row in outcomes)
    report: dict[str, Any] = {
        "report": _about(store, about, ask.lines(), ask.dropped()),
        "cache": {name: 0 for name in (*OUTCOMES, UNOPENED)} | {row["outcome"]: row["sessions"] for row in outcomes},
        "sessions": ask.sessions(),
        "outcomes": _shares(outcomes, total),
        "reasons": _shares(ask.reasons(), total),
        "over_time": [_moment(row) for row in _side_by_side(ask.outcomes(_period(period_s)), periods)],
        "period_s": period_s,
        "by_hour": _named(_side_by_side(ask.outcomes("hour(ts)"), range(24)), "hour", [f"{n:02}" for n in range(24)]),
        "by_messages": _by_messages(ask),
        "saved": _saved(ask.spent()),
        "rebuild_times": [_cell(row) for row in ask.rebuild_times()],
        "durations": [_duration(row) for row in ask.durations()],
        "polling_most": ask.users("polls DESC"),
        "never_hit": ask.users("polls DESC", Questions.NEVER_HIT),
        "never_hit_accounts": ask.never_hitting(),
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
        **{name: _plain(value) for name, value in asked.items()},
        **lines,
        "inputs": [
            {"name": each.name, "octets": each.octets, "lines": each.rows + each.rejected, "problem": each.problem or None}
            for each in store.reads
        ],
        "damaged": {"lines": damaged, "first": first},
        "dropped_lines": dropped,
    }


# From rows to the report


def _plain(value: Any) -> Any:
    """A value as JSON has it. What DuckDB sums up is a float or a large integer already."""
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="milliseconds") + ("Z" if value.tzinfo is None else "")
    return round(value, 3) if isinstance(value, float) else value


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
        (row["size"], row["outcome"]): saved.Spent(row["sessions"], float(row["messages"]), row["total_ms"], row["quick_ms"])
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


def is_limit(row: Row) -> bool:
    """Whether a row of `refused_by_reason` is about a limit, and not about a wrong password."""
    return row["reason"] in LIMIT_REASONS
