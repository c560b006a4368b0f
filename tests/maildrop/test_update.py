"""UPDATE: what was marked is removed, what was retrieved is filed away, and nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpop.maildrop import errors, system
from tests.maildrop.store import Store, content, expected, lines, listing, without_root


def base(number: int) -> bytes:
    return b"%d.M%dP1.host" % (1700000000 + number, number)


@pytest.fixture
def filled(store: Store) -> Store:
    """Messages 1 and 2 in new/, 3 and 4 in cur/."""
    store.deliver_many(2)
    store.deliver_many(2, first=2, folder="cur")
    return store


def test_marks(filled: Store) -> None:
    """Marked messages leave STAT, LIST and UIDL, the numbers of the others stay; unmarking undoes it."""
    with filled.session() as opened:
        drop = opened.maildrop
        before = listing(opened)
        for index in (3, 0, 3):
            drop.mark_deleted(index)
        assert drop.marked() == [0, 3]
        assert listing(opened) == before[1:3]
        assert [number for number, _ in lines(opened, "LIST")] == [2, 3]
        for index in (1, 2):
            drop.mark_deleted(index)
        assert listing(opened) == []
        assert drop.stat() == (0, 0)
        drop.unmark_all()
        assert listing(opened) == before


def test_what_was_marked_is_removed(filled: Store) -> None:
    """In both folders, and only that."""
    with filled.session() as opened:
        kept = [one for index, one in enumerate(listing(opened)) if index in (1, 3)]
        octets = opened.maildrop.octets(0) + opened.maildrop.octets(2)
        opened.maildrop.mark_deleted(0)
        opened.maildrop.mark_deleted(2)
        result = opened.update()
        assert (result.removed, result.removed_octets, result.failed, result.moved) == (2, octets, 0, 0)
    assert expected(filled) == kept
    with filled.session() as opened:
        assert listing(opened) == kept


def test_without_update_nothing_happens(filled: Store) -> None:
    """However much was marked and retrieved: removal is UPDATE's, and only a QUIT leads there."""
    before = filled.files()
    with filled.session() as opened:
        opened.maildrop.mark_deleted(0)
        opened.maildrop.retrieved.add(1)
    assert filled.files() == before


def test_a_poll_changes_nothing(filled: Store) -> None:
    """A session that neither retrieves nor marks leaves new/ and cur/ as they are."""
    before = [os.stat(filled.path / folder).st_ctime_ns for folder in ("new", "cur")]
    filled.poll()
    filled.poll()
    assert [os.stat(filled.path / folder).st_ctime_ns for folder in ("new", "cur")] == before


def test_retrieved_messages_move_to_cur(filled: Store) -> None:
    """With the S flag, flags that were there kept and sorted; messages in cur/ are left alone."""
    os.rename(filled.file("new", base(1)), filled.file("new", base(1) + b":2,TF"))
    with filled.session() as opened:
        before = listing(opened)
        opened.maildrop.retrieved.update({0, 1, 2})
        assert opened.update().moved == 2
    assert {name for _, name in filled.files()} == {
        base(0) + b":2,S",
        base(1) + b":2,FST",
        base(2),
        base(3),
    }
    assert {folder for folder, _ in filled.files()} == {"cur"}
    with filled.session() as opened:
        assert listing(opened) == before


def test_moving_is_a_setting(filled: Store) -> None:
    """Where new/ means something to another program, retrieved messages stay there."""
    before = filled.files()
    with filled.session(move_to_cur=False) as opened:
        opened.maildrop.retrieved.update({0, 1})
        assert opened.update().moved == 0
    assert filled.files() == before


def test_marked_messages_are_not_moved(filled: Store) -> None:
    """Retrieved and marked means removed."""
    with filled.session() as opened:
        opened.maildrop.retrieved.add(0)
        opened.maildrop.mark_deleted(0)
        result = opened.update()
        assert (result.removed, result.moved) == (1, 0)


def test_a_move_never_writes_over_a_message(filled: Store) -> None:
    """Another file that has the name in cur/ stays what it is; the message stays in new/."""
    with filled.session() as opened:
        filled.deliver(base(0) + b":2,S", b"another message\n", folder="cur")
        before = filled.files()
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 0
        assert opened.warnings == [("move_failed", {"messages": 1, "reason": "EEXIST"})]
    assert filled.files() == before


def test_an_interrupted_move_is_completed(filled: Store) -> None:
    """If the name in cur/ is the message itself, only the name in new/ is left to remove."""
    with filled.session() as opened:
        os.link(filled.file("new", base(0)), filled.file("cur", base(0) + b":2,S"))
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 1
    assert ("new", base(0)) not in filled.files()


