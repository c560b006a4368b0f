"""The figures of a report, against logs of a real gpop and against lines of which all is known."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from pathlib import Path

from gpop.events import EVENTS
from gpop.report import columns, findings
from loadtest import biglog
from tests.report.conftest import Driven, Run, refusal, session, write

# What programs may count on; a key can be added, and none of these may go or be renamed without a new SCHEMA.
KEYS = {
    "report",
    "cache",
    "sessions",
    "outcomes",
    "reasons",
    "over_time",
    "period_s",
    "by_hour",
    "by_messages",
    "saved",
    "rebuild_times",
    "durations",
    "polling_most",
    "never_hit",
    "never_hit_accounts",
    "rebuilt_again",
    "largest",
    "slowest",
    "behaviours",
    "tls",
    "auth_sources",
    "mechanisms",
    "close_reasons",
    "refused",
    "refused_by_address",
    "refused_by_reason",
    "faults",
    "events",
    "findings",
}
SIDE_BY_SIDE = {
    "sessions",
    "hit",
    "refresh",
    "rebuild",
    "off",
    "unopened",
    *(
        f"{outcome}_{name}_ms"
        for outcome in ("hit", "refresh", "rebuild")
        for name in ("p50", "p90", "p99", "max")
    ),
}
USER = {
    "account",
    "sessions",
    "interval_s",
    "hit",
    "refresh",
    "rebuild",
    "messages",
    "octets",
    "cache_ms",
    "reason",
    "addresses",
}


def test_a_real_log_gives_what_was_driven(driven: Driven, report: Run) -> None:
    """Hits, refreshes, rebuilds, refusals and what clients did are those that the clients made."""
    found = report("--json", driven.path).json()
    assert found["cache"] == {
        "hit": driven.hits,
        "refresh": driven.refreshes,
        "rebuild": driven.rebuilds,
        "off": 0,
        "unopened": 0,
    }
    assert found["sessions"]["sessions"] == driven.sessions
    assert found["sessions"]["messages_sent"] == 1
    assert found["refused"] == {
        "refused": driven.refused,
        "guesses": driven.refused,
        "addresses": 1,
        "names": 1,
    }
    assert [row["account"] for row in found["polling_most"]] == driven.names
    behaviours = {row["behaviour"]: row["sessions"] for row in found["behaviours"]}
    assert behaviours == {"polls": driven.sessions - driven.cut_off, "cut_off": driven.cut_off}
    assert found["report"]["damaged"]["lines"] == 0
    assert found["report"]["lines"] == len(driven.path.read_text().splitlines())
    assert found["faults"] == []


def test_the_keys_of_json_are_stable(driven: Driven, report: Run) -> None:
    """Programs read it: keys stay what they are."""
    found = report("--json", driven.path).json()
    assert found["report"]["schema"] == 1
    assert set(found) >= KEYS
    assert set(found["cache"]) == {"hit", "refresh", "rebuild", "off", "unopened"}
    for table, key in (("over_time", "start"), ("by_hour", "hour"), ("by_messages", "messages")):
        assert set(found[table][0]) == SIDE_BY_SIDE | {key}, table
    assert set(found["polling_most"][0]) == USER
    assert set(found["saved"]) == {"wall_ms", "cpu_ms", "took_ms", "without_cache_ms", "by_messages"}
    assert {
        "schema",
        "gpop",
        "made",
        "since",
        "until",
        "user",
        "lines",
        "first",
        "last",
        "inputs",
        "damaged",
    } <= set(found["report"])


def test_an_empty_log_is_a_report_of_nothing(tmp_path: Path, report: Run) -> None:
    """No line is no fault, in any form."""
    empty = write(tmp_path / "empty.log")
    assert set(report("--json", empty).json()) >= KEYS
    assert "No line of gpop's log" in report(empty).out
    assert report("--html", tmp_path / "page.html", empty).status == 0
    assert report("--csv", "over_time", empty).out.startswith("start,sessions")


def test_quantiles_are_within_a_hundredth(tmp_path: Path, report: Run) -> None:
    """Whatever the distribution, a quantile is never below the true one and at most 1 % above it."""
    chance = random.Random(1)
    times = [round(math.exp(chance.gauss(1, 2)), 3) for _ in range(5000)]
    lines = [session(cache_ms=each) for each in times]
    found = report("--json", write(tmp_path / "log", *lines)).json()["outcomes"][0]
    ordered = sorted(times)
    for name, part in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
        true = ordered[math.ceil(part * len(ordered)) - 1]
        assert true <= found[name] <= true * 1.0101 + 0.0005, name
    assert found["max_ms"] == max(times)
    assert math.isclose(found["total_ms"], sum(times), rel_tol=1e-6)


def test_few_times_are_exact(tmp_path: Path, report: Run) -> None:
    """Three sessions have three times, and the median is the one in the middle."""
    lines = [session(cache_ms=each) for each in (0.0, 1.234, 5.0)]
    found = report("--json", write(tmp_path / "log", *lines)).json()["outcomes"][0]
    assert (found["p50_ms"], found["p99_ms"]) == (1.234, 5.0)


def test_sessions_are_put_where_they_belong(tmp_path: Path, report: Run) -> None:
    """By time, by hour of the day and by messages: each session once, at the edges too."""
    lines = [
        session(ts="2026-11-25T00:00:00.000Z", messages=0),
        session(ts="2026-11-25T00:59:59.999Z", messages=1, cache="refresh", cache_reason="racy"),
        session(
            ts="2026-11-25T01:00:00.000Z", messages=9, cache="rebuild", cache_reason="absent", cache_ms=4.0
        ),
        session(ts="2026-11-26T01:30:00.000Z", messages=99_999, cache="off", cache_reason="disabled"),
        session(ts="2026-11-26T23:59:59.999Z", messages=100_000, cache=None, cache_reason=None),
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()
    hours = {row["hour"]: row["sessions"] for row in found["by_hour"] if row["sessions"]}
    assert hours == {"00": 2, "01": 2, "23": 1}
    sizes = {row["messages"]: row["sessions"] for row in found["by_messages"]}
    assert sizes == {
        "0": 1,
        "1-9": 2,
        "10-99": 0,
        "100-999": 0,
        "1,000-9,999": 0,
        "10,000-99,999": 1,
        "100,000 and more": 1,
    }
    assert found["cache"] == {"hit": 1, "refresh": 1, "rebuild": 1, "off": 1, "unopened": 1}
    assert sum(row["sessions"] for row in found["over_time"]) == 5
    starts = [row["start"] for row in found["over_time"]]
    assert starts[0] == "2026-11-25T00:00:00Z" and len(starts) <= columns.MOST_PERIODS + 1
    assert found["rebuild_times"] == [
        {"messages_from": 3, "messages_to": 9, "from_ms": 3.162, "to_ms": 10.0, "rebuilds": 1}
    ]


def test_a_year_is_few_periods(tmp_path: Path, report: Run) -> None:
    """However long the log is, "over time" has no more periods than a chart has room for, gaps included."""
    lines = [session(ts=f"{year}-03-01T00:00:00.000Z") for year in (1990, 2026)]
    found = report("--json", write(tmp_path / "log", *lines)).json()["over_time"]
    assert len(found) <= columns.MOST_PERIODS + 1
    assert found[0]["sessions"] == found[-1]["sessions"] == 1


def test_what_clients_did(tmp_path: Path, report: Run) -> None:
    """A session is one kind of behaviour, by what it fetched, removed, and how it ended."""
    lines = [
        session(),
        session(retr=3),
        session(retr=3, marked=3),
        session(retr=3, marked=1),
        session(marked=2),
        session(top=5),
        session(retr=3, close_reason="disconnect"),
        session(close_reason="unavailable", fault="a fault", level="error"),
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()
    names = [name for name, _, _ in columns.BEHAVIOURS]
    assert Counter(row["behaviour"] for row in found["behaviours"]) == Counter(names)
    assert [(row["event"], row["what"], row["times"]) for row in found["faults"]] == [
        ("session_closed", "a fault", 1)
    ]


def test_one_fault_of_many_accounts_is_one_line(tmp_path: Path, report: Run) -> None:
    """A file system that is not mounted is a line, and not one for each home: places are in brackets."""
    what = "CredentialsRefused: home_not_owned"
    lines = [
        session(close_reason="unavailable", level="error", fault=f"{what} (/home/{name} belongs to uid 0)")
        for name in ("ann", "joe", "sue")
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()["faults"]
    assert [(row["what"], row["times"]) for row in found] == [(what, 3)]


def test_what_is_told_of_a_fault_is_in_the_table(tmp_path: Path, report: Run) -> None:
    """Of a rejected config its first problem, of what a session notes its reason: it was "(none)"."""
    line = {"ts": "2026-11-25T10:00:00.000Z", "process": "front"}
    problem = "/etc/gpop/gpop.toml:9: accounts.maildr: unknown setting"
    lines = [
        line
        | {"level": "error", "event": "config_rejected", "config": "x", "problems": [problem, "another"]},
        line
        | {"level": "warning", "event": "cache_damaged", "detail": "reason=header_damaged", "account": "ann"},
        line
        | {"level": "warning", "event": "message_unreadable", "detail": "message=3 reason=EACCES file=cur/1"},
        line | {"level": "info", "event": "passwd_file_read", "problems": 3},
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()
    assert [(row["event"], row["what"]) for row in found["faults"]] == [
        ("config_rejected", problem),
        ("cache_damaged", "header_damaged"),
        ("message_unreadable", "EACCES"),
    ]
    assert found["report"]["damaged"]["lines"] == 0
    archive = tmp_path / "archive.parquet"
    report("--parquet", archive, tmp_path / "log")
    assert report("--json", archive).json()["faults"] == found["faults"]


def test_who_never_hits(tmp_path: Path, report: Run) -> None:
    """Three sessions without a hit are remarkable, with their commonest reason; two, or one hit, are not."""
    lines = [
        session(account="hits"),
        session(account="hits"),
        session(account="hits"),
        *(session(account="never", cache="refresh", cache_reason="new_changed") for _ in range(3)),
        session(account="never", cache="refresh", cache_reason="racy"),
        *(session(account="twice", cache="rebuild", cache_reason="absent") for _ in range(2)),
        *(session(account="broken", cache=None, cache_reason=None) for _ in range(5)),
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()
    assert [(row["account"], row["reason"]) for row in found["never_hit"]] == [("never", "new_changed")]
    assert found["never_hit_accounts"] == 1


def test_refusals_count_what_a_line_stands_for(tmp_path: Path, report: Run) -> None:
    """A flood is few lines with a number of times; wrong passwords are told from limits."""
    lines = [
        refusal(),
        refusal(user="admin"),
        refusal(code="SYS/TEMP", reason="too_many_logins", times=500),
        refusal(peer="2001:db8::1", code="LOGIN-DELAY", reason="login_delay"),
    ]
    found = report("--json", write(tmp_path / "log", *lines)).json()
    assert found["refused"] == {"refused": 503, "guesses": 2, "addresses": 2, "names": 2}
    first = found["refused_by_address"][0]
    assert (first["address"], first["refused"], first["guesses"], first["names"]) == (
        "198.51.100.7",
        502,
        2,
        2,
    )


def test_lines_that_were_dropped_are_said(tmp_path: Path, report: Run) -> None:
    """What the log itself says is missing stands at the top."""
    dropped = {
        "ts": "2026-11-25T10:00:00.000Z",
        "level": "warning",
        "event": "log_lines_dropped",
        "lines": 1200,
    }
    found = report("--json", write(tmp_path / "log", session(), dropped)).json()
    assert found["report"]["dropped_lines"] == 1200
    assert any("1,200 lines are missing" in each["says"] for each in found["findings"])


def test_every_finding_is_explained() -> None:
    """A finding names a heading of docs/report.md, and events that gpop writes."""
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
    headings = {line.lstrip("# ") for line in text.splitlines() if line.startswith("#")}
    used = {
        constant
        for constant in _texts(findings)
        if constant[:1].isupper() and not constant.endswith((".", " "))
    }
    assert used and used <= headings, used - headings
    assert set(findings.WARNINGS) <= set(EVENTS)


def _texts(module: object) -> set[str]:
    """What stands as `see` in the findings' code."""
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    yielded = [node.value for node in ast.walk(tree) if isinstance(node, ast.Yield)]
    return {each.elts[1].value for each in yielded if isinstance(each, ast.Tuple)}  # type: ignore[attr-defined]


def test_a_generated_log_is_a_log(tmp_path: Path, driven: Driven, report: Run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """What loadtest.biglog makes of a real log has no damaged line, is in order, and covers its days."""
    monkeypatch.setattr(biglog, "VARIANTS", 500)
    chance = random.Random(1)
    path = tmp_path / "big.log"
    with path.open("wb") as out:
        biglog.write(out, biglog.Variants(driven.path, 100, chance), 4000, 3 * 86400, chance)
    found = report("--json", path).json()
    assert (found["report"]["lines"], found["report"]["damaged"]["lines"]) == (4000, 0)
    assert found["report"]["first"][:10] == "2026-11-19" and found["report"]["last"][:10] == "2026-11-21"
    assert 0.8 < found["cache"]["hit"] / found["sessions"]["sessions"] < 0.95
    assert found["refused"]["refused"] > 0
    stamps = [line[8:32] for line in path.read_text().splitlines()]
    assert stamps == sorted(stamps)
    assert statistics.mean(row["sessions"] for row in found["by_hour"]) > 100
