"""
`gpop report LOG...`: the analysis of cache hits, and of all else that the log says, from the log.

For an administrator, on any machine that has the log. Executes `gpop.report`; needs the packages of the extra
`gpop[report]`, and says so where they are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpop import programs
from gpop.events import printable, printable_text

if TYPE_CHECKING:
    from gpop.report.store import Store

# Not /tmp, which may be memory; what lies there may be some hundred megabytes for a large log.
TEMPORARY = "/var/tmp"
AGO_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MISSING = "it needs {}, which is not there; `{}` brings it"
LONG_AGO, FAR_AWAY = datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1)


class Failed(Exception):
    """The command can't be understood, or lacks something; the text says what."""

    status = 2


class Broken(Failed):
    """It was understood, and something went wrong on the way."""

    status = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "logs", nargs="*", metavar="LOG", help="a log, a pattern, a Parquet archive, or - for standard input"
    )
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="only what was logged at that time or later"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="only what was logged before that time")
    parser.add_argument("--user", metavar="NAME", help="only what is about that user or account")
    parser.add_argument(
        "--top", type=_count, default=10, metavar="N", help="length of lists of users and addresses (10)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the report as JSON")
    form.add_argument("--csv", metavar="TABLE", help="print one table as CSV; --csv help names them")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page with charts")
    parser.add_argument(
        "--parquet", type=Path, metavar="FILE", help="write the lines as an archive, which is a LOG again"
    )
    parser.add_argument(
        "--follow", action="store_true", help="show what is being logged; with --json a line of it each time"
    )
    parser.add_argument(
        "--interval", type=_interval, default=2.0, metavar="S", help="with --follow: how often (2 s)"
    )
    parser.add_argument(
        "--temporary",
        type=Path,
        metavar="DIR",
        help=f"where temporary files go ($TMPDIR, or {TEMPORARY}): a tenth of the log",
    )


EPILOG = """\
TIME is a day (2026-11-25), a time (2026-11-25T10:00, in UTC unless it says +01:00), or how long ago it
is (30m, 12h, 7d).

  gpop report /var/log/gpop/gpop.log*                      tables on the terminal
  gpop report --html report.html --since 7d gpop.log*      a page to look at
  gpop report --user anna --json gpop.log | jq .cache
  gpop report --parquet 2026-11.parquet gpop.log*          an archive, a twentieth of the size
  gpop report --follow /var/log/gpop/gpop.log              what happens now

docs/report.md says what each figure means and what to do about it.
"""


