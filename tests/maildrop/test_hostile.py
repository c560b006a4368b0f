"""A .statcache lies where its user can write: whatever it is, nothing worse than a rebuild happens."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpop.maildrop import cachefile, errors, reconcile, statcache, table
from gpop.maildrop.names import CUR
from gpop.maildrop.statcache import CHECKED_OCTETS, HEADER_OCTETS, NAMED, TWIN
from gpop.maildrop.table import NOTHING, Known
from tests.maildrop.store import Store, content, expected, listing


def with_right_checksums(image: bytes) -> bytes:
    """What a forger would write: the octets with both checksums made right."""
    body = image[HEADER_OCTETS:]
    header = bytearray(image[:CHECKED_OCTETS])
    struct.pack_into("<I", header, 60, zlib.crc32(body))
    return bytes(header) + struct.pack("<I", zlib.crc32(header)) + body


def poll_reason(store: Store) -> str:
    """Open, compare everything with the slow rules, and return the reason; it was no hit."""
    with store.session() as opened:
        assert opened.outcome == "rebuild"
        assert listing(opened) == expected(store)
        assert [content(opened, index) for index in range(opened.maildrop.count)]
        events = [event for event, _ in opened.warnings if event != "cache_unwritable"]
        # A version octet may be damaged, too; but then it looks like an upgrade.
        assert events == ([] if opened.reason == "other_version" else ["cache_damaged"])
        return opened.reason


@pytest.fixture
def polled(store: Store) -> Store:
    """A maildrop of three messages with its cache."""
    store.deliver("1700000000.a", b"one\n")
    store.deliver("1700000001.b", b"one\ntwo\n", folder="cur")
    store.deliver("1700000002.c", b"")
    store.poll()
    return store


def test_a_link_is_not_followed(polled: Store, tmp_path: Path) -> None:
    """A link in the cache's place is not read and not written through; the new cache takes its place."""
    target = tmp_path / "target"
    target.write_bytes(polled.cache.read_bytes())
    polled.cache.unlink()
    polled.cache.symlink_to(target)
    before = target.read_bytes()
    assert poll_reason(polled) == "not_a_file"
    assert target.read_bytes() == before
    assert not polled.cache.is_symlink()
    assert polled.poll() == ("hit", "unchanged")


def test_a_fifo_is_not_waited_for(polled: Store) -> None:
    """A FIFO without a writer would hold the session for ever; so would one with a reader."""
    polled.cache.unlink()
    os.mkfifo(polled.cache)
    assert poll_reason(polled) == "not_a_file"
    assert polled.poll() == ("hit", "unchanged")


def test_a_socket(polled: Store) -> None:
    """A socket can't even be opened."""
    polled.cache.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{polled.dir_fd}/.statcache")
    listener.close()
    assert poll_reason(polled) == "not_a_file"
    assert polled.poll() == ("hit", "unchanged")


def test_a_directory_costs_the_cache_only(polled: Store) -> None:
    """A directory can't be replaced: the maildrop is served from memory, each time, with an event."""
    polled.cache.unlink()
    polled.cache.mkdir()
    for _ in range(2):
        assert poll_reason(polled) == "not_a_file"
    with polled.session() as opened:
        assert ("cache_unwritable", {"reason": "EISDIR"}) in opened.warnings
    assert sorted(os.listdir(polled.path)) == [".statcache", "cur", "new", "tmp"]


