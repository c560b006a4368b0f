"""
What `gpop uidl import` says: a line for each Maildir or user, what is in doubt below it, and a last line.

What a process reported is its Maildir's owner's word: printed as text, and never the end of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from gpop.commands.uidl_servers import complain
from gpop.events import printable
from gpop.migration import plan
from gpop.migration.each_user import Report, orderly_end
from gpop.migration.plan import Plan, Verdict

# As much as one Maildir's process may say; its report is bounded.
MAX_LINES_OCTETS = 700 * 1024
COLUMNS = (plan.TAKEN, plan.PRESENT, plan.DEFAULT)


def report_of(made: Plan, verbose: bool, missing: str = "") -> Report:
    """
    Return what a process says of a plan: counts, and a line for each doubt, or for each message.

    `missing`: what the other server has for everybody whom it has told an id, and has not for this user.
    """
    lines: list[str] = []
    left = MAX_LINES_OCTETS
    for verdict in made.verdicts:
        if verdict.reason or verbose:
            line = _line(verdict)
            left -= len(line)
            if left < 0:
                lines.append("... and more")
                break
            lines.append(line)
    counts = made.counts()
    return {
        "counts": [counts[column] for column in COLUMNS],
        "without_file": made.without_file,
        "doubts": len(made.doubts),
        "lines": lines,
        "missing": missing,
    }


def _line(verdict: Verdict) -> str:
    base = printable(verdict.base)
    if verdict.reason:
        shown = f" {printable(verdict.unique_id)}" if verdict.unique_id else ""
        return f"  doubt: {base}: {verdict.what}{shown}: {verdict.reason}"
    return f"  {base}: {verdict.what} {printable(verdict.unique_id)}".rstrip()


class Table:
    """
    A line per Maildir, or whatever `what` is, and what is in doubt below it.

    Attributes:
        problems: how many have one.
        missing: of how many the other server has nothing that could be kept.
    """

    def __init__(self, args: argparse.Namespace, what: str = "Maildir") -> None:
        self.problems = self.missing = 0
        self._what = what
        self._dry_run = args.dry_run
        self._done = 0
        self._ids = 0
        titles = ("would take" if args.dry_run else "taken", "there", "default", "no file", "doubts")
        print("".join(f"{title:>11}" for title in titles) + f"  {what}", flush=True)

    def add(self, maildir: str, report: Report) -> bool:
        """Print a Maildir's line; returns whether it has a problem."""
        maildir = printable(os.fsencode(maildir), 4096)
        try:
            is_problem = self._add(maildir, report)
        except (KeyError, TypeError, ValueError):  # whoever owns the Maildir owned that process
            print(f"{'':55}  {maildir}: its process said nonsense")
            is_problem = True
        self.problems += is_problem
        return is_problem

    def _add(self, maildir: str, report: Report) -> bool:
        if "failed" in report:
            print(f"{'failed':>11}{'':44}  {maildir}: {printable(str(report['failed']).encode(), 1000)}")
            return True
        taken, present, default = map(int, report["counts"])
        doubts = int(report["doubts"])
        taken = 0 if doubts else taken
        counts = (taken, present, default, int(report["without_file"]), doubts)
        missing = printable(str(report["missing"]).encode(), 100)
        said = f"  (no {missing}: nothing to keep)" if missing else ""
        print("".join(f"{count:>11}" for count in counts) + f"  {maildir}{said}")
        for line in report["lines"]:
            print(printable(str(line).encode(), 1000))
        if doubts:
            print(f"  {maildir} is left as it is")
        self.missing += bool(missing)
        self._done += not doubts and not missing
        self._ids += taken
        return doubts > 0

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """As long as reports come: what ends that early is said, and is a problem."""
        try:
            with orderly_end():
                yield
        except (KeyboardInterrupt, OSError) as error:
            why = f" ({error})" if isinstance(error, OSError) else ""
            complain(f"ended{why}; what is done is done, and the same command goes on from here")
            self.problems += 1

    def finish(self, total: int) -> None:
        done = "could be imported" if self._dry_run else "imported"
        summary = f"{self._done} of {total} {self._what}s {done}, {self._ids} unique-ids"
        summary += f"; {self.missing} with nothing to keep" if self.missing else ""
        print(f"{summary}; {self.problems} with problems")
        sys.stdout.flush()