def run(args: argparse.Namespace) -> int:
    """Make the report; 1 if a log could not be read, 2 if it was not to be understood what is wanted."""
    signal.signal(signal.SIGTERM, _end)
    try:
        if args.csv == "help":
            print(_table_names())
            return 0
        _check(args)
        with contextlib.suppress(BrokenPipeError):
            return _follow(args) if args.follow else _report(args)
        # Whoever read us has seen enough; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Failed as error:
        for line in str(error).splitlines():
            print(f"gpop report: {printable_text(line)}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130


def _end(*_: object) -> None:
    """SIGTERM: leave in order, so that the temporary files go."""
    raise SystemExit(143)


# What is wanted


def moment(text: str) -> datetime.datetime:
    """A time as UTC without a zone, from a day, a time, or how long ago."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text)
    try:
        if ago and ago[2] in AGO_S:
            return max(LONG_AGO, now - datetime.timedelta(seconds=float(ago[1]) * AGO_S[ago[2]]))
        found = datetime.datetime.fromisoformat(text)
        found = found.astimezone(datetime.UTC).replace(tzinfo=None) if found.tzinfo else found
        if LONG_AGO <= found < FAR_AWAY:
            return found
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no time: 2026-11-25, 2026-11-25T10:00, or how long ago: 30m, 12h, 7d"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def _interval(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.05 <= float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.05 to 3600")


def _table_names() -> str:
    from gpop.report.tables import TABLES

    return "\n".join(f"  {table.name:<20} {table.title}" for table in TABLES)


def _check(args: argparse.Namespace) -> None:
    """Raise Failed with all that can't be."""
    from gpop.report.tables import TABLES

    problems = [] if args.logs else ["name a LOG (`gpop log` says where it is), or - for standard input"]
    if args.csv is not None and args.csv not in [table.name for table in TABLES]:
        problems.append(f"--csv takes the name of a table, one of\n{_table_names()}")
    if args.since and args.until and args.since >= args.until:
        problems.append("--since is not before --until")
    if args.follow and (
        args.csv or args.html or args.parquet or args.since or args.until or len(args.logs) > 1
    ):
        problems.append("--follow takes one LOG, and of the other options --user, --json and --interval")
    if args.logs.count("-") > 1:
        problems.append("- (standard input) can be read only once")
    for path, begins in ((args.html, b"<!DOCTYPE html>"), (args.parquet, b"PAR1")):
        why = _why_not_there(path, begins) if path else ""
        problems += [f"{path}: {why}"] if why else []
    if problems:
        raise Failed("\n".join(problems))


def _why_not_there(path: Path, begins: bytes) -> str:
    """
    Say why a file that `begins` so can't be put there; "" if it can. It replaces none but of its own kind.

    In `--html gpop.log gpop.log.1` a word was forgotten, and /dev/null could be replaced by root, too.
    """
    if not path.absolute().parent.is_dir():
        return f"there is no folder {path.absolute().parent}"
    try:
        if not path.exists():
            return ""
        if not path.is_file():
            return "not a regular file, in whose place another could be put"
        with path.open("rb") as file:
            is_other = file.read(len(begins)) not in (b"", begins)
        return "something else is there; name another file, or remove that one first" if is_other else ""
    except OSError as error:
        return str(error.strerror)


# Doing it


def _report(args: argparse.Namespace) -> int:
    from gpop.report import figures, inputs

    try:
        logs = inputs.find(args.logs)
    except inputs.BadInput as error:
        raise Failed(str(error)) from error
    with _store(args) as store, _progress() as progress:
        _read(store, logs, progress)
        user = _as_logged(args.user)
        store.narrow(args.since, args.until, user)
        asked = {"since": args.since, "until": args.until, "user": user}
        report = figures.make(store, asked, args.top, progress("counting"))
        _write_files(store, report, args, progress)
        problems = [read for read in store.reads if read.problem]
    _print(report, args)
    for read in problems:
        print(f"gpop report: {printable_text(f'{read.name}: {read.problem}')}", file=sys.stderr)
    return 1 if problems else 0


@contextlib.contextmanager
def _store(args: argparse.Namespace) -> Iterator[Store]:
    """A store in a temporary folder, which is removed in the end."""
    from gpop.report.store import MissingExtra, Store

    place = args.temporary or os.environ.get("TMPDIR") or TEMPORARY
    try:
        import rich  # noqa: F401 - before an hour of reading, not after it

        with tempfile.TemporaryDirectory(prefix="gpop-report-", dir=place) as folder:
            store = Store(Path(folder))
            try:
                yield store
            except store.error as error:
                said = str(error).splitlines()[0]
                raise Broken(f"{said} (temporary files: {place}; --temporary names another place)") from error
            finally:
                store.close()
    except ImportError as error:
        raise Failed(MISSING.format(error.name, programs.installing("report"))) from error
    except MissingExtra as error:
        raise Failed(str(error)) from error
    except OSError as error:
        raise Broken(f"{error.filename or place}: {error.strerror}") from error


def _as_logged(user: str | None) -> str | None:
    """A name as it stands in the log: octets that are no text are escaped there."""
    return None if user is None else printable(os.fsencode(user))


def _read(store: Store, logs: list[Any], progress: Callable[[str], Callable[[float], None]]) -> None:
    total = sum(log.octets for log in logs) or 1
    done = 0
    show = progress("reading")
    for log in logs:
        store.read(log, lambda part, log=log, done=done: show((done + part * log.octets) / total))  # type: ignore[misc]
        done += log.octets


def _write_files(
    store: Store,
    report: dict[str, Any],
    args: argparse.Namespace,
    progress: Callable[[str], Callable[[float], None]],
) -> None:
    if args.parquet:
        lines = store.archive(args.parquet, progress("archiving"))
        print(f"gpop report: {args.parquet}: {lines:,} lines", file=sys.stderr)
    if args.html:
        from gpop.report import page

        try:
            _replace(args.html, page.drawn(report))
        except OSError as error:
            raise Broken(f"{args.html}: {error.strerror}") from error
        print(f"gpop report: {args.html} is written", file=sys.stderr)


def _replace(path: Path, text: str) -> None:
    """Put a file in place of the one that may be there: complete, or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("x", encoding="utf-8") as file:  # in /tmp nobody's link is followed
        try:
            file.write(text)
            file.flush()
            draft.rename(path)
        except BaseException:
            draft.unlink()
            raise


def _print(report: dict[str, Any], args: argparse.Namespace) -> None:
    from gpop.report import terminal, written

    if args.json:
        written.write_json(report, sys.stdout)
    elif args.csv:
        written.write_csv(report, args.csv, sys.stdout)
    elif not (args.html or args.parquet):
        from rich.console import Console

        terminal.show(report, Console(highlight=False, markup=False, emoji=False))
    sys.stdout.flush()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[float], None]]]:
    """Bars on standard error, if it is a terminal; what `progress("reading")` gives is told how far it is."""
    if not sys.stderr.isatty():
        yield lambda _: lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def bar(name: str) -> Callable[[float], None]:
            task = bars.add_task(name, total=1.0)
            return lambda part: bars.update(task, completed=min(1.0, part))

        yield bar


def _follow(args: argparse.Namespace) -> int:
    from gpop.report import inputs

    name = args.logs[0]
    if name != inputs.STANDARD_INPUT and not Path(name).is_file():
        raise Failed(f"{name}: there is no such file")
    with _store(args) as store:
        from gpop.report import follow, live

        with live.view(args.json) as show:
            return follow.run(store, name, _as_logged(args.user), args.interval, show)
