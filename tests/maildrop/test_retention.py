"""Retention: what was retrieved long enough ago is marked, and whatever is in doubt stays."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop import retention
from gpop.maildrop.opened import Opened
from gpop.maildrop.retention import DAY_S, RECORD_NAME, Retention, parse, render
from tests.maildrop.faults import watched
from tests.maildrop.store import Store

DAYS = 30
UNIQUE_IDS = st.binary(min_size=1, max_size=70).filter(lambda octets: all(0x21 <= o <= 0x7E for o in octets))
# Later than every file that a test makes; what happens in some days is told the time of then.
NOW = int(time.time()) + 3600


def base(number: int) -> bytes:
    return b"%d.M%dP1.host" % (1700000000 + number, number)


@pytest.fixture
def filled(store: Store) -> Store:
    """Messages 1 and 2 in new/, 3 and 4, seen by an IMAP reader, in cur/."""
    store.deliver_many(2)
    for number in (2, 3):
        store.deliver(base(number) + b":2,S", folder="cur")
    return store


def retrieve(opened: Opened, *indexes: int, now_s: int = NOW, days: int = DAYS) -> Retention:
    """One session's UPDATE as far as retention goes."""
    assert opened._folders
    opened.maildrop.retrieved.update(indexes)
    ending = Retention(opened._folders, opened.maildrop, days, now_s)
    ending.mark_due()
    ending.keep_record()
    return ending


def record_of(store: Store) -> dict[bytes, int] | None:
    return parse((store.path / RECORD_NAME).read_bytes())


def write_record(store: Store, record: dict[bytes, int]) -> None:
    (store.path / RECORD_NAME).write_bytes(render(record))


# The record


@given(st.dictionaries(UNIQUE_IDS, st.integers(0, 10**12 - 1)))
def test_a_record_is_read_as_it_was_written(record: dict[bytes, int]) -> None:
    """Any unique-id, any time."""
    assert parse(render(record)) == record


@given(st.binary() | st.binary().map(lambda tail: retention.FORMAT_MARK + tail))
def test_any_octets_are_a_record_or_none(octets: bytes) -> None:
    """It is the user's file: no octets raise an exception."""
    record = parse(octets)
    assert record is None or parse(render(record)) == record


@given(st.dictionaries(UNIQUE_IDS, st.integers(0, 10**11), min_size=1), st.data())
def test_a_damaged_record_says_nothing(record: dict[bytes, int], data: st.DataObject) -> None:
    """One that a crash has cut off must not give a shorter unique-id a time."""
    octets = render(record)
    cut = data.draw(st.integers(0, len(octets) - 1))
    assert parse(octets[:cut]) is None
    flipped = bytes([octets[cut] ^ 1])
    assert parse(octets[:cut] + flipped + octets[cut + 1 :]) is None


def test_a_record_is_bounded() -> None:
    """Of too many messages those stay in it that fall due first; the others are kept for longer."""
    many = {b"%d" % number: 10**9 + number for number in range(retention.MAX_ENTRIES + 10)}
    kept = parse(render(dict(reversed(many.items()))))
    assert kept == dict(list(many.items())[: retention.MAX_ENTRIES])


# What is due


def test_what_was_retrieved_is_due_after_so_many_days(filled: Store) -> None:
    """Not a second before, and then that and nothing else."""
    with filled.session() as opened:
        retrieve(opened, 0, 2)
        assert opened.maildrop.marked() == []
    assert record_of(filled) == {base(0): NOW, base(2): NOW}
    for seconds, marked in ((DAYS * DAY_S - 1, []), (DAYS * DAY_S, [0, 2])):
        with filled.session() as opened:
            retrieve(opened, 1, now_s=NOW + seconds)
            assert opened.maildrop.marked() == marked
    # It is up to UPDATE to remove what was marked, and the record is about what is there.
    assert record_of(filled) == {base(1): NOW + DAYS * DAY_S}


def test_the_last_retrieval_counts(filled: Store) -> None:
    """A second machine that has just fetched a message may want to do so again."""
    for day in (0, 20, 40):
        with filled.session() as opened:
            retrieve(opened, 0, now_s=NOW + day * DAY_S)
            assert opened.maildrop.marked() == []
    with filled.session() as opened:
        retrieve(opened, 1, now_s=NOW + 70 * DAY_S)
        assert opened.maildrop.marked() == [0]


def test_a_seen_message_was_not_retrieved(filled: Store) -> None:
    """Flags are other programs': what a user has read in a webmail may be nowhere else."""
    with filled.session() as opened:
        retrieve(opened, 0)
    with filled.session() as opened:
        retrieve(opened, 0, now_s=NOW + 1000 * DAY_S)
        assert opened.maildrop.marked() == []


def test_without_a_record_nothing_was_retrieved(filled: Store) -> None:
    """Who loses it, or switches retention on, keeps everything for all the days."""
    with filled.session() as opened:
        retrieve(opened, 0, 1, 2)
    (filled.path / RECORD_NAME).unlink()
    with filled.session() as opened:
        retrieve(opened, 3, now_s=NOW + 100 * DAY_S)
        assert opened.maildrop.marked() == []


def test_a_message_that_came_back_stays(filled: Store) -> None:
    """A backup brings back file and record: the file is as new as its restoration."""
    old = NOW - 100 * DAY_S
    write_record(filled, {base(0): old, base(2): old})
    path = os.fsdecode(filled.file("cur", base(2) + b":2,S"))
    os.utime(path, (old, old))  # as backups set it: it says nothing
    with filled.session() as opened:
        retrieve(opened, 1)
        assert opened.maildrop.marked() == []
    assert record_of(filled) == {base(0): old, base(1): NOW, base(2): old}


