"""
EDGE: how far a command has come, on standard error: a bar on a terminal, some lines elsewhere.

The bar is rich's (`pip install 'gpop[migration]'`); without rich there are lines on a terminal as well.
Executed by `gpop uidl`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_S = 10.0
REDRAW_EVERY_S = 0.1


class Progress:
    """As long as the context lasts; `advance` after each of `whose`. Starts no thread, since we fork."""

    def __init__(self, total: int, what: str, whose: str = "users") -> None:
        self._total = total
        self._what = what
        self._whose = whose
        self._done = 0
        self._problems = 0
        self._started = self._drawn = time.monotonic()
        self._bar: Any = _bar() if sys.stderr.isatty() else None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, problems="")
            self._bar.refresh()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._update_bar()
            self._bar.stop()

    def advance(self, is_problem: bool) -> None:
        """One is done."""
        self._done += 1
        self._problems += is_problem
        now = time.monotonic()
        if self._bar is not None:
            if now - self._drawn >= REDRAW_EVERY_S:
                self._drawn = now
                self._update_bar()
        elif now - self._drawn >= LINE_EVERY_S:
            self._drawn = now
            print(f"gpop uidl: {self._line(now)}", file=sys.stderr, flush=True)

    def _update_bar(self) -> None:
        problems = f"{self._problems} with problems" if self._problems else ""
        self._bar.update(self._task, completed=self._done, problems=problems)
        self._bar.refresh()

    def _line(self, now: float) -> str:
        rate = self._done / max(now - self._started, 0.001)
        problems = f", {self._problems} with problems" if self._problems else ""
        return f"{self._done} of {self._total} {self._whose}{problems}, {rate:.1f} a second"


def _bar() -> Any:
    """Return rich's bar, None without rich."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("[yellow]{task.fields[problems]}"),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=False,
    )
