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
from typing import Any

import pytest

from gpop.maildrop import importfile, system
from tests.maildrop.store import Store, content, expected, listing
from tests.maildrop.test_race import deliver_and_poll

ROUNDS = 60
NAMES = [f"170000000{number}.a" for number in range(3)]
RENAMED = NAMES[1] + ":2,S"


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


# Readdir may miss a file that is renamed meanwhile: elsewhere the stamps tell that the folder has changed


@pytest.fixture
def missing(coarse: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Three messages in cur/; the second is missed when that is listed next, as `miss_next` says."""
    store = Store(coarse / "Maildir")
    for name in NAMES:
        store.deliver(name, folder="cur")
    store.away = []  # the name under which it is missed once
    real = system.scandir

    def scandir(fd: int) -> Any:
        cur = (store.path / "cur").stat()
        if not store.away or not os.path.samestat(os.fstat(fd), cur):
            return real(fd)
        path, aside = store.path / "cur" / store.away.pop(), store.path / "tmp" / "aside"
        path.rename(aside)
        with real(fd) as entries:
            found = list(entries)
        aside.rename(path)
        return Entries(found)

    monkeypatch.setattr(system, "scandir", scandir)
    yield store
    store.close()


class Entries(list[Any]):
    """What scandir returns."""

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        return


def test_a_message_that_one_listing_misses_is_not_gone(missing: Store) -> None:
    """The session that lists the folder within the second of its last change shows every message."""
    missing.settle()  # a second begins: what follows is over before it is
    missing.deliver("1700000005.b")
    os.rename(missing.file("cur", NAMES[1]), missing.file("cur", RENAMED))
    missing.away = [RENAMED]
    with missing.session() as opened:
        assert not missing.away
        assert listing(opened) == expected(missing)


def test_a_message_that_update_misses_is_not_said_to_be_removed(missing: Store) -> None:
    """It was renamed, and is looked for: QUIT says +OK when it is gone, and -ERR as long as it is there."""
    with missing.session() as opened:
        missing.settle()  # a second begins: what follows is over before it is
        os.rename(missing.file("cur", NAMES[1]), missing.file("cur", RENAMED))
        missing.away = [RENAMED]
        opened.maildrop.mark_deleted(1)
        result = opened.update()
        assert not missing.away
    assert (result.removed, result.failed) == (1, 0)
    assert sorted(name for _, name in missing.files()) == [NAMES[0].encode(), NAMES[2].encode()]


def test_a_message_that_others_removed_is_gone(missing: Store) -> None:
    """Also within the second in which that was: it takes one more to be sure."""
    with missing.session() as opened:
        missing.settle()  # a second begins: what follows is over before it is
        os.unlink(missing.file("cur", NAMES[1]))
        opened.maildrop.mark_deleted(1)
        result = opened.update()
    assert (result.removed, result.failed) == (1, 0)


def test_a_hidden_message_that_update_misses_stays_hidden(missing: Store) -> None:
    """It would be shown again otherwise, for good, and every client would download it anew."""
    with missing.session(removal="hide") as opened:
        opened.maildrop.mark_deleted(1)
        assert opened.update().removed == 1
    with missing.session(removal="hide") as opened:
        missing.settle()  # a second begins: what follows is over before it is
        os.rename(missing.file("cur", NAMES[1]), missing.file("cur", RENAMED))
        missing.away = [RENAMED]
        opened.maildrop.mark_deleted(0)
        assert opened.update().removed == 1
        assert not missing.away
    assert set(importfile.read(missing.dir_fd)) == {NAMES[0].encode(), NAMES[1].encode()}


def test_a_message_renamed_twice_within_a_second_is_found(missing: Store) -> None:
    """RETR does not say that it is gone because a listing misses it, or it has moved on from where it was."""
    with missing.session() as opened:
        missing.settle()  # a second begins: what follows is over before it is
        os.rename(missing.file("cur", NAMES[1]), missing.file("cur", RENAMED))
        missing.away = [RENAMED]
        content(opened, 1)
        assert not missing.away
        os.rename(missing.file("cur", RENAMED), missing.file("cur", NAMES[1] + ":2,FS"))
        content(opened, 1)
