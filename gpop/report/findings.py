"""
What an administrator should look at, as said by the figures of a report.

Each finding is a sentence and the heading in docs/report.md that says what to do. A report in which nothing
stands out has none. The limits below are where somebody who runs a server would begin to ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Shares of all sessions.
FEW_HITS = 0.6
MANY_RACY = 0.03
MANY_REBUILDS = 0.05
MANY_REFRESHES = 0.4
# Below this many sessions a share says nothing.
ENOUGH_SESSIONS = 100
# Wrong passwords from one address.
MANY_GUESSES = 50
# Every other second, day and night, is no mail client.
QUICK_POLLER_S = 30

Report = dict[str, Any]


def find(report: Report) -> list[dict[str, str]]:
    """All findings, the gravest first; `see` is a heading of docs/report.md."""
    found = [*_log(report), *_faults(report), *_cache(report), *_users(report), *_logins(report)]
    return [{"says": says, "see": see} for says, see in found]


def _log(report: Report) -> Iterator[tuple[str, str]]:
    about = report["report"]
    for log in about["inputs"]:
        if log["problem"]:
            yield f"{log['name']}: {log['problem']}", "Damaged lines"
    if about["damaged"]["lines"]:
        yield f"{_lines(about['damaged']['lines'])} of no use: damaged, or none of gpop's.", "Damaged lines"
    if about["dropped_lines"]:
        yield f"{_lines(about['dropped_lines'])} missing: the log's reader was too slow.", "Dropped lines"


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count:,} lines are"


def _faults(report: Report) -> Iterator[tuple[str, str]]:
    errors = sum(row["times"] for row in report["faults"] if row["level"] == "error")
    if errors:
        yield f"Errors in the log: {errors:,}, most of all {_what(report['faults'][0])}.", "Faults"
    for event, says in WARNINGS.items():
        times = sum(row["times"] for row in report["faults"] if row["event"] == event)
        if times:
            yield f"{times:,} times {event}: {says}", "Faults"


# Warnings that cost something each time.
WARNINGS = {
    "cache_unwritable": "no hits for these maildrops until their cache can be written (quota, full disk).",
    "cache_damaged": "a cache was not usable and was made anew.",
    "size_corrected": "something writes a wrong W= into file names, or changes messages after delivery.",
}


def _what(row: dict[str, Any]) -> str:
    return f"{row['event']} ({row['what']})" if row["what"] else str(row["event"])


def _cache(report: Report) -> Iterator[tuple[str, str]]:
    cache, total = report["cache"], report["sessions"]["sessions"]
    if total < ENOUGH_SESSIONS:
        return
    opened = total - cache["unopened"]
    if opened and cache["hit"] / opened < FEW_HITS:
        yield f"Only {cache['hit'] / opened:.0%} of the sessions were hits.", "Few hits"
    if cache["off"] / total > MANY_REBUILDS:
        yield f"{cache['off'] / total:.0%} of the sessions were served without a cache.", "Without a cache"
    again = report["rebuilt_again"]
    if again / total > MANY_REBUILDS:
        yield (
            f"{again / total:.0%} of the sessions were rebuilds of maildrops that had been rebuilt before.",
            "Many rebuilds",
        )
    if cache["refresh"] / total > MANY_REFRESHES:
        yield f"{cache['refresh'] / total:.0%} of the sessions were refreshes.", "Many refreshes"
    racy = sum(row["sessions"] for row in report["reasons"] if row["reason"] == "racy")
    if racy / total > MANY_RACY:
        yield (
            f"{racy / total:.0%} of the sessions were refreshes with the reason racy.",
            "Many refreshes with reason racy",
        )


def _users(report: Report) -> Iterator[tuple[str, str]]:
    if report["never_hit_accounts"]:
        yield (
            f"Accounts that poll and never hit: {report['never_hit_accounts']:,}.",
            "Accounts that never hit",
        )
    quick = [row for row in report["polling_most"] if _polls_quickly(row)]
    if quick:
        first = quick[0]
        yield f"{first['account']} polls every {first['interval_s']:.0f} s.", "Who polls most"


def _polls_quickly(row: dict[str, Any]) -> bool:
    return (
        row["sessions"] >= ENOUGH_SESSIONS
        and row["interval_s"] is not None
        and row["interval_s"] < QUICK_POLLER_S
    )


def _logins(report: Report) -> Iterator[tuple[str, str]]:
    many = [row for row in report["refused_by_address"] if row["guesses"] >= MANY_GUESSES]
    if many:
        first = many[0]
        yield (
            f"{first['address']} had {first['guesses']:,} wrong passwords for {first['names']:,} names.",
            "Login failures",
        )
