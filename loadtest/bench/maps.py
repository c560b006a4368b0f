"""
What virtual user maps cost: at the start, and per login, with a million entries.

    python -m loadtest.bench.maps [--entries N] [--kinds lmdb,hash,...] [--json FILE]

The text and the LMDB file are gpop's own; hash, btree and cdb are written by Postfix's postmap, unpacked by
`.ci/fetch-map-tools DIR` (GPOP_MAP_TOOLS=DIR), or installed; without it they are left out.

Per login: CPU time of all that a checker does with maps (open, lock, look up, close), median of the
rounds, for names at random: an exact entry, one by `@domain`, none at all. Memory: what a process that did
so has of its own afterwards, beyond one that did nothing; and what auth itself holds after its start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpop.accounts.maps import grammar, lmdbfile
from gpop.accounts.maps.virtualusers import VirtualUsers

KINDS = ("lmdb", "hash", "btree", "cdb", "text")
DOMAINS = 1000
NAMES = 2000
ROUNDS = 5
MAIN_CF = """\
compatibility_level = 3.6
meta_directory = {folder}
shlib_directory = {root}/usr/lib/postfix
mail_owner = daemon
setgid_group = mail
"""


def text_of(entries: int) -> bytes:
    """A map of so many entries, one catch-all for every thousandth domain among them."""
    lines = [b"user%d@domain%d.example account%d\n" % (n, n % DOMAINS, n) for n in range(entries - DOMAINS)]
    lines += [b"@catch%d.example account%d\n" % (n, n) for n in range(DOMAINS)]
    return b"".join(lines)


def make(kind: str, source: Path) -> str:
    """Write the map; returns its name, or "" if there is no postmap."""
    path = source.with_name(kind)
    if kind == "text":
        return f"text:{source}"
    if kind == "lmdb":
        entries = grammar.parse(source.read_bytes(), grammar.POSTFIX)
        lmdbfile.write(f"{path}.lmdb", entries.values)
        return f"lmdb:{path}"
    os.link(source, path)
    root = Path(os.environ.get("GPOP_MAP_TOOLS", "/nowhere")) / "root"
    environment, options = dict(os.environ), []
    program = shutil.which("postmap")
    if root.exists():
        folder = source.parent
        (folder / "main.cf").write_text(MAIN_CF.format(folder=folder, root=root))
        (folder / "dynamicmaps.cf").write_text("cdb\tpostfix-cdb.so\tdict_cdb_open\tmkmap_cdb_open\n")
        libraries = f"{root}/usr/lib/postfix:{root}/usr/lib/x86_64-linux-gnu"
        environment["LD_LIBRARY_PATH"] = libraries
        program, options = str(root / "usr/sbin/postmap"), ["-c", str(folder)]
    if not program:
        return ""
    subprocess.run([program, *options, f"{kind}:{path}"], env=environment, check=True)
    return f"{kind}:{path}"


def virtual_users(name: str) -> VirtualUsers:
    """As auth makes them at its start."""
    settings = SimpleNamespace(
        virtual_case="keep",
        virtual_domain_separators="",
        virtual_default_domains={},
        virtual_sendmail_maps=[],
        virtual_sendmail_domains=[],
        virtual_postfix_maps=[name],
        virtual_recipient_delimiter="+",
        virtual_propagate_extensions=True,
        virtual_local_domains=[],
    )
    made = VirtualUsers(settings)
    made.warm()
    list(made.refresh())
    return made


def own_kib() -> int:
    """The memory of this process that is its own alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Private_Dirty"] + sizes["Private_Clean"]


def apart(what: Callable[[], Any]) -> Any:
    """Return what `what` returns in a process of its own: its memory is not ours."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open(writer, "w") as pipe:
            json.dump(what(), pipe)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer


def measured(name: str, entries: int) -> dict[str, float]:
    """The figures of one map."""
    before, started = own_kib(), time.process_time()
    virtual = virtual_users(name)
    figures = {"start_ms": (time.process_time() - started) * 1e3, "auth_kib": own_kib() - before}
    chosen = random.Random(1)
    numbers = [chosen.randrange(entries - DOMAINS) for _ in range(NAMES)]
    names = {
        "exact_us": [b"user%d@domain%d.example" % (n, n % DOMAINS) for n in numbers],
        "catch_all_us": [b"user%d+x@catch%d.example" % (n, n % DOMAINS) for n in numbers],
        "none_us": [b"user%d@other%d.example" % (n, n % DOMAINS) for n in numbers],
    }
    for what, asked in names.items():
        figures[what] = statistics.median(
            apart(lambda asked=asked: _per_login_us(virtual, asked)) for _ in range(ROUNDS)
        )
    one = names["exact_us"][0]
    nothing = statistics.median(apart(own_kib) for _ in range(ROUNDS))
    looked_up = statistics.median(
        apart(lambda: (virtual.account_name(one), own_kib())[1]) for _ in range(ROUNDS)
    )
    return figures | {"login_kib": looked_up - nothing}


def _per_login_us(virtual: VirtualUsers, names: list[bytes]) -> float:
    started = time.process_time()
    for name in names:
        virtual.account_name(name)
    return (time.process_time() - started) / len(names) * 1e6


COLUMNS = ("file_mb", "start_ms", "auth_kib", "exact_us", "catch_all_us", "none_us", "login_kib")


def run(entries: int, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Figures by kind of map."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="gpop-bench-") as folder:
        source = Path(folder) / "source"
        source.write_bytes(text_of(entries))
        os.utime(source, (1e9, 1e9))
        for kind in kinds:
            name = make(kind, source)
            if name:
                file = next(path for path in Path(folder).iterdir() if path.name in _files(kind))
                row = apart(lambda name=name: measured(name, entries))
                figures[kind] = {"file_mb": file.stat().st_size / 1e6} | row
    return figures


def _files(kind: str) -> tuple[str, ...]:
    return ("source",) if kind == "text" else (f"{kind}.lmdb", f"{kind}.cdb", f"{kind}.db")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.maps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entries", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="KIND,...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if set(kinds) - set(KINDS) or options.entries <= 2 * DOMAINS:
        parser.error(f"--kinds: there are {', '.join(KINDS)}; --entries: more than {2 * DOMAINS}")
    figures = run(options.entries, kinds)
    print(f"{options.entries:,} entries")
    print(f"{'':<8}" + "".join(f"{column:>14}" for column in COLUMNS))
    for kind, row in figures.items():
        print(f"{kind:<8}" + "".join(f"{row[column]:>14,.1f}" for column in COLUMNS))
    for kind in set(kinds) - set(figures):
        print(f"{kind}: no postmap; see --help")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