def test_with_0_days_what_was_retrieved_now_is_due(filled: Store) -> None:
    """EXPIRE 0 (RFC 2449 section 6.7), and there is nothing to remember."""
    with filled.session() as opened:
        opened.maildrop.mark_deleted(3)
        ending = retrieve(opened, 0, 2, days=0)
        assert opened.maildrop.marked() == [0, 2, 3]
        assert ending.fault == ""
    assert not (filled.path / RECORD_NAME).exists()


def test_the_record_forgets_what_is_gone(filled: Store) -> None:
    """It is no longer than the maildrop, whoever removed a message."""
    write_record(filled, {b"gone": NOW, base(0): NOW, base(3): NOW})
    with filled.session() as opened:
        opened.maildrop.mark_deleted(3)
        retrieve(opened, 1)
    assert record_of(filled) == {base(0): NOW, base(1): NOW}


def test_what_was_moved_or_replaced_meanwhile_stays(filled: Store) -> None:
    """Only what is where it was seen to be, as it was, is due; the next session looks again."""
    with filled.session() as opened:
        retrieve(opened, 0, 2)
    later = NOW + 31 * DAY_S
    with filled.session() as opened:
        os.rename(filled.file("new", base(0)), filled.file("cur", base(0) + b":2,F"))
        path = os.fsdecode(filled.file("cur", base(2) + b":2,S"))
        os.unlink(path)
        os.symlink("/etc/passwd", path)
        retrieve(opened, 1, now_s=later)
        assert opened.maildrop.marked() == []
    assert record_of(filled) == {base(0): NOW, base(1): later, base(2): NOW}


def test_update_removes_what_is_due(filled: Store) -> None:
    """The whole of it, by way of UPDATE, with a retention of some 10 milliseconds."""
    options = {"expire_days": 1e-7}
    with filled.session(**options) as opened:
        opened.maildrop.retrieved.add(0)
        assert (opened.update().expired, opened.maildrop.count) == (0, 4)
    filled.settle()
    deadline = time.monotonic() + 20
    while True:
        with filled.session(**options) as opened:
            opened.maildrop.retrieved.add(3)
            result = opened.update()
            if result.expired:
                break
        assert time.monotonic() < deadline
    assert (result.expired, result.removed, result.failed) == (1, 1, 0)
    assert sorted(name for name, _ in filled.messages()) == [base(1), base(2), base(3)]


@pytest.mark.parametrize("options", [{}, {"expire_days": DAYS}], ids=["off", "nothing retrieved"])
def test_nothing_is_touched_without_a_retrieval(filled: Store, options: dict[str, int]) -> None:
    """A session that only looks asks nobody about retention."""
    write_record(filled, {base(0): 1})
    before = os.stat(filled.path / RECORD_NAME)
    with filled.session(**options) as opened:
        opened.maildrop.mark_deleted(1)
        with watched() as calls:
            assert opened.update().expired == 0
        assert calls.by_name["open_file"] <= 2  # the quota file, and a folder
    assert os.stat(filled.path / RECORD_NAME) == before


# What goes wrong


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (make_link, "ELOOP"),
        (os.mkfifo, "EPERM"),
        (os.mkdir, "EPERM"),
        (make_large, "damaged"),
        (lambda path: path.write_bytes(b"gpop-retrieved 1 00000001\n"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
    ],
    ids=["link", "FIFO", "directory", "1 TB", "wrong checksum", "empty"],
)
def test_what_is_no_record_says_nothing(filled: Store, make, fault: str) -> None:
    """It lies in the user's directory: nothing waits for it, follows it, reads it whole or removes for it."""
    make(filled.path / RECORD_NAME)
    with filled.session(expire_days=DAYS) as opened:
        opened.maildrop.retrieved.add(0)
        result = opened.update()
        assert (result.expired, result.removed, result.moved) == (0, 0, 1)
        assert opened.warnings == [("retention_failed", {"reason": fault})]


def test_a_draft_left_behind_is_replaced(filled: Store) -> None:
    """A session that was killed at the wrong moment does not end retention."""
    (filled.path / retention.DRAFT_NAME).write_bytes(b"half")
    with filled.session() as opened:
        assert retrieve(opened, 0).fault == ""
    assert record_of(filled) == {base(0): NOW}
    assert not (filled.path / retention.DRAFT_NAME).exists()


@pytest.mark.parametrize("error_number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_any_call_may_fail(tmp_path: Path, error_number: int) -> None:
    """Whichever it is: only what is due is marked, the record is whole, and nothing is raised."""
    later = NOW + 31 * DAY_S
    for failing in range(1, 100):
        store = Store(tmp_path / str(failing))
        store.deliver_many(4)
        write_record(store, {base(0): NOW, base(1): NOW})
        with store.session() as opened, watched(failing, error_number) as calls:
            ending = retrieve(opened, 2, now_s=later)
            marked = set(opened.maildrop.marked())
        assert marked <= {0, 1}
        record = record_of(store)
        assert record is not None and record.get(base(3)) is None
        assert all(seconds in (NOW, later) for seconds in record.values())
        store.close()
        if not calls.failed:
            assert (ending.fault, marked, record) == ("", {0, 1}, {base(2): later})
            return
    raise AssertionError("no run got by without a failure")