def test_a_name_too_long_to_get_flags(store: Store) -> None:
    """A message whose name has no room for `:2,S` stays in new/, and is still served."""
    store.deliver(b"1700000000." + b"x" * 243)
    with store.session() as opened:
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 0
        assert opened.warnings == [("move_failed", {"messages": 1, "reason": "ENAMETOOLONG"})]
    assert store.poll() == ("hit", "unchanged")


def test_mtime_is_never_touched(filled: Store) -> None:
    """A migrated message may keep its unique-id of old in its mtime (nupop did)."""
    for (folder, name), _ in filled.files().items():
        os.utime(filled.file(folder, name), (4711, 4711))
    with filled.session() as opened:
        content(opened, 0)
        opened.maildrop.retrieved.add(0)
        opened.update()
    assert {os.stat(filled.file(*where)).st_mtime for where in filled.files()} == {4711}


# Other programs in the same maildrop


def test_messages_renamed_by_others(filled: Store) -> None:
    """Found again by base name: to be read, and to be removed."""
    with filled.session() as opened:
        contents = [content(opened, index) for index in range(4)]
        for number in (0, 1):
            os.rename(filled.file("new", base(number)), filled.file("cur", base(number) + b":2,S"))
        os.rename(filled.file("cur", base(2)), filled.file("cur", base(2) + b":2,F"))
        assert [content(opened, index) for index in range(4)] == contents
        os.rename(filled.file("cur", base(2) + b":2,F"), filled.file("cur", base(2) + b":2,FS"))
        assert content(opened, 2) == contents[2]
        for index in (0, 2, 3):
            opened.maildrop.mark_deleted(index)
        result = opened.update()
        assert (result.removed, result.failed) == (3, 0)
    assert set(filled.files()) == {("cur", base(1) + b":2,S")}


def test_messages_removed_by_others(filled: Store) -> None:
    """A vanished message keeps its number, can't be read, and counts as removed."""
    with filled.session() as opened:
        before = listing(opened)
        os.unlink(filled.file("new", base(0)))
        with pytest.raises(errors.MessageVanished):
            opened.message(0)
        assert listing(opened) == before
        opened.maildrop.mark_deleted(0)
        opened.maildrop.retrieved.add(0)
        result = opened.update()
        assert (result.removed, result.failed) == (1, 0)
        assert opened.warnings == []


def test_a_removed_message_is_gone_also_where_the_clock_was_set_back(filled: Store) -> None:
    """A folder's stamp from the future shows every change: to be sure does not take until then."""
    with filled.session() as opened:
        os.unlink(filled.file("new", base(0)))
        ahead = os.stat(filled.path / "new").st_mtime_ns + 3600 * 10**9
        os.utime(filled.path / "new", ns=(ahead, ahead))
        opened.maildrop.mark_deleted(0)
        result = opened.update()
        assert (result.removed, result.failed) == (1, 0)


def test_messages_moved_by_others_are_not_moved(filled: Store) -> None:
    """Another program was faster: nothing to do, nothing to say."""
    with filled.session() as opened:
        os.rename(filled.file("new", base(0)), filled.file("cur", base(0) + b":2,"))
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 0
        assert opened.warnings == []


def test_a_message_moved_by_others_between_link_and_unlink_has_one_name(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An IMAP server moves it in that moment: its name stays, ours goes. Two would be two messages to it."""
    real = system.link
    theirs = filled.file("cur", base(0) + b":2,")

    def link(name: bytes, *arguments: Any, **named: Any) -> None:
        real(name, *arguments, **named)
        os.rename(filled.file("new", name), theirs)

    monkeypatch.setattr(system, "link", link)
    with filled.session() as opened:
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 0
        assert opened.warnings == []
    assert [name for _, name in filled.files() if name.startswith(base(0))] == [base(0) + b":2,"]


def test_a_move_that_another_session_completes_keeps_the_message(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without session.lock two sessions may move one message: the name in cur/ is then the only one."""
    real = system.link

    def link(name: bytes, *arguments: Any, **named: Any) -> None:
        real(name, *arguments, **named)
        os.unlink(filled.file("new", name))

    monkeypatch.setattr(system, "link", link)
    with filled.session() as opened:
        opened.maildrop.retrieved.add(0)
        opened.update()
    assert ("cur", base(0) + b":2,S") in filled.files()


def test_a_message_replaced_by_something_else(filled: Store) -> None:
    """A FIFO, directory or link in a message's place is not opened, waited for or followed."""
    with filled.session() as opened:
        for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path))):
            folder = "new" if number < 2 else "cur"
            os.unlink(filled.file(folder, base(number)))
            make(filled.file(folder, base(number)))
            with pytest.raises(errors.MessageUnreadable):
                opened.message(number)
        opened.maildrop.mark_deleted(1)
        result = opened.update()
        assert (result.removed, result.failed) == (0, 1)
        assert opened.warnings == [("removal_failed", {"messages": 1, "reason": "EISDIR"})]


