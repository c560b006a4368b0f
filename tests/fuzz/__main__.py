"""
`./dev fuzz [TARGET ...] [--minutes N]`: the long form, with atheris if it is installed, else with hypothesis.

What is found lies in .fuzz/found, the inputs that made a difference in .fuzz/corpus; `--keep` takes
some small ones of those into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import by_hypothesis
from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, TESTS, Target

TOP = TESTS.parent
WORK = TOP / ".fuzz"
MAX_INPUT_OCTETS = 16384
MAX_INPUT_S = 10
MAX_MEMORY_MIB = 2048
# What is kept in the repository of one target.
MAX_KEPT, MAX_KEPT_OCTETS = 10, 512
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
# Targets that fork or wait are no work for libFuzzer, which must have a process to itself.
DROP = "drop"


def fuzz_atheris(target: Target, seconds: float, seed: int) -> tuple[int, str]:
    """Fuzz one target; returns how many inputs there were, and what was found, "" for nothing."""
    seeds, found = _folders(target)
    command = [
        *(sys.executable, "-m", "tests.fuzz.by_atheris", target.name),
        *(
            f"-max_total_time={max(1, int(seconds))}",
            f"-timeout={MAX_INPUT_S}",
            f"-max_len={MAX_INPUT_OCTETS}",
        ),
        *(f"-rss_limit_mb={MAX_MEMORY_MIB}", f"-artifact_prefix={found}/{target.name}-"),
        *(
            f"-seed={seed}",
            "-print_final_stats=1",
            str(WORK / "corpus" / target.name),
            str(CORPUS / target.name),
            str(seeds),
        ),
    ]
    environment = os.environ | {"PYTHONPATH": str(TOP)}
    ran = subprocess.run(
        [word for word in command if not word.startswith(str(CORPUS)) or os.path.isdir(word)],
        env=environment, cwd=TOP, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    executions = re.search(r"stat::number_of_executed_units: (\d+)", ran.stderr)
    said = "".join(
        line for line in ran.stderr.splitlines(True) if not line.startswith(("INFO", "#", "WARNING"))
    )
    return int(executions[1]) if executions else 0, "" if ran.returncode == 0 else said[-6000:]


def _folders(target: Target) -> tuple[Path, Path]:
    """Return the folder of a target's seeds, written anew, and that of what is found."""
    seeds = WORK / "seeds" / target.name
    shutil.rmtree(seeds, ignore_errors=True)
    for path in (seeds, WORK / "found", WORK / "corpus" / target.name):
        path.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (seeds / f"{number:03}").write_bytes(seed)
    return seeds, WORK / "found"


def fuzz_hypothesis(target: Target, seconds: float, _seed: int) -> tuple[int, str]:
    """The same without atheris; hypothesis says which input it was."""
    try:
        return by_hypothesis.run_for(target, seconds, WORK / "examples"), ""
    except Exception:
        return 0, traceback.format_exc()[-6000:]


def fuzz_drop(seconds: float) -> tuple[int, str]:
    """Histories of a maildrop, served by real processes."""
    from tests.fuzz import drop

    try:
        return drop.run_for(seconds, WORK / "examples"), ""
    except Exception:
        return 0, traceback.format_exc()[-6000:]


def keep(name: str) -> None:
    """Take some inputs into the repository: small ones, those that reached something new last."""
    paths = (WORK / "corpus" / name).iterdir()
    small = [path for path in paths if path.stat().st_size <= MAX_KEPT_OCTETS]
    (CORPUS / name).mkdir(exist_ok=True)
    for path in sorted(small, key=lambda path: path.stat().st_mtime_ns)[-MAX_KEPT:]:
        shutil.copyfile(path, CORPUS / name / path.name[:12])


def main(arguments: list[str]) -> int:
    """Run what was asked for; the exit status is 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="./dev fuzz", description="Fuzz the parsers of gpop, and a maildrop."
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="default: all; --list says which there are"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of them together (default: 10)")
    parser.add_argument("--each", type=float, metavar="MINUTES", help="for each of them, in place of that")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs again (atheris); 0: new ones")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="so many at the same time (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and what has to hold")
    parser.add_argument("--input", type=Path, help="run one target on this file, as after a find")
    parser.add_argument(
        "--keep", action="store_true", help="take new inputs into tests/fuzz/corpus afterwards"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for each in TARGETS.values():
            print(f"{each.name:20} {each.invariant}")
        print(f"{DROP:20} Sessions of two clients see and do what a small model of RFC 1939 says.")
        return 0
    unknown = set(options.targets) - {*TARGETS, DROP}
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; --list says which there are")
    chosen = options.targets or [*TARGETS, DROP]
    if options.input:
        for name in chosen:
            TARGETS[name].run(options.input.read_bytes())
        return 0
    seconds = (options.each or options.minutes * options.at_once / len(chosen)) * 60
    if len(chosen) == 1:
        return fuzz(chosen[0], seconds, options.seed, options.keep)
    print(
        f"{'atheris' if HAS_ATHERIS else 'hypothesis'}, {seconds:.0f} s for each of {len(chosen)} targets",
        flush=True,
    )
    return fuzz_all(chosen, seconds, options.at_once, options.seed, options.keep)


def fuzz(name: str, seconds: float, seed: int, is_kept: bool) -> int:
    """Fuzz one target for so long; returns the exit status."""
    if name == DROP:
        executions, found = fuzz_drop(seconds)
    else:
        executions, found = (fuzz_atheris if HAS_ATHERIS else fuzz_hypothesis)(TARGETS[name], seconds, seed)
    print(f"{name:20} {executions:10} inputs  {'FOUND' if found else 'nothing found'}", flush=True)
    if found:
        print(found, flush=True)
    elif is_kept and HAS_ATHERIS and name != DROP:
        keep(name)
    return 1 if found else 0


def fuzz_all(names: list[str], seconds: float, at_once: int, seed: int, is_kept: bool) -> int:
    """Fuzz several targets, in a process each and so many at the same time; returns the exit status."""

    def in_a_process(name: str) -> int:
        command = [sys.executable, "-m", "tests.fuzz", name, f"--each={seconds / 60}", f"--seed={seed}"]
        return subprocess.run([*command, "--keep"] if is_kept else command, cwd=TOP, check=False).returncode

    with ThreadPoolExecutor(at_once) as pool:
        return 1 if any([*pool.map(in_a_process, names)]) else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
