"""The short way to a hit agrees with the long one, and says nothing where there is the least doubt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpop.maildrop import cachefile, hit, importfile, opening
from gpop.maildrop.imported import ImportedId
from gpop.maildrop.maildir import Maildir
from gpop.maildrop.statcache import HEADER_OCTETS
from tests.maildrop.faults import watched
from tests.maildrop.store import Store
from tests.maildrop.test_hostile import with_right_checksums

BOOT = b"0123456789abcdef0123456789abcdef"
LARGE = 6000  # messages, whose cache is more than is read at once


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A maildrop of three messages whose cache is a hit."""
    store = Store(tmp_path)
    store.deliver_many(3)
    store.open(boot_id=BOOT).close()
    return store


def look(store: Store, max_messages: int = 0, boot_id: bytes = BOOT) -> hit.Hit | None:
    """What the short way says; the descriptor closed, and no other left open."""
    before = os.listdir("/proc/self/fd")
    found = hit.look(store.dir_fd, max_messages, boot_id)
    if found:
        os.close(found[-1])
    assert os.listdir("/proc/self/fd") == before
    return found


def judged(store: Store, max_messages: int = 0, boot_id: bytes = BOOT) -> tuple[str, str]:
    """What the long way says."""
    options = opening.Options(boot_id=boot_id, max_messages=max_messages)
    verdict = opening.judge(Maildir(store.dir_fd), options)
    if verdict.image:
        verdict.image.close()
    return verdict.outcome, verdict.reason


def test_a_hit(store: Store) -> None:
    """What it returns is what the long way reads from the same file."""
    assert judged(store) == ("hit", "unchanged")
    found = look(store)
    assert found is not None
    count, octets, uidl_end, list_end, body, _ = found
    with store.session(boot_id=BOOT) as opened:
        assert (count, octets) == opened.maildrop.stat()
        assert opened.maildrop.listing_segments("UIDL") == [(HEADER_OCTETS, uidl_end - HEADER_OCTETS)]
        assert opened.maildrop.listing_segments("LIST") == [(uidl_end, list_end - uidl_end)]
    assert body == store.cache.read_bytes()[HEADER_OCTETS:]


def test_a_large_cache_is_not_read(tmp_path: Path) -> None:
    """Above a size the header alone is read, if it was written under this run of the kernel."""
    store = Store(tmp_path)
    store.fill(LARGE)
    store.open(boot_id=BOOT).close()
    with watched() as calls:
        found = look(store)
    assert found is not None and found[0] == LARGE and found[4] == b""
    assert calls.octets_read == HEADER_OCTETS
    for boot_id in (b"", BOOT[::-1], BOOT[:-1]):
        assert look(store, boot_id=boot_id) is None
        assert judged(store, boot_id=boot_id) == ("hit", "unchanged_since_boot")


def replace_by_link(store: Store) -> None:
    store.cache.rename(store.path / "elsewhere")
    store.cache.symlink_to(store.path / "elsewhere")


def replace_by_fifo(store: Store) -> None:
    store.cache.unlink()
    os.mkfifo(store.cache)


def replace_by_directory(store: Store) -> None:
    store.cache.unlink()
    store.cache.mkdir()


def recreate_new(store: Store) -> None:
    (store.path / "new").rename(store.path / "old")
    (store.path / "new").mkdir()


def link_cur(store: Store) -> None:
    (store.path / "cur").rename(store.path / "old")
    (store.path / "cur").symlink_to("old")


CHANGES: dict[str, Callable[[Store], object]] = {
    "a delivery": lambda store: store.deliver("1800000000.M1.host"),
    "a message read": lambda store: store.deliver("1800000000.M1.host:2,S", folder="cur"),
    "a message removed": lambda store: next((store.path / "new").iterdir()).unlink(),
    "new/ made anew": recreate_new,
    "new/ gone": lambda store: (store.path / "new").rename(store.path / "away"),
    "cur/ a link": link_cur,
    "an import": lambda store: importfile.add(store.dir_fd, {b"1700000001.M1P1.host": ImportedId(b"a")}),
    "a link in place of an import": lambda store: (store.path / ".unique-ids").symlink_to("nowhere"),
    "no cache": lambda store: store.cache.unlink(),
    "an empty cache": lambda store: store.cache.write_bytes(b""),
    "a link": replace_by_link,
    "a FIFO": replace_by_fifo,
    "a directory": replace_by_directory,
    "octets at the end": lambda store: store.cache.write_bytes(store.cache.read_bytes() + b"x"),
    "of another format": lambda store: store.cache.write_bytes(b"gpopstat\x01" + bytes(500)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_hit_any_more(store: Store, change: str) -> None:
    """Whatever has happened, the long way is to find out."""
    CHANGES[change](store)
    assert look(store) is None


def test_another_setting(store: Store) -> None:
    """A cache that was cut at another number of messages is not served."""
    assert look(store, max_messages=2) is None
    assert judged(store, max_messages=2)[0] == "refresh"


def test_a_racy_cache(tmp_path: Path) -> None:
    """One that a delivery may have slipped past is not trusted."""
    store = Store(tmp_path)
    store.deliver_many(3)
    store.open(boot_id=BOOT, clock_wait_s=0.0).close()
    reason = judged(store)[1]
    assert (look(store) is None) == (reason != "unchanged")
    header = bytearray(store.cache.read_bytes())
    header[12] |= 1
    store.cache.write_bytes(with_right_checksums(bytes(header)))
    assert judged(store) == ("refresh", "racy")
    assert look(store) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_it_never_says_more_than_the_long_way(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With octets changed anywhere, checksums made right or not: a hit is a hit in both ways."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.deliver_many(3)
    store.open(boot_id=BOOT).close()
    image = bytearray(store.cache.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(image) - 1) | st.integers(0, HEADER_OCTETS - 1))
        image[at] = data.draw(st.integers(0, 255))
    forged = bytes(image) if data.draw(st.booleans()) else with_right_checksums(bytes(image))
    store.cache.write_bytes(forged)
    found = look(store)
    if found:
        assert judged(store) == ("hit", "unchanged")
        with store.session(boot_id=BOOT) as opened:
            assert found[:2] == opened.maildrop.stat()
    elif forged == bytes(image) and judged(store) == ("hit", "unchanged"):
        pytest.fail("the short way missed a plain hit")
    store.close()


def test_a_cache_damaged_on_the_way(store: Store) -> None:
    """Between the short way and the long one the file was cut: no empty maildrop comes of it."""
    found = hit.look(store.dir_fd, 0, BOOT)
    assert found is not None
    opened = opening.opened_by_hit(store.dir_fd, opening.Options(boot_id=BOOT), found)
    assert (opened.outcome, opened.reason, opened.maildrop.count) == ("hit", "unchanged", 3)
    opened.close()
    found = hit.look(store.dir_fd, 0, BOOT)
    assert found is not None
    store.cache.write_bytes(store.cache.read_bytes()[:-1])
    with pytest.raises(opening.MaildropUnavailable):
        opening.opened_by_hit(store.dir_fd, opening.Options(boot_id=BOOT), found)
    assert cachefile.CACHE_NAME in os.listdir(store.path)