def test_new_mail_is_invisible_until_the_next_session(filled: Store) -> None:
    """RFC 1939 §3: the messages of a session are fixed, and mail that comes meanwhile is not harmed."""
    filled.poll()
    with filled.session() as opened:
        before = listing(opened)
        filled.deliver_many(3, first=10)
        assert listing(opened) == before
        for index in range(4):
            opened.maildrop.mark_deleted(index)
        assert opened.update().removed == 4
    with filled.session() as opened:
        assert listing(opened) == expected(filled)
        assert opened.maildrop.count == 3


def test_removal_that_fails_is_told(filled: Store) -> None:
    """A message that can't be removed is counted, and keeps nothing else from being removed."""
    os.chmod(filled.path / "new", 0o500)
    with without_root(filled), filled.session() as opened:
        for index in range(4):
            opened.maildrop.mark_deleted(index)
        result = opened.update()
        assert (result.removed, result.failed) == (2, 2)
        assert opened.warnings == [("removal_failed", {"messages": 2, "reason": "EACCES"})]
    os.chmod(filled.path / "new", 0o700)
    assert {folder for folder, _ in filled.files()} == {"new"}


KEEP_RENAMING = """
import os, sys
cur, flag = os.fsencode(sys.argv[1]), 0
print("renaming", flush=True)
while True:
    flag += 1
    for name in os.listdir(cur):
        base = name.split(b":")[0]
        try:
            os.rename(cur + b"/" + name, cur + b"/" + base + b":2," + b"FS"[flag % 2:][:1])
        except FileNotFoundError:
            pass
"""


def test_another_program_renaming_all_the_time(store: Store) -> None:
    """Flags that change while UPDATE removes: every message is removed, or reported as not removed."""
    store.deliver_many(60, folder="cur")
    command = [sys.executable, "-c", KEEP_RENAMING, str(store.path / "cur")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout and other.stdout.readline() == b"renaming\n"
            with store.session() as opened:
                for index in range(opened.maildrop.count):
                    opened.maildrop.mark_deleted(index)
                result = opened.update()
                count = opened.maildrop.count
        finally:
            other.kill()
    assert result.removed + result.failed == count
    assert len(store.files()) == result.failed + 60 - count
    assert count == 60, "readdir misses what is renamed, but not each time"


# The Maildir++ quota file


def test_the_quota_file_gets_one_line(filled: Store) -> None:
    """For what was really unlinked: S= or the file's size, and how many; nothing else is changed."""
    filled.deliver(b"1700000009.q,S=1000", b"not a thousand\n")
    quota = filled.path / "maildirsize"
    quota.write_bytes(b"10000S\n5000 5\n")
    sizes = [len(filled.files()["new", base(0)]), 1000]
    with filled.session() as opened:
        os.unlink(filled.file("cur", base(2)))
        for index in (0, 2, 4):
            opened.maildrop.mark_deleted(index)
        assert opened.update().removed == 3
    assert quota.read_bytes() == b"10000S\n5000 5\n-%d -2\n" % sum(sizes)


def test_without_a_quota_file_none_is_made(filled: Store) -> None:
    """Maildir++ quotas are for those who have them."""
    with filled.session() as opened:
        opened.maildrop.mark_deleted(0)
        opened.update()
    assert not (filled.path / "maildirsize").exists()


def test_nothing_removed_nothing_written(filled: Store) -> None:
    """A poll does not touch the quota file."""
    quota = filled.path / "maildirsize"
    quota.write_bytes(b"10000S\n5000 5\n")
    filled.poll()
    assert quota.read_bytes() == b"10000S\n5000 5\n"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "hard link", "read-only"])
