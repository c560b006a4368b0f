"""
Any single system call fails: the maildrop is whole afterwards, and the next session is told the truth.

As SQLite does it: the n-th call fails, for n = 1, 2, 3 ... until a run gets by without.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpop.maildrop import errors, system
from tests.maildrop.faults import CALLS, Calls, watched
from tests.maildrop.store import Store, content, expected, listing

# A disk that fails, a disk that is full, a machine out of memory: all may be over the next time.
LARGE = 6000  # messages, whose cache is more than is read at once
ERRORS = [errno.EIO, errno.ENOSPC, errno.ENOMEM]


def fail_each_call(
    tmp_path: Path,
    error_number: int,
    prepare: Callable[[Store], None],
    run: Callable[[Store, int], Calls],
) -> Counter[str]:
    """Prepare a maildrop and run a session on it, over and over; returns which calls were made to fail."""
    failed: Counter[str] = Counter()
    unharmed = 0
    for failing in range(1, 500):
        store = Store(tmp_path / str(failing) / "Maildir")
        prepare(store)
        calls = run(store, failing)
        assert_whole(store)
        store.close()
        failed[calls.failed] += 1
        # Waiting for the clock (just delivered) takes more or fewer calls each time:
        # so one run without a failure is not the end.
        unharmed += not calls.failed
        if unharmed == 5:
            return failed
    raise AssertionError("no run got by without a failure")


def assert_whole(store: Store) -> None:
    """Two more sessions: everything there is served, as it is, and the second one is a hit."""
    for _ in range(2):
        with store.session() as opened:
            outcome = opened.outcome
            assert listing(opened) == expected(store)
            wanted = sorted(octets for _, octets in store.messages())
            assert sorted(content(opened, index) for index in range(opened.maildrop.count)) == wanted
    assert outcome == "hit"
    drafts = [name for name in os.listdir(store.path) if name.startswith(".statcache.")]
    assert len(drafts) <= 1, "only a draft whose removal failed may be left"


def test_every_call_can_fail() -> None:
    """The seam covers what this package asks of the system."""
    assert {"open_file", "read", "pread", "write", "fdatasync", "rename", "unlink", "link"} <= set(CALLS)


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("state", ["absent", "just delivered", "new mail", "removed", "damaged"])
def test_opening(tmp_path: Path, state: str, error_number: int) -> None:
    """Refused with the errno, or served: with right unique-ids, and right octets unless a file failed."""

    def prepare(store: Store) -> None:
        store.deliver_many(2)
        store.deliver_many(2, first=2, folder="cur")
        if state not in ("absent", "just delivered"):
            store.poll()
        if state == "new mail":
            store.deliver("1700000005.b", b"x\n")
        if state == "removed":
            os.unlink(store.file("cur", "1700000003.M3P1.host"))
        if state == "damaged":
            store.cache.write_bytes(store.cache.read_bytes()[:-1])
        if state != "just delivered":
            store.settle()

    def run(store: Store, failing: int) -> Calls:
        before, truth = store.files(), expected(store)
        with watched(failing, error_number) as calls:
            try:
                opened = store.open()
            except errors.MaildropUnavailable as unavailable:
                assert unavailable.errno in (error_number, 0)
                opened = None
        if opened:
            shown = listing(opened)
            assert [one[0] for one in shown] == [one[0] for one in truth]
            wrong = [one for one in shown if one not in truth]
            assert not wrong or calls.failed in ("open_file", "fstat", "read")
            assert len(wrong) <= 1
            opened.close()
        assert store.files() == before
        return calls

    failed = fail_each_call(tmp_path, error_number, prepare, run)
    if state != "just delivered":
        assert {"open_file", "stat", "writev", "rename"} <= set(failed)


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
def test_update(tmp_path: Path, error_number: int) -> None:
    """No message lost that was not marked, none doubled, and the count of failures is true."""

    def prepare(store: Store) -> None:
        store.deliver_many(4)
        store.deliver_many(4, first=4, folder="cur")
        (store.path / "maildirsize").write_bytes(b"10000S\n")

    def run(store: Store, failing: int) -> Calls:
        before = sorted(store.files().items(), key=lambda one: one[0][1])
        with store.session() as opened:
            os.rename(
                store.file("cur", "1700000005.M5P1.host"), store.file("cur", "1700000005.M5P1.host:2,F")
            )
            os.unlink(store.file("cur", "1700000006.M6P1.host"))
            for index in (0, 1, 4, 5, 6):
                opened.maildrop.mark_deleted(index)
            opened.maildrop.retrieved.update({0, 2, 3, 7})
            with watched(failing, error_number) as calls:
                result = opened.update()
            warnings = [event for event, _ in opened.warnings]
        after = Counter(name.split(b":")[0] for _, name in store.files())
        for index, ((_, name), octets) in enumerate(before):
            if index in (2, 3, 7):
                assert octets in store.files().values()
                assert after[name] == 1 or (calls.failed == "unlink" and after[name] == 2)
        still_there = sum(after[before[index][0][1]] for index in (0, 1, 4, 5))
        assert result.removed + result.failed == 5
        assert result.failed >= still_there
        if calls.failed and calls.failed != "close":
            assert result.failed or warnings or result.moved == 2
        return calls

    failed = fail_each_call(tmp_path, error_number, prepare, run)
    assert {"unlink", "link", "scandir", "write"} <= set(failed)


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
def test_correcting_the_cache(tmp_path: Path, error_number: int) -> None:
    """Closing never fails; the correction is there or it is not."""

    def prepare(store: Store) -> None:
        store.deliver("1700000000.a,W=9", b"a\nb\n")
        store.deliver("1700000001.b", b"a\nb\n")

    def run(store: Store, failing: int) -> Calls:
        opened = store.open()
        opened.learned(0, 6, 1)
        with watched(failing, error_number) as calls:
            opened.close()
        with store.session() as opened:
            assert opened.outcome == "hit"
            assert [octets for _, octets in listing(opened)] in ([6, 6], [9, 6])
            if not calls.failed:
                assert opened.maildrop.octets(0) == 6
            opened.learned(0, 6, 1)
        return calls

    failed = fail_each_call(tmp_path, error_number, prepare, run)
    assert {"writev", "rename"} <= set(failed)


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
def test_a_large_cache_that_does_not_reach_the_disk(tmp_path: Path, error_number: int) -> None:
    """Its body is not looked at on a hit, so it counts only once it is there; else it serves from memory."""
    store = Store(tmp_path)
    store.fill(LARGE)
    store.settle()
    with watched() as calls, store.session() as opened:
        assert opened.outcome == "rebuild" and opened.image.fd >= 0
    assert calls.by_name["fdatasync"] == 1
    store.cache.unlink()
    failing = 1 + list(calls.order).index("fdatasync")
    with watched(failing, error_number) as calls, store.session() as opened:
        assert calls.failed == "fdatasync"
        assert opened.image.fd < 0 and opened.maildrop.count == LARGE
        assert [event for event, _ in opened.warnings] == ["cache_unwritable"]
    assert not [name for name in os.listdir(store.path) if name.startswith(".statcache")]


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
def test_reading_messages(tmp_path: Path, error_number: int) -> None:
    """RETR of a message that can't be opened is refused by name, and closes what it opened."""

    def prepare(store: Store) -> None:
        store.deliver_many(2)
        store.deliver("1700000003.b:2,F", b"x\n", folder="cur")
        store.deliver("1700000003.b:2,S", b"y\n", folder="cur")

    def run(store: Store, failing: int) -> Calls:
        with store.session() as opened:
            os.rename(
                store.file("new", "1700000001.M1P1.host"), store.file("cur", "1700000001.M1P1.host:2,S")
            )
            before = len(os.listdir("/proc/self/fd"))
            with watched(failing, error_number) as calls:
                for index in range(4):
                    try:
                        os.close(opened.message(index).fd)
                    except (errors.MessageUnreadable, errors.MaildropUnavailable) as error:
                        assert error.errno == error_number
            # The two folders may be open by now.
            assert len(os.listdir("/proc/self/fd")) <= before + 2
        return calls

    def whole(store: Store, failing: int) -> Calls:
        calls = run(store, failing)
        os.unlink(store.file("cur", "1700000003.b:2,F"))
        return calls

    failed = fail_each_call(tmp_path, error_number, prepare, whole)
    assert {"open_file", "fstat", "pread", "scandir"} <= set(failed)


@pytest.mark.parametrize("error_number", [errno.EUCLEAN, errno.EBADMSG, errno.EIO], ids=errno.errorcode.get)
def test_a_message_that_its_file_system_finds_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch, error_number: int
) -> None:
    """It stays listed, with its file's size, and hides no other; RETR is to say that it can't be read."""
    store.deliver_many(3)
    damaged, real = b"1700000001.M1P1.host", system.open_file

    def open_file(name: Any, *arguments: Any, **named: Any) -> int:
        if name == damaged:
            raise OSError(error_number, os.strerror(error_number))
        return real(name, *arguments, **named)

    monkeypatch.setattr(system, "open_file", open_file)
    truth, size = expected(store), os.stat(store.file("new", damaged)).st_size
    with store.session() as opened:
        assert listing(opened) == [truth[0], (damaged, size), truth[2]]
        with pytest.raises(errors.MessageUnreadable):
            opened.message(1)
