"""
A session dies between any two of its calls, and the machine with it: what is on the disk is a maildrop.

The kernel stops a session before each call that may change a file (`tests.kernel`). There it is killed, which
leaves the files as they are; or they are copied, and the cache, which nobody waits for, is taken out of the
copy, as a power cut would. CI tries a part; `GPOP_TEST_FAULTS=all` tries each of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import kernel
from tests.kernel import Kernel
from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting, next_login
from tests.serving import Site

pytestmark = pytest.mark.skipif(bool(kernel.missing()), reason=kernel.missing() or "-")

ALL = os.environ.get("GPOP_TEST_FAULTS") == "all"
KINDS = ("open", "write", "rename", "unlink", "link", "sync")
CHANGING = {name for kind in KINDS for name in kernel.KINDS[kind]}


@pytest.fixture(scope="module")
def stand():
    """A server with retention, which keeps a record of its own in the Maildir."""
    site = Site(session__expire_retrieved_days=30, accounts_cache__enabled=True)
    made = Kernel(site)
    yield made
    made.stop()
    site.remove()


@pytest.mark.parametrize("state", Drop.STATES)
def test_a_session_killed_before_any_call(stand, state):
    """kill -9 at each step: what was marked may be gone after QUIT, all else is as it was."""
    lasting = Lasting(stand.server)
    for nth in range(1, 1000, 1 if ALL else 23):
        drop = Drop(stand.server, state)
        count = 0

        def kill(pid: int, role: str, name: str, nth: int = nth) -> None:
            nonlocal count
            if role == "session" and name in CHANGING:
                count += 1
                if count == nth:
                    failing.end(pid)

        stand.watch(kill)
        attempt = Attempt(drop, wrong_sizes=0)
        stand.heed_nothing()
        print(f"killed at {nth}, cache {state}: {attempt.cut.strip() or 'served'}")
        failing.after(attempt)
        if count < nth:
            break
    else:
        raise AssertionError("no session came to its end")
    lasting.check()


@pytest.mark.parametrize("state", Drop.STATES)
def test_the_machine_stops_before_any_call(stand, state, tmp_path):
    """The files as they are at each step, the cache with and without its content: a whole maildrop."""
    drop = Drop(stand.server, state)
    taken: list[Path] = []

    def copy(pid: int, role: str, name: str) -> None:
        if role == "session" and name in CHANGING:
            taken.append(tmp_path / str(len(taken)))
            subprocess.run(["cp", "-a", str(drop.path), str(taken[-1])], check=True)

    stand.watch(copy)
    attempt = Attempt(drop, wrong_sizes=0)
    stand.heed_nothing()
    assert attempt.removed and taken
    chosen = taken if ALL else taken[1 :: len(taken) // 2]
    for snapshot in chosen:
        for lost in (None, 0, 1) if ALL else (1,):
            shutil.rmtree(drop.path)
            subprocess.run(["cp", "-a", str(snapshot), str(drop.path)], check=True)
            lose(drop.path, lost)
            attempt.removed, attempt.cut = None, ""
            failing.after(attempt)
    print(f"{len(chosen)} of {len(taken)} snapshots, cache {state}")


def lose(maildir: Path, how: int | None) -> None:
    """Have the cache, and drafts of one, as after a power cut: empty (0), or of its size and all zero (1)."""
    for path in maildir.glob(".statcache*") if how is not None else ():
        path.write_bytes(bytes(path.stat().st_size) if how else b"")


def test_a_cache_of_zeros_in_its_place(stand):
    """The same inode, whose content never reached the disk: it is noticed, and made anew."""
    drop = Drop(stand.server, "unchanged")
    lose(drop.path, 1)
    client = next_login(drop)
    client.look(drop.truth)
    client.quit()
