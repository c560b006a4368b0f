"""
No delivery is missed on a file system whose stamps are whole seconds.

There a delivery within the second of the last one leaves the folder's mtime and ctime as
they were; a cache that trusts them would hide it from every session until more mail comes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.maildrop.store import Store
from tests.maildrop.test_race import deliver_and_poll

ROUNDS = 60


def run(*command: str | Path) -> str:
    """Run a program of the system's; returns what it complained of, "" if nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} failed"


@pytest.fixture
def coarse(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 file system with inodes of 128 octets, which have no room for nanoseconds."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    image, where = tmp_path / "image", tmp_path / "mounted"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    where.mkdir()
    refused = run("mkfs.ext4", "-q", "-I", "128", image) or run("mount", "-o", "loop", image, where)
    if refused:
        pytest.skip(f"a file system can't be made and mounted here: {refused}")
    try:
        yield where
    finally:
        assert run("umount", where) == ""


def test_stamps_are_whole_seconds(coarse: Path) -> None:
    """What the other tests here rest on."""
    for number in range(5):
        (coarse / str(number)).write_bytes(b"")
        assert os.stat(coarse).st_mtime_ns % 1_000_000_000 == 0


def test_no_delivery_is_missed(coarse: Path) -> None:
    """Deliver, poll, poll, in a tight loop: every poll sees every delivery."""
    store = Store(coarse / "Maildir")
    try:
        outcomes = deliver_and_poll(store, ROUNDS)
    finally:
        store.close()
    # What it costs: a folder that changed in this very second is looked at again.
    assert set(outcomes) <= {"hit", "refresh"}
    assert "refresh" in outcomes


def test_a_quiet_maildrop_is_a_hit(coarse: Path) -> None:
    """Once the clock has stepped, the cache is trusted again."""
    store = Store(coarse / "Maildir")
    try:
        store.deliver("1700000000.a")
        store.poll()
        store.settle()
        store.poll()
        assert store.poll() == ("hit", "unchanged")
    finally:
        store.close()