def test_a_cache_of_another_owner(polled: Store) -> None:
    """Whatever it says, a cache that somebody else wrote is not believed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(polled.cache, 65534, 65534)
    assert poll_reason(polled) == "other_owner"
    assert polled.cache.stat().st_uid == os.geteuid()


def test_a_huge_sparse_file(polled: Store) -> None:
    """A terabyte of nothing behind a good header is not read."""
    with open(polled.cache, "r+b") as file:
        file.truncate(1 << 40)
    assert poll_reason(polled) == "too_long"
    with open(polled.cache, "wb") as file:
        file.truncate(1 << 40)
    assert poll_reason(polled) == "wrong_magic"


def test_every_truncation(polled: Store) -> None:
    """Cut short at any length, it is made anew."""
    image = polled.cache.read_bytes()
    for length in range(len(image)):
        polled.cache.write_bytes(image[:length])
        assert poll_reason(polled) in ("truncated", "wrong_magic")


def test_every_flipped_octet(polled: Store) -> None:
    """Damaged anywhere, it is made anew."""
    image = polled.cache.read_bytes()
    for at in range(len(image)):
        polled.cache.write_bytes(image[:at] + bytes([image[at] ^ 0xFF]) + image[at + 1 :])
        assert poll_reason(polled)
        assert polled.cache.read_bytes()[HEADER_OCTETS:] == image[HEADER_OCTETS:]


@settings(max_examples=40)
@given(st.binary(max_size=1000))
def test_any_octets(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    """Any octets at all in its place are made anew."""
    store = Store(tmp_path_factory.mktemp("octets") / "Maildir")
    store.deliver("1700000000.a")
    store.cache.write_bytes(octets)
    assert poll_reason(store)
    store.close()


def test_a_cache_of_another_version(polled: Store) -> None:
    """A cache of another format is made anew without a word: that is what an upgrade looks like."""
    image = bytearray(polled.cache.read_bytes())
    image[8] += 1
    polled.cache.write_bytes(with_right_checksums(bytes(image)))
    with polled.session() as opened:
        assert (opened.outcome, opened.reason, opened.warnings) == ("rebuild", "other_version", [])


# Forged, with right checksums: its owner may deceive himself, and that is all


def forge(
    store: Store, messages: list[tuple[bytes, int, int, bytes]], stamp: int = 0, total: int = 12345
) -> None:
    """Write a cache that is all right by itself, and a hit, and says what its forger likes."""
    header = cachefile.open_image(store.dir_fd).header
    ids, octets, flags, file_names = (list(column) for column in zip(*messages, strict=True))
    count = len(messages)
    known = Known(ids, octets, flags, file_names, [0] * count, [stamp] * count)
    columns = table.render(NOTHING, known)
    store.cache.write_bytes(b"".join(statcache.assemble(NOTHING, columns, total, header.facts())))


@pytest.mark.parametrize(
    "flags", [NAMED, NAMED | TWIN, NAMED | TWIN | statcache.LINKED, NAMED | statcache.LINKED]
)
@pytest.mark.parametrize(
    "name",
    [
        b"1700000002.c",
        b"../../victim",
        b"/etc/passwd",
        b"..",
        b".",
        b"",
        b"\0",
        b".hidden",
        b"x" * 300,
    ],
)
def test_a_forged_name_removes_nothing(polled: Store, name: bytes, flags: int) -> None:
    """
    A table that puts another file behind a unique-id can't make UPDATE remove that file.

    The client was shown the unique-id of one message; what is removed is that message or nothing.
    """
    victim = polled.path.parent / "victim"
    victim.write_bytes(b"kept")
    before = polled.files()
    forge(polled, [(b"1700000000.a", 5, flags, name), (b"1700000002.c", 0, 0, b"1700000002.c")])
    with polled.session() as opened:
        assert opened.outcome == "hit"
        with pytest.raises((errors.MessageChanged, errors.MaildropUnavailable)):
            opened.message(0)
        opened.maildrop.mark_deleted(0)
        opened.maildrop.retrieved.add(0)
        result = opened.update()
        assert (result.removed, result.failed, result.moved) == (0, 1, 0)
    assert polled.files() == before
    assert victim.read_bytes() == b"kept"


def test_a_forged_twin_removes_nothing(polled: Store) -> None:
    """A file called a twin has to have the content that its unique-id was made of."""
    before = polled.files()
    forge(polled, [(b"f" * 40, 5, NAMED | TWIN, b"1700000000.a")])
    with polled.session() as opened:
        with pytest.raises(errors.MessageChanged):
            opened.message(0)
        opened.maildrop.mark_deleted(0)
        assert opened.update().failed == 1
    assert polled.files() == before


def test_a_forged_folder_loses_nothing(polled: Store) -> None:
    """A message said to be in the other folder is found by its base name."""
    forge(polled, [(b"1700000000.a", 5, 1, b"1700000000.a")])
    with polled.session() as opened:
        assert content(opened, 0) == b"one\n"
        opened.maildrop.mark_deleted(0)
        assert opened.update().removed == 1
    assert sorted(name for _, name in polled.files()) == [b"1700000001.b", b"1700000002.c"]


def test_a_forged_form_never_breaks_the_dialogue(polled: Store) -> None:
    """A form that can't be true for a file of this size is forgotten, though its stamp is right."""
    status = os.stat(polled.file("new", "1700000000.a"))
    stamp = reconcile.file_stamp(status.st_mtime_ns, status.st_size, status.st_mtime_ns + 1)
    for form, octets, believed in ((1, 9999, 0), (2, 9999, 0), (1, 5, 1), (2, 4, 2)):
        forge(polled, [(b"1700000000.a", octets, form << statcache.FORM_SHIFT, b"1700000000.a")], stamp)
        with polled.session() as opened:
            message = opened.message(0)
            os.close(message.fd)
            assert message.form == believed


