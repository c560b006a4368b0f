"""
Which charts a report has, and what each of their marks says: from the report to sections of the page.

The first names of series are the classes of the page's colours.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

from gpop.report import charts, columns, words
from gpop.report.charts import NARROW, WIDE, Series

Report = dict[str, Any]
Row = dict[str, Any]

SHARES = (("hit", "hit"), ("refresh", "refresh"), ("rebuild", "rebuild"), ("off", "without a cache"))
HEIGHT, LOW = 250, 130


def sections(report: Report, folded: Callable[[str, Report], str]) -> list[str]:
    """The sections with charts, in the order of the page; `folded` gives the table behind one."""
    if not report["sessions"]["sessions"]:
        return []
    return [
        _over_time(report) + folded("over_time", report),
        _times(report),
        _by_hour(report) + folded("by_hour", report),
        _rebuilds(report) + folded("by_messages", report),
        _saved(report) + folded("saved", report),
        _durations(report),
    ]


def _section(title: str, note: str, legend: str, *pictures: Callable[[int], str]) -> str:
    figures = "".join(
        f'<div class="{style}">{"".join(picture(width) for picture in pictures)}</div>'
        for style, width in (("wide", WIDE), ("narrow", NARROW))
    )
    return f'<section><h2>{title}</h2><p class="soft">{note}</p><figure>{legend}{figures}</figure></section>'


def _legend(entries: list[tuple[str, str]]) -> str:
    return (
        '<div class="legend">'
        + "".join(f'<span><i class="{style}"></i>{name}</span>' for style, name in entries)
        + "</div>"
    )


def _shown_outcomes(report: Report) -> list[tuple[str, str]]:
    return [(name, what) for name, what in SHARES if name != "off" or report["cache"]["off"]]


# Over time


def _over_time(report: Report) -> str:
    rows, slots, shown = report["over_time"], words.periods(report), _shown_outcomes(report)
    period = words.seconds(report["period_s"])
    first = rows[0]["start"][:10] if rows else ""
    unit = (
        f"time (UTC, {period} each)" if slots and "-" in slots[0] else f"time ({first}, UTC, {period} each)"
    )
    stacked = [Series(name, name, [_share(row, name) for row in rows]) for name, _ in shown]
    tell = [[_tell(row, row["start"], name, what) for row in rows] for name, what in shown]
    most = max((row["sessions"] for row in rows), default=0)
    number = Series("sessions", "all", [float(row["sessions"]) for row in rows])
    numbers = [[f"{_when(row['start'])}: {row['sessions']:,} sessions" for row in rows]]
    return _section(
        "Over time",
        "What the cache did for the sessions that ended in each period, and below how many there were.",
        _legend(list(shown)),
        lambda width: charts.columns(
            width,
            HEIGHT,
            charts.shares("share of sessions (%)"),
            unit,
            slots,
            stacked,
            tell,
            "Shares of hits, refreshes and rebuilds over time",
        ),
        lambda width: charts.columns(
            width,
            LOW,
            charts.counts("sessions (number)", most),
            unit,
            slots,
            [number],
            numbers,
            "Sessions over time",
        ),
    )


def _share(row: Row, name: str) -> float:
    return row[name] / row["sessions"] if row["sessions"] else 0.0


def _when(start: str) -> str:
    return words.shown(start, words.MOMENT)


def _tell(row: Row, slot: str, name: str, said: str) -> str:
    what = f"{said} {words.percent(_share(row, name))} ({row[name]:,} of {row['sessions']:,})"
    timed = row.get(f"{name}_p50_ms")
    return f"{_when(slot)}: {what}" + (
        f", half of them within {words.milliseconds(timed)} ms" if timed is not None else ""
    )


def _times(report: Report) -> str:
    rows, slots = report["over_time"], words.periods(report)
    kinds = [(name, quantile) for name, _ in SHARES[:3] for quantile in ("p50", "p99")]
    series = [
        Series(
            name, name + (" far" if quantile == "p99" else ""), [row[f"{name}_{quantile}_ms"] for row in rows]
        )
        for name, quantile in kinds
    ]
    tell = [[_tell_time(row, name, quantile) for row in rows] for name, quantile in kinds]
    known = [value for each in series for value in each.values if value]
    legend = [(f"line {name}", what) for name, what in SHARES[:3]]
    return _section(
        "Time to open the maildrop",
        "From the lock until STAT can be answered. Half of the sessions are below the lines, "
        "all but one in a hundred below the dashed ones.",
        _legend([*legend, ("line ink", "p50"), ("line ink dashed", "p99")]),
        lambda width: charts.lines(
            width,
            HEIGHT,
            charts.logarithmic("time (ms, by powers of ten)", known),
            "time (UTC)",
            slots,
            series,
            tell,
            "Time to open a maildrop over time",
        ),
    )


def _tell_time(row: Row, name: str, quantile: str) -> str:
    taken = words.shown(row[f"{name}_{quantile}_ms"], words.MS)
    return f"{_when(row['start'])}: {name} {quantile} {taken} ms"


def _by_hour(report: Report) -> str:
    rows, shown = report["by_hour"], _shown_outcomes(report)
    slots = [row["hour"] for row in rows]
    most = max((row["sessions"] for row in rows), default=0)
    stacked = [Series(name, name, [float(row[name]) for row in rows]) for name, _ in shown]
    tell = [[_tell(row, f"{row['hour']}:00", name, what) for row in rows] for name, what in shown]
    return _section(
        "By hour of the day",
        "All days together.",
        _legend(list(shown)),
        lambda width: charts.columns(
            width,
            HEIGHT,
            charts.counts("sessions (number)", most),
            "hour of the day (UTC)",
            slots,
            stacked,
            tell,
            "Sessions by hour",
        ),
    )


# By size


def size(low: float, high: float | None) -> str:
    """What a size class is called."""
    if high is None:
        return f"{charts.short(low)}+"
    if high < 1000:
        return f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"
    return f"{charts.short(low)}-{charts.short(high + 1)}"


def _rebuilds(report: Report) -> str:
    rows = report["rebuild_times"]
    if not rows:
        return '<h2>What rebuilds cost</h2><p class="soft">There was none.</p>'
    edges = columns.SIZES
    levels = sorted({row["from_ms"] for row in rows})
    low, high = levels[0], max(row["to_ms"] for row in rows)
    every = _half_decades(low, high)
    totals = {row["messages_from"]: 0 for row in rows}
    for row in rows:
        totals[row["messages_from"]] += row["rebuilds"]
    cells = {
        (edges.index(row["messages_from"]), _nearest(every, row["from_ms"])): (
            row["rebuilds"] / totals[row["messages_from"]],
            f"{row['messages_from']:,} messages and more, "
            f"{charts.plain(row['from_ms'])} to {charts.plain(row['to_ms'])} ms: "
            f"{row['rebuilds']:,} of {totals[row['messages_from']]:,} rebuilds",
        )
        for row in rows
    }
    slots = [charts.short(edge) for edge in edges]
    slots[-1] += "+"
    return _section(
        "What rebuilds cost",
        "Each column is a class of maildrops, from that many messages on; "
        "the stronger the colour, the more of its rebuilds took that long.",
        '<div class="legend"><span>few<i class="scale"></i>all of the column\'s rebuilds</span></div>',
        lambda width: charts.heat(
            width,
            ("messages in the maildrop (number, from)", "time of a rebuild (ms)"),
            slots,
            [charts.plain(edge) for edge in every],
            cells,
            "Rebuild time by number of messages",
        ),
    )


def _half_decades(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low) * 2), round(math.log10(high) * 2)
    return [float(f"{10 ** (step / 2):.1g}") for step in range(first, last + 1)]


def _nearest(levels: list[float], value: float) -> int:
    return min(range(len(levels)), key=lambda number: abs(levels[number] - value))


def _saved(report: Report) -> str:
    rows = [row for row in report["saved"]["by_messages"] if row["saved_wall_ms"] is not None]
    if not rows:
        none = "No rebuild is in the log, so nothing is known of what one costs."
        return f'<h2>What the cache saved</h2><p class="soft">{none}</p>'
    took_s = [row["took_ms"] / 1000 for row in rows]
    without_s = [(row["took_ms"] + row["saved_wall_ms"]) / 1000 for row in rows]
    unit, of_it = words.unit_of(max(took_s + without_s))
    series = [
        Series(name, style, [value / of_it for value in values])
        for name, style, values in (("took", "hit", took_s), ("without", "rebuild", without_s))
    ]
    most = max(took_s + without_s) / of_it
    axis = charts.amounts(f"total time ({unit}), by messages in the maildrop", most)
    said = [[words.seconds(value) for value in values] for values in (took_s, without_s)]
    legend = [("hit", "opening maildrops took"), ("rebuild", "rebuilding each time would have taken")]
    return _section(
        "What the cache saved",
        html.escape(" ".join(words.saved_words(report["saved"])))
        + " An estimate, from the rebuilds in the log.",
        _legend(legend),
        lambda width: charts.bars(
            width,
            axis,
            [_narrowed(row["messages"]) for row in rows],
            series,
            said,
            "Time that the cache saved, by number of messages",
        ),
    )


def _narrowed(name: str) -> str:
    """A size class in few letters."""
    low, between, high = name.replace(",", "").replace(" and more", "-").partition("-")
    if not between:
        return name
    return size(float(low), float(high) if high else None)


# How long sessions last


def _durations(report: Report) -> str:
    rows, shown = report["durations"], [*_shown_outcomes(report), ("unopened", "not opened")]
    if not rows:
        return ""
    sixths = _sixths(rows)
    found: dict[tuple[int, str], int] = {
        (_sixth(row["from_ms"]), row["outcome"]): row["sessions"] for row in rows
    }
    shown = [each for each in shown if any(name == each[0] for _, name in found)]
    names = [_duration(10 ** (step / 6)) if step % 6 == 0 else "" for step in (*sixths, sixths[-1] + 1)]
    series = [
        Series(name, _style(name), [float(found.get((step, name), 0)) for step in sixths])
        for name, _ in shown
    ]
    tell = [
        [
            f"{_duration(10 ** (step / 6))} to {_duration(10 ** ((step + 1) / 6))}, "
            f"{what}: {found.get((step, name), 0):,} sessions"
            for step in sixths
        ]
        for name, what in shown
    ]
    most = max(sum(each.values[number] or 0.0 for each in series) for number in range(len(sixths)))
    return _section(
        "How long sessions lasted",
        "From the password to the end of the connection.",
        _legend([(_style(name), what) for name, what in shown]),
        lambda width: charts.columns(
            width,
            HEIGHT,
            charts.counts("sessions (number)", most),
            "duration (by powers of ten)",
            names,
            series,
            tell,
            "Sessions by duration",
            between=True,
        ),
    )


def _style(name: str) -> str:
    return "all" if name == "unopened" else name


def _sixth(value_ms: float) -> int:
    return round(math.log10(value_ms) * 6)


def _sixths(rows: list[Row]) -> list[int]:
    """All classes from the first to the last, whole decades."""
    found = [_sixth(row["from_ms"]) for row in rows]
    return list(range(min(found) // 6 * 6, (max(found) // 6 + 1) * 6))


def _duration(value_ms: float) -> str:
    if value_ms < 1000:
        return f"{value_ms:.3g} ms"
    return words.seconds(value_ms / 1000)
