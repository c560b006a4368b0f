"""
Side by side: gpop, and whichever of Dovecot and Courier is installed, on the same mail and accounts.

    python -m loadtest.bench --quick
    python -m loadtest.bench --json figures.json --plot figures.svg
    python -m loadtest.bench --servers gpop,gpop@HEAD~5,dovecot-tuned --scenarios poll --sizes 20 --rounds 7
    python -m loadtest.bench --from figures.json --plot figures.svg
    python -m loadtest.bench --pam unix --servers gpop,gpop-nocache,dovecot-secure --scenarios poll --sizes 20

Prints CPU milliseconds per session of the whole server, children that ended included, as medians of
interleaved rounds, their ratios, and whether those are what gpop is meant to reach; then memory, latency and
what more cores bring. Makes its own accounts and mail in a temporary folder, starts the
servers on loopback, verifies every reply, ends everything and removes it. Run it from the top of the tree,
with the Python that gpop is installed for; as root, or there is gpop alone, without jails.
docs/performance.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loadtest.bench import kinds, maildrops, plot, report
from loadtest.bench.accounts import STACKS
from loadtest.bench.ending import Interrupted, ending
from loadtest.bench.results import Results
from loadtest.bench.run import chosen, run
from loadtest.bench.scenarios import TITLES
from loadtest.bench.servers import NotHere

QUICK = {
    "servers": "gpop,dovecot-tuned,dovecot-secure",
    "sizes": "20,1000",
    "rounds": 3,
    "seconds": 0.3,
    "scenarios": "poll",
}
USUAL = {"sizes": "20,1000,10000,100000", "rounds": 5, "seconds": 1.5, "scenarios": ",".join(TITLES)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--servers",
        metavar="NAME,...",
        help=f"of {', '.join(kinds.KINDS)}, gpop@REV "
        "(default: all that are here but gpop-nocache and gpop-metrics)",
    )
    parser.add_argument("--sizes", metavar="N,...", help=f"messages per maildrop (default: {USUAL['sizes']})")
    parser.add_argument("--scenarios", metavar="NAME,...", help=f"of {USUAL['scenarios']} (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default: {USUAL['rounds']}")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"load per cell and round (default: {USUAL['seconds']})"
    )
    parser.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="sessions at once (default: 4)"
    )
    parser.add_argument(
        "--idle-connections",
        type=int,
        default=5000,
        metavar="N",
        help="before login, for memory, where a server holds so many (default: 5000)",
    )
    parser.add_argument(
        "--idle-sessions", type=int, default=100, metavar="N", help="for memory (default: 100)"
    )
    parser.add_argument("--quick", action="store_true", help="a first look in less than 20 seconds")
    parser.add_argument(
        "--pam",
        choices=STACKS,
        default="",
        help="accounts from PAM instead of a passwd-file: accepting everybody, or Debian's hashes",
    )
    parser.add_argument("--meter", choices=("auto", "cgroup2", "cgroup1", "proc"), default="auto")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to make accounts and mail")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep all figures there, after each scenario and size"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="draw the polls, .svg or .png (needs matplotlib)"
    )
    parser.add_argument("--from", dest="read", type=Path, metavar="FILE", help="show the figures of a run")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else USUAL).items():
        if name != "servers" and getattr(options, name) is None:
            setattr(options, name, value)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Say what is wrong before anything is made."""
    try:
        options.sizes = [int(word) for word in options.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes: {options.sizes!r} is not a list of numbers")
    options.scenarios = options.scenarios.split(",")
    for name in options.scenarios:
        if name not in TITLES:
            parser.error(f"--scenarios: {name!r}; there are {', '.join(TITLES)}")
    counts = (options.rounds, options.concurrency, options.idle_connections, options.idle_sessions)
    if min(*options.sizes, *counts) < 1 or options.seconds <= 0:
        parser.error("sizes, rounds, seconds, concurrency and what is idle are more than 0")
    if options.plot and not plot.is_possible():
        parser.error(plot.MISSING)
    if options.plot and "poll" not in options.scenarios:
        parser.error("--plot draws polls, so --scenarios has to have them")
    if options.pam and not maildrops.ROOT:
        parser.error("--pam needs root")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    ending.heed()
    results = None

    def keep(so_far: Results) -> None:
        nonlocal results
        results = so_far
        if options.json:
            so_far.write(options.json)

    status = 0
    try:
        if options.read:
            results = Results.read(options.read)
        else:
            usual = str(QUICK["servers"]).split(",") if options.quick else kinds.USUAL
            names = options.servers.split(",") if options.servers else usual
            results = run(options, chosen(names, bool(options.servers)), keep)
    except (NotHere, OSError, ValueError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        status = 2
    except Interrupted as interrupted:
        print(f"bench: {interrupted}", file=sys.stderr)
        status = 128 + interrupted.number
    if results:
        print("\n".join(report.tables(results)))
        if options.plot and "poll" in results.scenarios():
            plot.draw(results, options.plot)
    ending.ignore()
    return status or (1 if results and results.failed() else 0)


if __name__ == "__main__":
    sys.exit(main())
