"""The file of imported unique-ids: what is in it comes out of it, and what is damaged is noticed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop import imported, importfile, lock, statcache
from gpop.maildrop.errors import MaildropInUse
from gpop.maildrop.imported import BadImport, ImportConflict, ImportedId, merged, parse, render
from tests.maildrop.faults import watched
from tests.maildrop.store import Store

UNIQUE_IDS = st.lists(st.integers(0x21, 0x7E), min_size=1, max_size=70).map(bytes)
BASES = st.binary(min_size=1, max_size=255).filter(imported.is_base)
MESSAGES = st.tuples(BASES, UNIQUE_IDS, st.integers(0, imported.MAX_ORDER))
IDS = st.lists(MESSAGES, max_size=20, unique_by=(lambda one: one[0], lambda one: one[1])).map(
    lambda messages: {base: ImportedId(unique_id, order) for base, unique_id, order in messages}
)
TWO = {b"1.M1.host,S=3": ImportedId(b"000061ae4c0907b0", 1), b"2 with\nodd%\xff": ImportedId(b"b", 0)}


@given(IDS)
def test_what_was_written_is_read(ids: dict[bytes, ImportedId]) -> None:
    """Any base name that a file can have, with any unique-id."""
    assert parse(render(ids)) == ids


def test_the_file_is_lines_of_text() -> None:
    """An operator can read it; spaces, line ends and octets that are no ASCII are escaped."""
    first, *lines = render(TWO).decode("ascii").splitlines()
    assert first.startswith("gpop-unique-ids 1 ") and first.endswith(" 2")
    assert lines == ["1 000061ae4c0907b0 1.M1.host,S=3", "0 b 2%20with%0Aodd%25%FF"]


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda octets: imported.FORMAT_MARK + octets))
def test_any_octets_are_ids_or_a_named_error(octets: bytes) -> None:
    """And what is accepted is exactly what would be written."""
    try:
        ids = parse(octets)
    except BadImport as bad:
        assert bad.line >= 1 and bad.reason
    else:
        assert render(ids) == octets


@given(st.data())
def test_every_cut_and_every_changed_octet_is_noticed(data: st.DataObject) -> None:
    """A crash or a bad disk makes a fault of it, never fewer ids or other ones."""
    octets = render(TWO)
    with pytest.raises(BadImport):
        parse(octets[: data.draw(st.integers(0, len(octets) - 1))])
    at = data.draw(st.integers(0, len(octets) - 1))
    with pytest.raises(BadImport):
        parse(octets[:at] + bytes([octets[at] ^ data.draw(st.integers(1, 255))]) + octets[at + 1 :])


def sealed(*lines: bytes) -> bytes:
    """A file whose checksum is right, whatever it says."""
    body = b"".join([line + b"\n" for line in lines])
    return imported.FORMAT_MARK + b"%08x %d\n" % (imported.crc32(body), len(lines)) + body


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ([b"0 a x", b"0 b x"], 3, "a second line for one base name"),
        ([b"0 a x", b"0 a y"], 3, "a second message with one unique-id"),
        ([b"0 a"], 2, "not order, unique-id and base name"),
        ([b"x a y"], 2, "the order is no number"),
        ([b"4294967296 a y"], 2, "the order is no number"),
        ([b"0 %b y" % (b"a" * 71)], 2, "the unique-id is not 1 to 70 octets from 0x21 to 0x7E"),
        ([b"0 a ../x"], 2, "not the base name of a message"),
        ([b"0 a x%2Fy"], 2, "not the base name of a message"),
        ([b"0 a x%2"], 2, "not the base name of a message"),
        ([b"0 a x%41"], 2, "not the base name of a message"),
        ([b"0 a x:2,S"], 2, "not the base name of a message"),
        ([b"0 a "], 2, "not the base name of a message"),
    ],
)
def test_a_line_that_means_nothing_is_named(lines: list[bytes], line: int, reason: str) -> None:
    """With its number, though the checksum is right: its owner wrote it."""
    with pytest.raises(BadImport) as caught:
        parse(sealed(*lines))
    assert (caught.value.line, caught.value.reason) == (line, reason)


def test_merging_adds_and_never_changes() -> None:
    """What is there stays, with its order; any other id for it, or its id for another, is an error."""
    there = {b"x": ImportedId(b"a", 7)}
    assert merged(there, {b"x": ImportedId(b"a", 1), b"y": ImportedId(b"b")}) == {
        b"x": ImportedId(b"a", 7),
        b"y": ImportedId(b"b"),
    }
    with pytest.raises(ImportConflict, match="b'x' has the unique-id b'a', and would get b'b'"):
        merged(there, {b"x": ImportedId(b"b")})
    with pytest.raises(ImportConflict, match="b'y' would get the unique-id b'a' that b'x' has"):
        merged(there, {b"y": ImportedId(b"a")})


# In a Maildir


def names_in(path: Path) -> set[str]:
    return set(os.listdir(path)) - {"new", "cur", "tmp"}


def test_adding_in_a_maildir(store: Store) -> None:
    """The file is its owner's alone; a second import adds what is new, and nothing is written for none."""
    assert importfile.read(store.dir_fd) == {}
    assert importfile.signature(store.dir_fd) == statcache.NO_IMPORT
    assert importfile.add(store.dir_fd, TWO) == 2
    assert (store.path / importfile.IMPORT_NAME).stat().st_mode & 0o777 == 0o600
    before = importfile.signature(store.dir_fd)
    assert importfile.add(store.dir_fd, TWO) == 0
    assert importfile.signature(store.dir_fd) == before
    assert importfile.add(store.dir_fd, {b"3": ImportedId(b"c", 3)}) == 1
    assert importfile.read(store.dir_fd) == {**TWO, b"3": ImportedId(b"c", 3)}
    assert importfile.signature(store.dir_fd) != before
    assert names_in(store.path) == {importfile.IMPORT_NAME}


