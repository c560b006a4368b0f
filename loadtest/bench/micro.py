"""
All micro-benchmarks: one hot part each, by itself.

    python -m loadtest.bench.micro [--only forks,sessions,frames,...] [--sizes N,...] [--json FILE]

forks      a fork, and giving up root in it, from interpreters with little and with much loaded
sessions   whole sessions on a hit, one after the other: fork, jail, lock, answers, end
frames     a login's frames: encode, decode, over a socket
statcache  opening a maildrop: hit, refresh, rebuild
encoder    messages into wire form

CPU time, best of several rounds. To compare two versions run both in turn, several times.
"""

from __future__ import annotations

import argparse
import gc
import json
import marshal
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpop.config import reading
from loadtest.bench import encoder, frames, statcache
from loadtest.bench.maildrops import FIRST_UID

FORKS = 300
PARTS = ("forks", "sessions", "frames", "statcache", "encoder")
# Of everything that `encoder` compares, what gpop uses.
ENCODERS = ("encode", "encode_plain", "measure")
FORKER = Path(__file__).with_name("forker.py")
SESSIONS = Path(__file__).with_name("sessions.py")


def forks() -> dict[str, dict[str, float]]:
    """Cost of one fork by interpreter and what the child does."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gpop-bench-") as scratch:
        maildir = Path(scratch) / "Maildir"
        maildir.mkdir()
        Path(scratch).chmod(0o755)
        uid = FIRST_UID if os.geteuid() == 0 else os.geteuid()
        os.chown(maildir, uid, -1)
        for variant in ("bare", "lean", "heavy"):
            command = [sys.executable, "-I", "-S", str(FORKER), variant, scratch, str(uid), str(FORKS)]
            environment = os.environ | {"LD_BIND_NOW": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            for what, cost in json.loads(done.stdout).items():
                figures[f"{variant}: {what}"] = cost
    return figures


def sessions(sizes: list[int]) -> dict[str, dict[str, float]]:
    """Cost of one session by size of its maildrop and what it is asked for."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gpop-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        settings = folder / "settings"
        settings.write_bytes(marshal.dumps(_session_settings(folder)))
        uid = FIRST_UID if os.geteuid() == 0 else os.geteuid()
        for size in sizes:
            home = folder / str(size)
            bench = statcache.Bench(home / "Maildir", size)
            bench.fill(statcache.CLAIM)
            os.close(bench.dir_fd)
            for path in (home, *home.rglob("*")):
                os.chown(path, uid, uid if os.geteuid() == 0 else -1)
            command = [sys.executable, "-I", "-S", str(SESSIONS), str(settings), str(home), str(uid)]
            environment = os.environ | {"LD_BIND_NOW": "1"}
            done = subprocess.run(
                [*command, str(FORKS)], stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            for what, cost in json.loads(done.stdout).items():
                figures[f"{size:,} messages: {what}"] = cost
    return figures


def _session_settings(folder: Path) -> dict[str, Any]:
    """What the broker hands its sessions if the config says nothing special."""
    passwd = folder / "passwd"
    passwd.touch(0o600)
    config = folder / "gpop.toml"
    config.write_text(
        'server.user = "nobody"\naccounts.first_valid_uid = 1\naccounts.first_valid_gid = 1\n'
        f'[[accounts.sources]]\ntype = "passwd-file"\npath = "{passwd}"\n'
    )
    return reading.load(str(config)).as_plain()["session"]


def openings(sizes: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of opening a maildrop, by size and outcome."""
    gc.disable()  # as in the broker, and so in every session
    try:
        return {
            str(size): {what: cost for what, cost, _ in statcache.measured(None, size, rounds)}
            for size in sizes
        }
    finally:
        gc.enable()


def encoders() -> dict[str, dict[str, float]]:
    """MB/s by kind of text."""
    return {kind: {name: row[name] for name in ENCODERS} for kind, row in encoder.run().items()}


def show(figures: dict[str, Any]) -> None:
    if "forks" in figures:
        print(f"{'forks':<42} {'µs CPU':>8} {'faults: child':>14} {'parent':>7}")
        for what, cost in figures["forks"].items():
            faults = f"{cost['child_faults']:>14.0f} {cost['parent_faults']:>7.0f}"
            print(f"{what:<42} {cost['cpu_us']:>8.0f} {faults}")
    if "sessions" in figures:
        print(f"\n{'sessions':<42} {'µs CPU':>8} {'faults':>7} {'fork: µs':>9} {'faults':>7}")
        for what, cost in figures["sessions"].items():
            session = f"{cost['cpu_us']:>8.0f} {cost['faults']:>7.0f}"
            print(f"{what:<42} {session} {cost['parent_us']:>9.0f} {cost['parent_faults']:>7.0f}")
    if "frames" in figures:
        print(f"\n{'frames':<42} {'µs CPU':>8}")
        for what, cost in figures["frames"].items():
            print(f"{what:<42} {cost:>8.2f}")
    for size, row in figures.get("statcache", {}).items():
        print(f"\n{f'opening a maildrop of {int(size):,} messages':<42} {'µs CPU':>8}")
        for what, cost in row.items():
            print(f"{what:<42} {cost:>8.0f}")
    if "encoder" in figures:
        print(f"\n{'encoder, MB/s':<42} " + " ".join(f"{name:>12}" for name in ENCODERS))
        for kind, row in figures["encoder"].items():
            print(f"{kind:<42} " + " ".join(f"{row[name]:>12,.0f}" for name in ENCODERS))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,...")
    parser.add_argument("--sizes", default="20,1000,10000", metavar="N,...", help="of maildrops")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of openings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = set(chosen) - set(PARTS)
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    sizes = [int(word) for word in options.sizes.split(",")]
    measures = {
        "forks": forks,
        "sessions": lambda: sessions(sizes),
        "frames": frames.run,
        "statcache": lambda: openings(sizes, options.rounds),
        "encoder": encoders,
    }
    figures: dict[str, Any] = {part: measures[part]() for part in PARTS if part in chosen}
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
