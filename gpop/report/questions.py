"""
The questions that a report is the answer to, in SQL, asked of the lines in the store. EDGE, by way of that.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from gpop.maildrop.opening import HIT, REBUILD, REFRESH
from gpop.report import columns
from gpop.report.columns import OUTCOMES, QUANTILES, UNOPENED
from gpop.report.store import Store

# Fewer sessions, and it says nothing that none of them was a hit: the first can be none.
FEWEST_POLLS = 3
TIMED = (HIT, REFRESH, REBUILD)
# So many are asked for a report; the progress bar goes by it.
QUESTIONS = 28

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
        return [dict(zip(names.split(), map(plain, row), strict=True)) for row in rows]

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
            "SELECT event, coalesce(level, ''), count(*) FROM entry GROUP BY ALL "
            "ORDER BY count(*) DESC, event LIMIT 100",
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
        """Sessions by outcome, and what opening the maildrop took, for each value of an SQL expression."""
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
                SELECT {columns.size_class(columns.SIZES)} AS size, outcome,
                    {columns.step("cache_ms")} AS step, count(*) AS n, sum(messages) AS messages,
                    sum(cache_ms) AS total, max(cache_ms) AS longest
                FROM session WHERE messages IS NOT NULL AND cache_ms IS NOT NULL GROUP BY ALL),
            summed AS (SELECT *, sum(n) OVER (PARTITION BY size, outcome ORDER BY step) AS upto,
                sum(n) OVER (PARTITION BY size, outcome) AS of FROM steps)
            SELECT size, outcome, sum(n), sum(messages) / sum(n), sum(total),
                min(longest) FILTER (upto >= 0.1 * of)
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
            """SELECT CAST(floor(log10(greatest(duration_ms, 0.1)) * 6) AS INTEGER) AS sixth,
                outcome, count(*)
            FROM session WHERE duration_ms IS NOT NULL GROUP BY ALL ORDER BY sixth, outcome""",
        )

    # Users

    def users(self, order: str, having: str = "true") -> list[Row]:
        return self.ask(
            "account sessions interval_s hit refresh rebuild messages octets cache_ms reason addresses",
            f"""SELECT who, count(*) AS polls,
                date_diff('millisecond', min(ts), max(ts)) / 1000 / nullif(count(*) - 1, 0),
                {", ".join(f"count(*) FILTER (outcome = '{outcome}')" for outcome in TIMED)},
                max(messages) AS most, max(octets) AS largest, sum(cache_ms) AS spent,
                mode(cache_reason) FILTER (outcome <> '{HIT}'), approx_count_distinct(peer)
            FROM session GROUP BY who HAVING {having} ORDER BY {order}, who LIMIT {self._top}""",
        )

    def never_hitting(self) -> int:
        question = f"SELECT count(*) FROM (SELECT who FROM session GROUP BY who HAVING {self.NEVER_HIT})"
        return int(self.one("accounts", question)["accounts"])

    def rebuilt_again(self) -> int:
        """Rebuilds beyond the first of each account, which somebody has to have."""
        per_account = f"SELECT count(*) AS rebuilds FROM session WHERE outcome = '{REBUILD}' GROUP BY who"
        question = f"SELECT coalesce(sum(rebuilds - 1), 0) FROM ({per_account})"
        return int(self.one("sessions", question)["sessions"])

    # A maildrop that could not be opened could not be a hit.
    NEVER_HIT = (
        f"count(*) FILTER (outcome <> '{UNOPENED}') >= {FEWEST_POLLS} "
        f"AND count(*) FILTER (outcome = '{HIT}') = 0"
    )

    def slowest(self) -> list[Row]:
        same = "duration_ms outcome cache_reason cache_ms auth_ms messages retr octets_sent close_reason peer"
        return self.ask(
            f"at account {same}",
            f"SELECT ts, who, {', '.join(same.split())} FROM session WHERE duration_ms IS NOT NULL "
            f"ORDER BY duration_ms DESC, ts LIMIT {self._top}",
        )

    def counts(self, by: str, name: str) -> list[Row]:
        """Sessions by an SQL expression, which the rows call `name`."""
        return self.ask(
            f"{name} sessions accounts octets_sent mean_ms",
            f"""SELECT {by} AS key, count(*), count(DISTINCT who), coalesce(sum(octets_sent), 0),
                avg(duration_ms)
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
            f"""SELECT address, sum(logins), coalesce(sum(logins) FILTER (code = 'AUTH'), 0),
                count(DISTINCT "user"), min(ts), max(ts), mode(reason)
            FROM refusal GROUP BY address ORDER BY sum(logins) DESC, address LIMIT {self._top}""",
        )

    def refused_by_reason(self) -> list[Row]:
        return self.ask(
            "code reason refused addresses",
            """SELECT coalesce(code, ''), coalesce(reason, ''), sum(logins), count(DISTINCT address)
            FROM refusal GROUP BY ALL ORDER BY sum(logins) DESC, 1, 2 LIMIT 50""",
        )

    def faults(self) -> list[Row]:
        """What is logged as an error, or as a warning that is about no login; and each fault of a session."""
        # What is one fault of many accounts has the place of each at its end, in brackets.
        fault = r"regexp_replace(fault, ' \(/.*$', '')"
        # What a session notes has its reason among other words, of which each line has its own.
        noted = r"nullif(regexp_extract(detail, '(?:^| )reason=(\S+)', 1), '')"
        said = f"coalesce({fault}, problem, problems[1], reason, {noted}, signal, close_reason, '')"
        return self.ask(
            "level event what times first last example",
            f"""SELECT coalesce(level, '') AS gravity, event, {said} AS what,
                sum(coalesce(times, 1)) AS n, min(ts), max(ts),
                arg_max(coalesce(account, "user", detail, ended, peer, ''), ts)
            FROM entry
            WHERE (level IN ('error', 'warning') OR fault IS NOT NULL) AND event <> '{columns.REFUSED}'
            GROUP BY ALL ORDER BY gravity, n DESC, event, what
            LIMIT {5 * self._top}""",
        )


def plain(value: Any) -> Any:
    """A value as JSON has it. What DuckDB sums up is a float or a large integer already."""
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="milliseconds") + ("Z" if value.tzinfo is None else "")
    return round(value, 3) if isinstance(value, float) else value
