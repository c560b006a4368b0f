"""
A report as one HTML page that needs nothing else: no script, no file, no network.

All that came from a log goes through `escaped`: names are hostile input.
"""

from __future__ import annotations

import html
from importlib.resources import files
from typing import Any

from gpop.report import charts, pictures, words
from gpop.report.tables import BY_NAME, TABLES, Table
from gpop.report.words import NUMBERS, TEXT

# Tables that stand open; the rest is folded away under its chart or heading.
OPEN = (
    "outcomes",
    "reasons",
    "polling_most",
    "never_hit",
    "largest",
    "slowest",
    "behaviours",
    "tls",
    "auth_sources",
    "close_reasons",
    "refused_by_address",
    "refused_by_reason",
    "faults",
)
Report = dict[str, Any]
# Nothing is loaded and nothing runs, whatever a name in a log looks like.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NOTHING = "No line of gpop's log is in there, or none is left of what was asked for."


def drawn(report: Report) -> str:
    """The page."""
    about = report["report"]
    body = [_head(report), _tiles(report), _findings(report), *pictures.sections(report, _folded)]
    body += [_section(table, report) for table in TABLES if table.name in OPEN]
    body += [_folded("mechanisms", report), _folded("events", report), _inputs(about), _foot(about)]
    style = files("gpop.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<link rel="icon" href="data:,"><title>gpop report</title><style>\n{style}</style></head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def escaped(text: str, most: int = words.MAX_SHOWN) -> str:
    """Text from a log as HTML shows it: no markup, no control characters, no longer than a cell should be."""
    return html.escape(words.clean(text, most), quote=True)


def _head(report: Report) -> str:
    about = report["report"]
    if not about["lines"]:
        return f"<h1>gpop report</h1><p>{NOTHING}</p>"
    first, last = (words.shown(about[name], words.MOMENT) for name in ("first", "last"))
    asked = [f"user {escaped(about['user'])}"] if about["user"] else []
    said = [f"{first} to {last} UTC", words.counted(about["lines"], "line"), *asked]
    return f'<h1>gpop report</h1><p class="soft">{" · ".join(said)}</p>'


def _tiles(report: Report) -> str:
    cache, sessions, saved = report["cache"], report["sessions"], report["saved"]
    total = sum(cache.values())
    if not total:
        return ""
    found = [("hit", words.percent(cache["hit"] / total), "hits")]
    found += [("refresh", words.percent(cache["refresh"] / total), "refreshes")]
    found += [("rebuild", words.percent(cache["rebuild"] / total), "rebuilds")]
    found += [("off", words.percent(cache["off"] / total), "without a cache")] if cache["off"] else []
    found += [
        ("", _number(sessions["sessions"]), "sessions"),
        ("", _number(sessions["accounts"]), "accounts"),
    ]
    if saved["wall_ms"] is not None:
        found += [("", words.seconds(max(0.0, saved["wall_ms"]) / 1000), "of waiting saved")]
        found += [("", words.seconds(max(0.0, saved["cpu_ms"]) / 1000), "of CPU time saved (about)")]
    found += [("", words.octets(sessions["octets_sent"]), "sent")]
    tiles = [
        f'<div class="tile {style}"><b>{value}</b><span>{name}</span></div>' for style, value, name in found
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _number(count: int) -> str:
    """A number that fits into a tile; what it is exactly stands in the tables."""
    return f"{count:,}" if count < 100_000 else charts.short(count)


def _findings(report: Report) -> str:
    if not report["findings"]:
        return ""
    items = [
        f"<li>{escaped(each['says'], 200)} "
        f'<span class="soft">docs/report.md: {escaped(each["see"])}</span></li>'
        for each in report["findings"]
    ]
    damaged = _damaged(report["report"]["damaged"])
    return f'<h2>To look at</h2><ul class="findings">{"".join(items)}</ul>{damaged}'


def _damaged(damaged: dict[str, Any]) -> str:
    if not damaged["lines"]:
        return ""
    rows = [
        [escaped(each["file"]), f"{each['line']:,}", escaped(each["text"], 120)] for each in damaged["first"]
    ]
    table = _grid(["file", "line", "begins with"], ["w", "n", "w"], rows)
    return f"<details><summary>The first damaged lines</summary>{table}</details>"


def _section(table: Table, report: Report) -> str:
    rows = table.of(report)
    if not rows:
        return ""
    note = f'<p class="soft">{html.escape(table.note)}</p>' if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2>{note}{_table(table, rows)}"


def _folded(name: str, report: Report) -> str:
    table = BY_NAME[name]
    rows = table.of(report)
    if not rows:
        return ""
    return (
        f"<details><summary>{html.escape(table.title)}: the figures</summary>{_table(table, rows)}</details>"
    )


def _table(table: Table, rows: list[dict[str, Any]]) -> str:
    styles = [_style(column.kind) for column in table.columns]
    rows_shown = [
        [html.escape(words.shown(row.get(column.key), column.kind)) for column in table.columns]
        for row in rows
    ]
    return _grid([html.escape(column.heading) for column in table.columns], styles, rows_shown)


def _grid(headings: list[str], styles: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f'<th class="{style}">{each}</th>' for each, style in zip(headings, styles, strict=True))
    lines = [
        "".join(f'<td class="{style}">{cell}</td>' for cell, style in zip(row, styles, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _style(kind: str) -> str:
    if kind in NUMBERS:
        return "n"
    return "w" if kind == TEXT else "m"


def _inputs(about: Report) -> str:
    rows = [
        [
            escaped(each["name"], 200),
            words.octets(each["octets"]),
            f"{each['lines']:,}",
            escaped(each["problem"] or "", 200),
        ]
        for each in about["inputs"]
    ]
    table = _grid(["log", "size", "lines", "problem"], ["w", "n", "n", "w"], rows)
    return f"<details><summary>What was read</summary>{table}</details>"


def _foot(about: Report) -> str:
    made = f"Made {html.escape(about['made'])} by gpop {html.escape(about['gpop'])}."
    units = "Times are UTC, quantiles at most 1 % too high."
    more = "What each figure means and what to do about it: docs/report.md."
    return f'<footer class="soft">{made} {units} {more}</footer>'
