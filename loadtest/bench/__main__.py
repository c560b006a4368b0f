"""
Side by side: gpop, and whichever of Dovecot and Courier is installed, on the same mail and accounts.

    python -m loadtest.bench --quick
    python -m loadtest.bench --json figures.json --plot figures.svg
    python -m loadtest.bench --servers gpop,gpop@HEAD~5,dovecot-tuned --scenarios poll --sizes 20 --rounds 7
    python -m loadtest.bench --from figures.json --plot figures.svg
    python -m loadtest.bench --pam unix --servers gpop,gpop-nocache,dovecot-secure --scenarios poll --sizes 20

Prints CPU milliseconds per session of the whole server, children that ended included, as medians of
interleaved rounds, and their ratios. Makes its own accounts and mail in a temporary folder, starts the
servers on loopback, verifies every reply, ends everything and removes it. Run it from the top of the tree,
with the Python that gpop is installed for; as root, or there is gpop alone, without jails.
docs/performance.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from loadtest.bench import kinds, maildrops, plot, report
from loadtest.bench.accounts import STACKS, Accounts
from loadtest.bench.rounds import TITLES, Bench, labels_of
from loadtest.bench.servers import NotHere, Server

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
        help=f"of {', '.join(kinds.KINDS)}, gpop@REV (default: all that are here but gpop-nocache)",
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
    parser.add_argument("--quick", action="store_true", help="a first look in less than 20 seconds")
    parser.add_argument(
        "--pam",
        choices=STACKS,
        default="",
        help="accounts from PAM instead of a passwd-file: accepting everybody, or Debian's hashes",
    )
    parser.add_argument("--meter", choices=("auto", "cgroup2", "cgroup1", "proc"), default="auto")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to make accounts and mail")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the polls (needs matplotlib)")
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
    if min(*options.sizes, options.rounds, options.concurrency, 1) < 1 or options.seconds <= 0:
        parser.error("sizes, rounds, seconds and concurrency are more than 0")
    if options.plot and not plot.is_possible():
        parser.error(plot.MISSING)
    if options.plot and "poll" not in options.scenarios:
        parser.error("--plot draws polls, so --scenarios has to have them")
    if options.pam and not maildrops.ROOT:
        parser.error("--pam needs root")


def chosen(options: argparse.Namespace) -> dict[str, type[Server]]:
    """
    Return the servers to measure, by name.

    Raises:
        NotHere: one that was asked for by name can't be measured.
    """
    found = {}
    usual = str(QUICK["servers"]).split(",") if options.quick else kinds.USUAL
    for name in options.servers.split(",") if options.servers else usual:
        try:
            kind = kinds.kind_of(name)
            kind.check()
            found[name] = kind
        except NotHere as reason:
            if options.servers:
                raise
            print(f"without {name}: {reason}", file=sys.stderr)
    return found


def run(options: argparse.Namespace) -> report.Results:
    """
    Make everything, measure, and remove everything.

    Raises:
        NotHere: a server that was asked for does not run.
    """
    os.umask(0o022)
    wanted = chosen(options)
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="gpop-bench-", dir=options.folder))
        stack.callback(maildrops.remove, folder)
        folder.chmod(0o755)  # the mail users have to get through
        servers = [kind(name, folder, Accounts(options.pam)) for name, kind in wanted.items()]
        labels = list(dict.fromkeys(s for each in options.scenarios for s in labels_of(each, options.sizes)))
        profiles = [maildrops.profile(label, options.concurrency) for label in labels]
        messages = sum(each.count * each.accounts for each in profiles)
        progress(f"making {messages:,} messages for each of {len(servers)} servers")
        post = maildrops.Post(folder, profiles)
        for server in servers:
            post.fill(server.tree)
        for server in servers:
            stack.callback(server.stop)
            server.start(options.meter)
        bench = Bench(list(servers), post, options.rounds, options.seconds, options.concurrency)
        stack.callback(bench.close)
        return measure(options, wanted, servers, bench)


def measure(
    options: argparse.Namespace, wanted: dict[str, type[Server]], servers: list[Server], bench: Bench
) -> report.Results:
    about = {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "machine": report.machine(),
        "load_before": os.getloadavg()[0],
        "servers": list(wanted),
        "versions": {kind.__name__: kind.check() for kind in wanted.values()},
        "accounts": f"PAM ({options.pam})" if options.pam else "passwd-file",
        "meter": servers[0].meter.kind,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "concurrency": options.concurrency,
        "root": maildrops.ROOT,
    }
    results = report.Results(about, [])
    progress("opening every maildrop twice")
    bench.prime([str(size) for size in options.sizes])
    for scenario in options.scenarios:
        for label in labels_of(scenario, options.sizes):
            if scenario == "retr":
                bench.prime_retr(label)
            progress(f"{scenario} {label}")
            results.add(bench.run(scenario, label))
    about["load_after"] = os.getloadavg()[0]
    progress("removing everything")
    return results


def progress(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    # An ordinary end, so that servers and folders are gone after it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        results = report.Results.read(options.read) if options.read else run(options)
    except (NotHere, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print("\n".join(report.tables(results)))
    if options.json:
        results.write(options.json)
    if options.plot:
        plot.draw(results, options.plot)
    return 1 if results.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