def test_a_quota_file_that_is_none(filled: Store, tmp_path: Path, kind: str) -> None:
    """Mail is removed all the same, nothing is written through a link, and one event says so."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    quota = filled.path / "maildirsize"
    if kind == "link":
        quota.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(quota)
    elif kind == "directory":
        quota.mkdir()
    elif kind == "hard link":
        os.link(victim, quota)
    else:
        quota.write_bytes(b"kept")
        quota.chmod(0o400)
    with without_root(filled), filled.session() as opened:
        opened.maildrop.mark_deleted(0)
        assert opened.update().removed == 1
        assert [event for event, _ in opened.warnings] == ["maildirsize_failed"]
    assert victim.read_bytes() == b"kept"


# What RETR teaches


def test_a_lying_size_is_corrected(store: Store) -> None:
    """LIST stays as it was in this session; the next one is a hit with the true octets, and one event."""
    for number in range(3):
        store.deliver(f"170000000{number}.a,W=99", b"a\nb\n")
    with store.session() as opened:
        before = listing(opened)
        for index in (1, 2):
            content(opened, index)
            opened.learned(index, 6, 1)
        opened.learned(0, 99, 3)
        corrected = {"message": 2, "listed": 99, "octets": 6}
        assert opened.warnings == [("size_corrected", corrected)]
        assert listing(opened) == before
    with store.session() as opened:
        assert opened.outcome == "hit"
        assert [octets for _, octets in listing(opened)] == [99, 6, 6]
        assert opened.maildrop.location(1).form == 1
    store.deliver_many(1, first=9)
    with store.session() as opened:
        assert opened.outcome == "refresh"
        assert [octets for _, octets in listing(opened)][:3] == [99, 6, 6]


def test_a_form_alone_is_not_worth_a_write(store: Store) -> None:
    """What RETR learns about a form is kept only if the cache is written anyway."""
    store.deliver("1700000000.a,W=6", b"a\nb\n")
    store.poll()
    before = store.cache.stat().st_ino
    with store.session() as opened:
        opened.learned(0, 6, 1)
        assert opened.warnings == []
    assert store.cache.stat().st_ino == before


def test_a_correction_survives_update(store: Store) -> None:
    """The session that corrects also moves the message: the refresh that follows keeps the octets."""
    store.deliver("1700000000.a,W=99", b"a\nb\n")
    with store.session() as opened:
        opened.learned(0, 6, 1)
        opened.maildrop.retrieved.add(0)
        assert opened.update().moved == 1
    with store.session() as opened:
        assert opened.outcome == "refresh"
        assert listing(opened) == [(b"1700000000.a,W=99", 6)]


def test_a_newer_cache_is_not_corrected(store: Store) -> None:
    """Without the lock another session may have written the cache meanwhile: it is left alone."""
    store.deliver("1700000000.a,W=99", b"a\nb\n")
    with store.session() as opened:
        opened.learned(0, 6, 1)
        store.deliver("1700000001.b")
        assert store.poll()[0] == "refresh"
        inode = store.cache.stat().st_ino
    assert store.cache.stat().st_ino == inode
    assert store.poll() == ("hit", "unchanged")


def test_an_estimate_is_corrected_by_reading(store: Store) -> None:
    """A message that could not be read, and then can, is corrected like any other."""
    store.deliver("1700000000.a", b"a\nb\n")
    os.chmod(store.file("new", "1700000000.a"), 0)
    with without_root(store):
        store.poll()
        os.chmod(f"/proc/self/fd/{store.dir_fd}/new/1700000000.a", 0o600)
        with store.session() as opened:
            assert opened.outcome == "hit"
            assert content(opened, 0) == b"a\nb\n"
            opened.learned(0, 6, 1)
        with store.session() as opened:
            assert opened.outcome == "hit"
            assert [octets for _, octets in listing(opened)] == [6]


# A Maildir that can't be written


def test_a_maildir_that_cant_be_written(filled: Store) -> None:
    """Served from memory, correct all the same, with an event each time; corrections are not tried."""
    filled.path.chmod(0o500)
    with without_root(filled):
        for _ in range(2):
            with filled.session() as opened:
                assert (opened.outcome, opened.reason) == ("rebuild", "absent")
                assert opened.warnings == [("cache_unwritable", {"reason": "EACCES"})]
                assert opened.image.fd == -1
                assert len(listing(opened)) == 4
                opened.learned(0, 1, 1)
    filled.path.chmod(0o700)
    assert sorted(os.listdir(filled.path)) == ["cur", "new", "tmp"]


def test_a_stale_cache_that_cant_be_written(filled: Store) -> None:
    """What the old cache knows is used, new mail is seen, and the old cache stays."""
    filled.poll()
    filled.deliver_many(1, first=9)
    filled.path.chmod(0o500)
    with without_root(filled):
        for _ in range(2):
            with filled.session() as opened:
                assert opened.outcome == "refresh"
                assert opened.warnings == [("cache_unwritable", {"reason": "EACCES"})]
                assert len(listing(opened)) == 5
    filled.path.chmod(0o700)


def test_old_drafts_are_removed(filled: Store) -> None:
    """What crashed writers left goes at a rebuild, after an hour; nothing else of the user's does."""
    for name, age_s in ((".statcache.1.a", 7200), (".statcache.2.b", 60), (".statcacheful", 7200)):
        (filled.path / name).write_bytes(b"x")
        then = (filled.path / name).stat().st_mtime - age_s
        os.utime(filled.path / name, (then, then))
    (filled.path / ".statcache.3.c").mkdir()
    filled.poll()
    left = sorted(name for name in os.listdir(filled.path) if name.startswith(".statcache"))
    assert left == [".statcache", ".statcache.2.b", ".statcache.3.c", ".statcacheful"]
