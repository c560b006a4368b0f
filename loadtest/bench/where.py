"""
Where the time of a poll goes: a table by process of gpop, from samples that perf takes (as root).

    python -m loadtest.bench.where [--seconds S] [--scenario poll|stat] [--json FILE]

perf itself makes everything dearer, page faults most: read the columns as shares. It looks at the whole
machine, and takes other processes of Python for sessions: run none. It is Debian's package linux-perf.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from loadtest.bench import maildrops
from loadtest.bench.kinds import Gpop
from loadtest.bench.servers import NotHere
from loadtest.bench.stages import Ground, Stage, ground

SAMPLES_PER_SECOND = 5000
CONCURRENCY = 4
COLUMNS = ("page faults", "fork", "exit", "system calls", "Python", "switches")
ROWS = ("front", "auth", "broker", "session")

# What a stack goes by: the first of these that has one of its functions.
PLACES = {
    "page faults": {"asm_exc_page_fault", "exc_page_fault"},
    "exit": {"do_exit", "do_group_exit", "exit_mmap"},
    "fork": {"kernel_clone", "copy_process", "ret_from_fork", "ret_from_fork_asm", "schedule_tail"},
    "system calls": {"do_syscall_64", "entry_SYSCALL_64_after_hwframe", "el0_svc"},
}

Sample = tuple[str, int, list[str], bool]


def samples(lines: Iterable[str]) -> Iterator[Sample]:
    """Yield command, pid, functions of the stack, innermost first, and whether that one is the kernel's."""
    command, pid, in_kernel = "", 0, False
    stack: list[str] = []
    for line in (*lines, ""):
        if not line.strip():
            if stack:
                yield command, pid, stack, in_kernel
            stack = []
        elif not line[0].isspace():
            command, _, number = line.rstrip().rpartition(" ")
            command, pid = command.strip(), int(number)
        else:
            _, _, rest = line.strip().partition(" ")
            function, _, binary = rest.rpartition(" (")
            if not stack:
                in_kernel = "[kernel" in binary or "[guest.kernel" in binary
            stack.append(function.partition("+")[0])


def column_of(stack: list[str], in_kernel: bool) -> str:
    functions = set(stack)
    for column, names in PLACES.items():
        if functions & names:
            return column
    return "switches" if in_kernel else "Python"


def table_of(lines: Iterable[str], rows: dict[int, str], command: str) -> dict[str, Counter[str]]:
    """Count samples by row and column; processes that are in no row, and run this command, are sessions."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, pid, stack, in_kernel in samples(lines):
        if pid in rows or name == command:
            counts[rows.get(pid, "session")][column_of(stack, in_kernel)] += 1
    return counts


def measure(stage: Stage, scenario: str, seconds: float) -> tuple[dict[str, Counter[str]], int]:
    """Return the samples, and how many sessions they are of."""
    server = stage.servers[0]
    assert isinstance(server, Gpop)
    drops = server.tree.of("20")
    for _ in range(2):
        stage.load.run(server.port, "poll", drops, CONCURRENCY, 0, 10 * len(drops))
    rows = {pid: kind for kind in ("front", "auth") for pid in server.processes(kind)}
    rows[server.pid] = "broker"
    rows |= dict.fromkeys((os.getpid(), stage.load.process.pid), "the bench")
    broker = Path(f"/proc/{server.pid}/comm").read_text().strip()
    kept = str(stage.folder / "perf.data")
    # Of the whole machine: of one process and its children it leaves out their ends.
    command = [
        "perf",
        "record",
        "-q",
        "-e",
        "cpu-clock",
        "-F",
        str(SAMPLES_PER_SECOND),
        "-g",
        "-a",
        "-o",
        kept,
    ]
    perf = subprocess.Popen(command)
    try:
        time.sleep(0.5)
        found = stage.load.run(server.port, scenario, drops, CONCURRENCY, seconds)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
    script = subprocess.run(
        ["perf", "script", "-i", kept, "-F", "comm,pid,ip,sym,dso"],
        capture_output=True,
        text=True,
        check=True,
    )
    counts = table_of(script.stdout.splitlines(), rows, broker)
    return {row: counts[row] for row in ROWS}, found.sessions


def report(counts: dict[str, Counter[str]], sessions: int) -> str:
    """Return the table: microseconds per session, as sampled."""
    each = 1e6 / SAMPLES_PER_SECOND / sessions
    lines = ["".join(f"{name:>14}" for name in ("µs/session", *COLUMNS, "all"))]
    for row in ROWS:
        cells = [counts[row][column] * each for column in COLUMNS]
        lines.append(f"{row:>14}" + "".join(f"{cell:14,.0f}" for cell in (*cells, sum(cells))))
    sums = [sum(counts[row][column] for row in ROWS) * each for column in COLUMNS]
    lines.append(f"{'all':>14}" + "".join(f"{cell:14,.0f}" for cell in (*sums, sum(sums))))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.where", description=__doc__.split("\n")[1]
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--scenario", choices=("poll", "stat"), default="poll")
    parser.add_argument("--json", type=Path, help="keep the counts there")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("perf"):
        print("where: this takes root, and perf (Debian: linux-perf)", file=sys.stderr)
        return 2

    def make(folder: Path) -> Ground:
        return Ground(folder, {"gpop": Gpop}, 1, options.seconds, CONCURRENCY, 0, 0, "", "auto")

    try:
        with ground(make, None) as place, place.stage() as stage:
            stage.start(stage.new(place.kinds), [maildrops.profile("20", 16)])
            counts, sessions = measure(stage, options.scenario, options.seconds)
    except NotHere as reason:
        print(f"where: {reason}", file=sys.stderr)
        return 1
    print(
        f"{sessions:,} sessions ({options.scenario}, 20 messages),",
        f"{sum(map(Counter.total, counts.values())):,} samples",
    )
    print(report(counts, sessions))
    if options.json:
        options.json.write_text(json.dumps({"sessions": sessions, "samples": counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
