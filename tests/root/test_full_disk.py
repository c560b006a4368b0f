"""A disk that is really full, and one that is really read-only: served from memory, correct all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.maildrop.store import Store, expected, listing


def mount(*arguments: str | Path) -> str:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A maildrop on a file system of 64 KiB."""
    where = tmp_path / "mounted"
    where.mkdir()
    refused = mount("-t", "tmpfs", "-o", "size=64k,nr_inodes=40", "tmpfs", where)
    if refused:
        pytest.skip(f"a file system can't be mounted here: {refused}")
    store = Store(where / "Maildir")
    try:
        yield store
    finally:
        store.close()
        subprocess.run(["umount", where], check=True)


def polled_from_memory(store: Store, reason: str) -> None:
    """Poll, and see that the answer is right, the event is there, and nothing is left behind."""
    with store.session() as opened:
        assert opened.warnings == [("cache_unwritable", {"reason": reason})]
        assert listing(opened) == expected(store)
        assert opened.image.fd == -1
    assert [path.name for path in store.path.iterdir() if path.name.startswith(".statcache.")] == []


def fill(store: Store) -> Path:
    path = store.path / "tmp" / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return path


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_full_disk(small: Store, with_cache: bool) -> None:
    """No octet is free: polls are served; when there is room again the cache is written."""
    small.deliver_many(4)
    if with_cache:
        small.poll()
        small.deliver_many(1, first=4)
    filler = fill(small)
    for _ in range(2):
        polled_from_memory(small, "ENOSPC")
    filler.unlink()
    assert small.poll()[0] == ("refresh" if with_cache else "rebuild")
    assert small.poll() == ("hit", "unchanged")


def test_a_full_disk_can_be_emptied(small: Store) -> None:
    """Removing mail needs no room."""
    small.deliver_many(4)
    fill(small)
    with small.session() as opened:
        for index in range(4):
            opened.maildrop.mark_deleted(index)
        assert opened.update().removed == 4
    assert small.files() == {}


def test_no_inode_is_left(small: Store) -> None:
    """A quota of files is a full disk, too."""
    small.deliver_many(4)
    taken = []
    while True:
        path = small.path / "tmp" / str(len(taken))
        try:
            path.write_bytes(b"")
        except OSError:
            break
        taken.append(path)
    polled_from_memory(small, "ENOSPC")


def test_a_read_only_file_system(small: Store) -> None:
    """A cache that is true is a hit; one that is not can't be written."""
    small.deliver_many(4)
    small.poll()
    assert mount("-o", "remount,ro", small.path.parent) == ""
    assert small.poll() == ("hit", "unchanged")
    assert mount("-o", "remount,rw", small.path.parent) == ""
    small.deliver_many(1, first=4)
    assert mount("-o", "remount,ro", small.path.parent) == ""
    polled_from_memory(small, "EROFS")
    with small.session() as opened:
        opened.maildrop.mark_deleted(0)
        opened.maildrop.retrieved.add(1)
        result = opened.update()
        assert (result.removed, result.failed, result.moved) == (0, 1, 0)
