"""No work per message on a hit: counted, not timed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpop.maildrop import cachefile
from gpop.maildrop.statcache import HEADER_OCTETS
from tests.maildrop.faults import Calls, watched
from tests.maildrop.store import Store

COUNTS = (20, 5000)


def cost_of_a_hit(store: Store, count: int) -> Calls:
    store.fill(count)
    store.open(boot_id=b"boot").close()
    with watched() as calls, store.session(boot_id=b"boot") as opened:
        assert opened.outcome == "hit"
        assert opened.maildrop.stat()[0] == count
        assert len(opened.maildrop.listing_segments("UIDL")) == 1
        opened.update()
    return calls


def test_system_calls_and_octets_read_do_not_grow(tmp_path: Path) -> None:
    """A poll of 5,000 messages makes the calls that one of 20 makes, and reads no more."""
    few, many = (cost_of_a_hit(Store(tmp_path / str(count)), count) for count in COUNTS)
    assert few.by_name == many.by_name
    # open, fstat, pread of the cache; stat of new/, cur/ and imported unique-ids; giving back the lock.
    assert few.by_name == {"open_file": 1, "fstat": 1, "pread": 1, "stat": 3, "flock": 1}
    assert many.octets_read == HEADER_OCTETS
    assert few.octets_read <= HEADER_OCTETS + cachefile.SMALL_BODY_OCTETS


POLL = """
import os, sys
sys.path.insert(0, sys.argv[1])
from gpop.maildrop import opening
dir_fd = os.open(sys.argv[2], os.O_RDONLY)
options = opening.Options(boot_id=b"boot")
opening.open_maildrop(dir_fd, options).close()
os.mkdir(sys.argv[3])
opened = opening.open_maildrop(dir_fd, options)
assert opened.outcome == "hit"
opened.maildrop.stat()
opened.maildrop.listing_segments("UIDL")
opened.update()
opened.close()
os.mkdir(sys.argv[3])
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_the_kernel_sees(tmp_path: Path) -> None:
    """The same seen from outside: a hit is a handful of system calls, whatever the size of the maildrop."""
    seen = []
    for count in COUNTS:
        store = Store(tmp_path / str(count))
        store.fill(count)
        mark, trace = tmp_path / f"mark{count}", tmp_path / f"trace{count}"
        package = Path(__file__).parents[2]
        program = ["strace", "-o", str(trace), sys.executable, "-I", "-c", POLL]
        arguments = [str(package), str(store.path), str(mark)]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert "FileExistsError" in done.stderr, done.stderr
        lines = trace.read_text().splitlines()
        first, last = (at for at, line in enumerate(lines) if line.startswith("mkdir"))
        calls = [line.partition("(")[0] for line in lines[first + 1 : last]]
        # The allocator may ask for memory at any time.
        seen.append([call for call in calls if call not in ("brk", "mmap", "munmap", "mremap")])
        store.close()
    assert seen[0] == seen[1]
    assert len(seen[0]) <= 10, seen[0]


def test_a_message_costs_the_same_in_any_maildrop(tmp_path: Path) -> None:
    """RETR of one message of 5,000 decodes that one: a few reads of a few octets."""
    for count in COUNTS:
        store = Store(tmp_path / str(count))
        store.fill(count)
        store.open(boot_id=b"boot").close()
        with store.session(boot_id=b"boot") as opened:
            with watched() as calls:
                os.close(opened.message(count - 1).fd)
            assert calls.octets_read < 200
            assert calls.count <= 10
        store.close()