def test_whatever_fails_all_or_nothing_is_there(store: Store) -> None:
    """Each system call of an import fails once: the ids of before are there, or those of after."""
    importfile.add(store.dir_fd, TWO)
    more = {b"3": ImportedId(b"c", 3)}
    for failing in range(1, 100):
        with watched(failing) as calls, suppress(OSError, MaildropInUse):
            importfile.add(store.dir_fd, more, lock_wait_s=0)
        assert importfile.read(store.dir_fd) in (TWO, {**TWO, **more})
        if not calls.failed:
            break
    assert importfile.read(store.dir_fd) == {**TWO, **more}


def test_a_session_keeps_an_import_out(store: Store) -> None:
    """What it was told at its login stays as it is until it ends."""
    session_fd = os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)
    lock.lock(session_fd, 0)
    with pytest.raises(MaildropInUse):
        importfile.add(store.dir_fd, TWO, lock_wait_s=0)
    os.close(session_fd)
    assert importfile.add(store.dir_fd, TWO, lock_wait_s=0) == 2


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "damaged"])
def test_what_is_no_such_file_is_a_fault(store: Store, kind: str) -> None:
    """It is not followed, not waited for, and above all not taken for no import."""
    path = store.path / importfile.IMPORT_NAME
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(render(TWO)[:-1])
    assert importfile.signature(store.dir_fd) != statcache.NO_IMPORT
    with pytest.raises((OSError, BadImport)):
        importfile.read(store.dir_fd)
    with pytest.raises((OSError, BadImport)):
        importfile.add(store.dir_fd, {b"3": ImportedId(b"c", 3)})


def test_a_file_beyond_all_bounds_is_not_read(store: Store) -> None:
    """Its size is looked at first."""
    with open(store.path / importfile.IMPORT_NAME, "wb") as file:
        file.truncate(imported.MAX_FILE_OCTETS + 1)
    with pytest.raises(OSError) as caught:
        importfile.read(store.dir_fd)
    assert caught.value.errno == errno.EFBIG
