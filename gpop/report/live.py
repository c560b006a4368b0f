"""
What `gpop report --follow` shows: a view on a terminal, drawn anew each time, or a line of JSON each time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpop.report import words
from gpop.report.columns import OUTCOMES
from gpop.report.follow import WINDOWS_S

Figures = dict[str, Any]
NAMES = {"minute": "last minute", "quarter": "last 15 min", "hour": "last hour"}


@contextlib.contextmanager
def view(as_json: bool) -> Iterator[Callable[[Figures], None]]:
    """Yield what takes the figures each time they are new."""
    console = Console(highlight=False, markup=False, emoji=False)
    if as_json:
        yield lambda figures: print(json.dumps(figures), flush=True)
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            yield lambda figures: live.update(drawn(figures), refresh=True)
    else:
        yield lambda figures: print(line(figures), flush=True)


def line(figures: Figures) -> str:
    """The figures of the last minute in a line, for a pipe or a file."""
    minute = figures["windows"]["minute"]
    counts = " ".join(f"{outcome}={minute[outcome]}" for outcome in OUTCOMES)
    troubles = f"refused={minute['refused']} errors={minute['errors']}"
    return f"{figures['at']} sessions={minute['sessions']} {counts} {troubles}"


def drawn(figures: Figures) -> Group:
    """The view: the windows beside each other, and the last warnings."""
    head = f"{words.clean(figures['log'])} at {words.shown(figures['at'], words.MOMENT)} UTC"
    head += f"; {words.counted(figures['lines'], 'line')}"
    head += f", {figures['damaged']:,} damaged" if figures["damaged"] else ""
    head += f", {words.counted(figures['rotations'], 'rotation')}" if figures["rotations"] else ""
    parts: list[Any] = [Text(head), _windows(figures["windows"])]
    if figures["last"]:
        parts.append(_last(figures["last"]))
    return Group(*parts, Text("Ctrl-C ends it.", "dim"))


def _windows(windows: dict[str, Figures]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in WINDOWS_S:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    shown = list(windows.values())
    table.add_row("sessions", *(f"{each['sessions']:,}" for each in shown))
    table.add_row("a second", *(f"{each['sessions'] / each['seconds']:.1f}" for each in shown))
    table.add_row("accounts", *(f"{each['accounts']:,}" for each in shown))
    for outcome, style in (("hit", "blue"), ("refresh", "yellow"), ("rebuild", "magenta"), ("off", "")):
        if outcome != "off" or any(each["off"] for each in shown):
            table.add_row(Text(outcome, style), *(_share(each[outcome], each["sessions"]) for each in shown))
    table.add_row("opening, p50 ms", *(words.shown(each["p50_ms"], words.MS) for each in shown))
    table.add_row("opening, p99 ms", *(words.shown(each["p99_ms"], words.MS) for each in shown))
    table.add_row("refused logins", *(f"{each['refused']:,}" for each in shown))
    table.add_row("errors", *(Text(f"{each['errors']:,}", "red" if each["errors"] else "") for each in shown))
    return table


def _share(count: int, of: int) -> str:
    return f"{count:,} ({words.percent(count / of) if of else '-'})"


def _last(lines: list[Figures]) -> Table:
    table = Table(
        title=Text("The last warnings and errors", "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("at (UTC)", "event", "user", "address", "what"):
        table.add_column(heading, no_wrap=heading == "at (UTC)", overflow="fold")
    for each in lines:
        cells = (each["at"][11:19], each["event"], each["user"], each["peer"], each["what"])
        table.add_row(*(Text(words.clean(cell), "red" if each["level"] == "error" else "") for cell in cells))
    return table