SMALL_LAYOUT = [(b"1700000000.a", 5, 2, b"1700000000.a"), (b"b" * 40, 7, NAMED | 3, b"1700000001.b:2,S")]


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), flip=st.integers(1, 255))
def test_forged_octets_lead_to_an_answer(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    """
    Any octet changed, checksums made right: an answer or a named fault, and nothing removed wrongly.
    """
    store = Store(tmp_path_factory.mktemp("forged") / "Maildir")
    store.deliver("1700000000.a", b"one\n")
    store.deliver("1700000001.b:2,S", b"two\n", folder="cur")
    store.poll()
    forge(store, SMALL_LAYOUT)
    image = bytearray(store.cache.read_bytes())
    body_at = HEADER_OCTETS + at % (len(image) - HEADER_OCTETS)
    image[body_at] ^= flip
    store.cache.write_bytes(with_right_checksums(bytes(image)))
    before = set(store.files())
    with store.session() as opened:
        assert opened.maildrop.count == 2
        shown = set()
        for index in range(2):
            for ask in (opened.maildrop.unique_id, opened.maildrop.scan_line, opened.maildrop.octets):
                try:
                    answer = ask(index)
                except errors.MaildropUnavailable:
                    continue
                if isinstance(answer, bytes) and b" " not in answer:
                    shown.add(answer)
            try:
                content(opened, index)
                opened.maildrop.mark_deleted(index)
            except (
                errors.MaildropUnavailable,
                errors.MessageChanged,
                errors.MessageVanished,
                errors.MessageUnreadable,
            ):
                continue
        result = opened.update()
        assert result.removed + result.failed == len(opened.maildrop.marked())
    for _, name in before - set(store.files()):
        assert name.split(b":")[0] in shown
    store.close()


def test_forged_octets_that_no_total_can_hold(polled: Store) -> None:
    """Together more than 64 bits: with new mail the cache is made anew, and no session ends for it."""
    known = [
        (b"1700000000.a", 2**64 - 1, 0, b"1700000000.a"),
        (b"1700000001.b", 9, CUR, b"1700000001.b"),
        (b"1700000002.c", 0, 0, b"1700000002.c"),
    ]
    forge(polled, known, total=2**64 - 1)
    polled.deliver("1700000003.d", b"new\n")
    assert poll_reason(polled) == "table_damaged"
    assert polled.poll() == ("hit", "unchanged")


def test_a_folder_from_before_the_year_1678() -> None:
    """Where a file system keeps such stamps, its owner can give a folder one: no 64 bits of ns hold it."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs to write to")
    with tempfile.TemporaryDirectory(dir=shared) as where:
        store = Store(Path(where) / "Maildir")
        store.deliver("1700000000.a", b"one\n", folder="cur")
        os.utime(store.path / "cur", ns=(-(10**19), -(10**19)))
        if os.stat(store.path / "cur").st_mtime_ns > -(2**63):
            pytest.skip("this file system has no such stamps")
        for _ in range(2):
            with store.session() as opened:
                assert listing(opened) == expected(store)
        store.close()
