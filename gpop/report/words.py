"""
How values of a report are said to people: numbers with units, and text from a log, which is hostile.

`clean` and `cell` let nothing through that a terminal or a spreadsheet would act upon; the page escapes what
HTML would, besides.
"""

from __future__ import annotations

import datetime
from typing import Any

from gpop.events import printable

TEXT, COUNT, SHARE, OCTETS, MOMENT = "text", "count", "share", "octets", "moment"
# Times: in ms; in seconds, said with a unit; in ms, many together, said with a unit.
MS, SECONDS, TOTAL = "ms", "seconds", "total"
# A field of the log has 512 characters at most; a table needs fewer to say who is meant.
MAX_SHOWN = 60
MINUTE_S, DAY_S = 60, 86400
# A spreadsheet takes a cell that begins like this for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "|", "%")
NUMBERS = (COUNT, SHARE, MS, OCTETS, SECONDS, TOTAL)


def clean(text: str, most: int = MAX_SHOWN) -> str:
    """Text from a log with all escaped that a terminal would not just show, and cut."""
    shown = printable(text.encode("utf-8", "backslashreplace"), 4 * most)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def shown(value: Any, kind: str) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if kind == SHARE:
        return percent(value)
    if kind == MS:
        return milliseconds(value)
    if kind == OCTETS:
        return octets(value)
    if kind in (SECONDS, TOTAL):
        return seconds(value / 1000 if kind == TOTAL else value)
    if kind == MOMENT:
        return clean(str(value)).replace("T", " ").removesuffix("Z").partition(".")[0]
    return f"{value:,}" if kind == COUNT else clean(str(value)) or "(none)"


def counted(count: int, what: str) -> str:
    """So many of something: "1 line", "2,000 lines"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


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
    if value < 0:
        return f"-{seconds(-value)}"
    if value < 10:
        return (
            f"{value:.2g} s"
            if value >= 1 or not value
            else f"{1000 * value:.2g} ms"
            if value < 0.1
            else f"{value:.2f} s"
        )
    for unit, of_it in (("s", 120), ("min", 120), ("h", 48)):
        if value < of_it:
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
        value /= 24 if unit == "h" else 60
    return f"{value:,.0f} d"


def unit_of(longest_s: float) -> tuple[str, float]:
    """The unit for lengths of time that stand beside each other, up to this, and its seconds."""
    units = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    return next((each for each in units if longest_s >= 2 * each[1]), ("ms", 0.001))


def cell(value: Any) -> Any:
    """A value for a spreadsheet: numbers as they are, text that is no formula to anybody."""
    if not isinstance(value, str):
        return value
    text = printable(value.encode("utf-8", "backslashreplace"), 4 * len(value))
    return f"'{text}" if text.startswith(FORMULA) else text


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few sentences."""
    about, cache, sessions = report["report"], report["cache"], report["sessions"]
    if not about["lines"]:
        return ["No line of gpop's log is in there, or none is left of what was asked for."]
    first, last = (shown(about[name], MOMENT) for name in ("first", "last"))
    lines = [
        f"{counted(about['lines'], 'line')} from {first} to {last} UTC; "
        f"{counted(sessions['sessions'], 'session')} of {counted(sessions['accounts'], 'account')}"
    ]
    total = sum(cache.values())
    if total:
        shares = ", ".join(f"{name} {percent(count / total)}" for name, count in cache.items() if count)
        lines.append(f"Cache: {shares}")
    return [*lines, *saved_words(report["saved"])]


def periods(report: dict[str, Any]) -> list[str]:
    """What the periods of "over time" are called beside each other: only what tells them apart."""
    period_s = report["period_s"]
    starts = [datetime.datetime.fromisoformat(row["start"]) for row in report["over_time"]]
    span_s = (starts[-1] - starts[0]).total_seconds() if starts else 0.0
    if period_s >= DAY_S:
        pattern = "%Y-%m-%d"
    elif span_s >= DAY_S:
        pattern = "%m-%d %H:%M"
    else:
        pattern = "%H:%M" if period_s >= MINUTE_S else "%H:%M:%S"
    return [start.strftime(pattern) for start in starts]


def saved_words(saved: dict[str, Any]) -> list[str]:
    """What the cache has saved, in words."""
    if saved["wall_ms"] is None:
        return (
            ["No rebuild is in there, so what the cache has saved can't be said."]
            if saved["by_messages"]
            else []
        )
    took, without = (seconds(saved[name] / 1000) for name in ("took_ms", "without_cache_ms"))
    cpu = seconds(max(0.0, saved["cpu_ms"]) / 1000)
    return [f"Opening maildrops took {took}; rebuilding each time, {without}. Saved CPU time: about {cpu}."]
