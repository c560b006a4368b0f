"""
A report as tables on a terminal, 80 columns or more. EDGE: writes to standard output, with rich.
"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gpop.report import words
from gpop.report.tables import BY_NAME, Column, Table

# The rest is for the page and for CSV.
SHOWN = (
    "outcomes",
    "reasons",
    "over_time",
    "by_hour",
    "by_messages",
    "saved",
    "polling_most",
    "never_hit",
    "largest",
    "slowest",
    "behaviours",
    "tls",
    "auth_sources",
    "mechanisms",
    "close_reasons",
    "refused_by_address",
    "refused_by_reason",
    "faults",
)
# A narrower terminal wraps cells.
WIDE = 170
# Rows of "over time" on a terminal: the last ones.
MOST_PERIODS = 24
STYLES = {"hit": "blue", "refresh": "yellow", "rebuild": "magenta", "error": "red"}


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report."""
    head(report, console)
    for name in SHOWN:
        rows = BY_NAME[name].of(report)
        if name == "over_time":
            named = zip(rows, words.periods(report), strict=True)
            rows = [row | {"start": start} for row, start in named][-MOST_PERIODS:]
        if name == "by_messages" and not report["sessions"]["sessions"]:
            continue  # size classes, and nothing in any of them
        if name == "by_hour":
            rows = [row for row in rows if row["sessions"]]
        if rows:
            console.print(drawn(BY_NAME[name], rows, console.width))
            if BY_NAME[name].note:
                console.print(Text(BY_NAME[name].note, "dim"))
            console.print()


def head(report: dict[str, Any], console: Console) -> None:
    """What the report is about, what the cache has saved, and what to look at."""
    for line in words.summary(report):
        console.print(Text(line))
    for damaged in report["report"]["damaged"]["first"][:3]:
        place = f"  {words.clean(damaged['file'], 1000)}:{damaged['line']}: "
        console.print(
            Text(place + words.clean(damaged["text"], max(20, console.width - len(place)))), style="dim"
        )
    for finding in report["findings"]:
        says = (
            Text("! ", "bold yellow")
            + Text(words.clean(finding["says"], 200))
            + Text(f" ({finding['see']})", "dim")
        )
        console.print(says)
    if report["findings"]:
        console.print(
            Text("What to do about these is in docs/report.md, under the headings in brackets.", "dim")
        )
    console.print()


def drawn(table: Table, rows: list[dict[str, Any]], width: int) -> RichTable:
    """A table for a terminal of that width."""
    columns = [column for column in table.columns if column.narrow or width >= WIDE]
    # The last ones go rather than that rich cuts a figure off: "319.6" for "319.6 kB".
    while len(columns) > 1 and _needed([_least(column, rows) for column in columns]) > width:
        columns.pop()
    result = RichTable(
        title=Text(table.title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        number = column.kind in words.NUMBERS
        result.add_column(
            Text(column.heading),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=_least(column, rows),
        )
    for row in rows:
        result.add_row(*(_cell(row.get(column.key), column.kind) for column in columns))
    return result


def _needed(widths: list[int]) -> int:
    """What a table of these columns takes: two blanks between them, and the edges."""
    return sum(widths) + 2 * len(widths)


def _least(column: Column, rows: list[dict[str, Any]]) -> int:
    """A width at which figures are whole, and names are not taken apart letter by letter."""
    longest = max((len(words.shown(row.get(column.key), column.kind)) for row in rows), default=0)
    if column.kind in words.NUMBERS:
        return max(longest, *(len(line) for line in column.heading.splitlines()))
    return longest if column.kind == words.MOMENT else min(longest, 16)


def _cell(value: Any, kind: str) -> Text:
    style = STYLES.get(value, "") if isinstance(value, str) else ""
    return Text(words.shown(value, kind), style)
