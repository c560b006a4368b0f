"""
The machine's clock has jumped: what was delivered and cached has stamps of the future, or of long ago.

The clock of the machine that runs the tests is not ours to set, and a faked one would be that of some
calls only. So the stamps are really on a disk of our own, put there while nobody has it: what gpop finds
after a jump. CI tries a part, `GPOP_TEST_FAULTS=all` everything.
Whatever waits in gpop (penalties, time-outs, locks, restarts) asks the monotonic clock, which does not jump.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import gpop
from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting, mounted, next_login
from tests.serving import ROOT, Server, Site, wait_until

ALL = os.environ.get("GPOP_TEST_FAULTS") == "all"
JUMPS_S = {"an hour ahead": 3600, "ten years ahead": 10 * 365 * 86400, "a minute back": -60, "1990": None}
PLACES = {
    "folders": ("new", "cur"),
    "cache": (".statcache",),
    "all": ("new", "cur", ".", ".statcache", ".unique-ids"),
}


def stamp(image: Path, places: tuple[str, ...], when: float) -> None:
    """Write other stamps into the inodes of an unmounted file system."""
    text = time.strftime("%Y%m%d%H%M%S", time.gmtime(when))
    fields = [(place, field) for place in places for field in ("mtime", "ctime")]
    commands = [f"set_inode_field /Maildir/{place} {field} {text}" for place, field in fields]
    debugfs = ["debugfs", "-w", "-f", "-", image]
    done = subprocess.run(debugfs, input="\n".join(commands), capture_output=True, text=True, check=True)
    assert not re.findall(r"^(?!debugfs)\S.*: ", done.stderr, re.M), done.stderr


@pytest.mark.skipif(not ROOT, reason="needs root: it mounts a file system")
@pytest.mark.skipif(shutil.which("debugfs") is None, reason="debugfs (e2fsprogs) is not installed")
def test_stamps_of_another_time(tmp_path):
    """Everything is served, and what comes after the jump is seen by the next login and all later ones."""
    site = Site(accounts_cache__enabled=True)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    try:
        with Server(site) as server:
            lasting = Lasting(server)
            for jump, seconds in JUMPS_S.items() if ALL else list(JUMPS_S.items())[::2]:
                for what, places in PLACES.items() if ALL else [("all", PLACES["all"])]:
                    with mounted(site, "-o", "loop", image):
                        drop = Drop(server, "unchanged")
                        wait_until(lambda: not server.pids("session"), 60)
                    when = 631152000 if seconds is None else int(time.time()) + seconds
                    stamp(image, places, when)
                    with mounted(site, "-o", "loop", image, again=True):
                        assert int((drop.path / places[0]).stat().st_ctime) == when
                        seen_at_once(drop)
                        attempt = Attempt(drop, wrong_sizes=0)
                        print(f"{jump}, {what}: {attempt.cut.strip() or 'served'}")
                        assert attempt.removed
                        failing.after(attempt)
            site.make_home("user0")
            lasting.check()
            assert not server.faults()
    finally:
        site.remove()


def seen_at_once(drop: Drop) -> None:
    """Poll, deliver, poll, deliver, poll: each sees all that was there."""
    for number in (8, 9):
        client = next_login(drop)
        client.look(drop.truth)
        client.quit()
        base = f"{failing.FIRST_S + number}.M{number}P1.host"
        drop.server.site.deliver(failing.octets_of(number), drop.name, base)
        drop.truth.append((base.encode(), failing.octets_of(number)))
    client = next_login(drop)
    client.look(drop.truth)
    client.quit()


# What these do with the machine's clock: how old a file of the administrator's is, when an account opens or
# expires, when a message was retrieved (session.expire_retrieved_days), names of drafts, when we started.
WALL_CLOCK = {
    "accounts/maps/compiled.py",
    "accounts/rereading.py",
    "auth/deciding.py",
    "broker/broker.py",
    "front/front.py",
    "maildrop/cachefile.py",
    "maildrop/importfile.py",
    "maildrop/opened.py",
}


def test_whatever_waits_asks_the_monotonic_clock():
    """No penalty, time-out, lock or restart depends on a clock that can jump."""
    package = Path(gpop.__file__).parent
    found = {
        str(path.relative_to(package))
        for folder in ("auth", "accounts", "broker", "front", "maildrop", "pop3", "privsep", "session")
        for path in (package / folder).rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\(", path.read_text())
    }
    assert found == WALL_CLOCK, "if it is for something that waits, it is the wrong clock"
