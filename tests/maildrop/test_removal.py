"""What becomes of the files of removed messages: gone, or in a folder of the same Maildir."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from gpop.maildrop import errors, importfile
from gpop.maildrop.imported import HIDDEN, ImportedId
from tests.maildrop.faults import watched
from tests.maildrop.store import Store, content, expected, listing

NAMES = ("1700000000.M0P1.host", "1700000001.M1P1.host:2,S")


@pytest.fixture
def filled(store: Store) -> Store:
    """One message in new/, one in cur/."""
    store.deliver(NAMES[0], b"Subject: first\n\none\n")
    store.deliver(NAMES[1], b"Subject: second\n\ntwo\n", "cur")
    return store


def remove(store: Store, *indexes: int, **options: object) -> tuple[int, int]:
    """A session that removes messages; returns how many were removed, and how many not."""
    with store.session(**options) as opened:
        for index in indexes:
            opened.maildrop.mark_deleted(index)
        result = opened.update()
        return result.removed, result.failed


def moved(store: Store, folder: str = ".Trash") -> dict[str, bytes]:
    path = store.path / folder / "cur"
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_removed_messages_move_to_the_folder(filled: Store) -> None:
    """Octet for octet, with their flags; no session sees them again."""
    assert remove(filled, 0, 1, removal=".Trash") == (2, 0)
    assert moved(filled) == {
        "1700000000.M0P1.host:2,": b"Subject: first\n\none\n",
        NAMES[1]: b"Subject: second\n\ntwo\n",
    }
    assert filled.files() == {}
    with filled.session() as opened:
        assert listing(opened) == []


def test_a_missing_folder_is_made_as_maildir_plus_plus_wants_it(filled: Store) -> None:
    """Three folders and the mark, for the user alone; one that is there stays as it is."""
    remove(filled, 0, removal=".Trash")
    folder = filled.path / ".Trash"
    assert sorted(os.listdir(folder)) == ["cur", "maildirfolder", "new", "tmp"]
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    (folder / "new" / "other").write_bytes(b"x")
    assert remove(filled, 0, removal=".Trash") == (1, 0)
    assert (folder / "new" / "other").read_bytes() == b"x"


def test_a_message_of_the_same_name_in_the_folder_is_not_destroyed(filled: Store) -> None:
    """Then the removed one stays where it is, and the client is told."""
    remove(filled, 0, removal=".Trash")
    filled.deliver(NAMES[0], b"Subject: another\n\nof that name\n")
    assert remove(filled, 0, removal=".Trash") == (0, 1)
    assert moved(filled)["1700000000.M0P1.host:2,"] == b"Subject: first\n\none\n"
    assert (b"1700000000.M0P1.host", b"Subject: another\n\nof that name\n") in filled.messages()


def test_what_an_ended_session_had_linked_is_finished(filled: Store) -> None:
    """Killed between link and unlink: the same file under both names; the next removal goes through."""
    remove(filled, 1, removal=".Trash")
    os.link(filled.file("new", NAMES[0]), filled.path / ".Trash" / "cur" / (NAMES[0] + ":2,"))
    assert remove(filled, 0, removal=".Trash") == (1, 0)
    assert filled.files() == {}
    assert len(moved(filled)) == 2


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_a_folder_that_is_none_keeps_the_messages(filled: Store, tmp_path: Path, kind: str) -> None:
    """A link to a directory of somebody's is not followed; nothing is removed and the client is told."""
    path = filled.path / ".Trash"
    target = tmp_path / "target"
    target.mkdir()
    {"link": lambda: path.symlink_to(target), "file": path.touch, "fifo": lambda: os.mkfifo(path)}[kind]()
    before = filled.files()
    with filled.session(removal=".Trash") as opened:
        opened.maildrop.mark_deleted(0)
        result = opened.update()
        assert (result.removed, result.failed) == (0, 1)
        assert opened.warnings[-1][0] == "removal_failed"
    assert filled.files() == before
    assert os.listdir(target) == []


def test_a_quota_file_is_told_of_what_is_gone_only(filled: Store) -> None:
    """What moves to a folder of the Maildir still counts in its quota."""
    quota = filled.path / "maildirsize"
    quota.write_bytes(b"1000S\n40 2\n")
    remove(filled, 0, removal=".Trash")
    assert quota.read_bytes() == b"1000S\n40 2\n"
    remove(filled, 0)
    assert quota.read_bytes() != b"1000S\n40 2\n"


def test_every_failing_call_leaves_each_message_in_one_place_at_least(tmp_path: Path) -> None:
    """The n-th system call fails, for n = 1, 2, 3...: nothing is lost, and nothing has other octets."""
    contents = {b"Subject: first\n\none\n", b"Subject: second\n\ntwo\n"}
    failing = 0
    while True:
        failing += 1
        store = Store(tmp_path / str(failing))
        store.deliver(NAMES[0], b"Subject: first\n\none\n")
        store.deliver(NAMES[1], b"Subject: second\n\ntwo\n", "cur")
        with watched(failing, 5) as calls, contextlib.suppress(OSError, errors.MaildropError):
            remove(store, 0, 1, removal=".Trash")
        kept = [octets for _, octets in store.messages()]
        if (store.path / ".Trash" / "cur").exists():
            kept += moved(store).values()
        assert set(kept) == contents, calls.failed
        assert remove(store, *range(len(expected(store))), removal=".Trash")[1] == 0
        assert set(moved(store).values()) == contents
        store.close()
        if not calls.failed:
            break
    assert failing > 20


def test_each_removed_message_is_noted_with_audit(filled: Store) -> None:
    """Place, octets and the way; without audit nobody hears of it."""
    noted: list[tuple[bytes, int, str]] = []
    for audit in (False, True):
        with filled.session(removal=".Trash", audit=audit) as opened:
            opened.maildrop.mark_deleted(0)
            octets = opened.maildrop.octets(0)
            opened.update(lambda location, size, how: noted.append((location.unique_id, size, how)))
    assert noted == [(NAMES[1].partition(":")[0].encode(), octets, ".Trash")]


# Hidden


def hide(store: Store, *indexes: int) -> tuple[int, int]:
    return remove(store, *indexes, removal="hide")


def test_hidden_messages_stay_and_are_shown_no_more(filled: Store) -> None:
    """Neither in the next session nor after the cache is lost; files and the other's id are as before."""
    before, files = expected(filled), filled.files()
    assert hide(filled, 0) == (1, 0)
    for _ in range(2):
        with filled.session() as opened:
            assert listing(opened) == before[1:]
        filled.cache.unlink()
    assert filled.files() == files


def test_the_next_poll_after_hiding_is_no_hit_and_the_one_after_it_is(filled: Store) -> None:
    """The cache of before is not believed, the one of after is."""
    filled.poll()
    filled.settle()
    hide(filled, 0)
    filled.settle()
    assert filled.poll() == ("refresh", "import_changed")
    filled.settle()
    filled.poll()
    assert filled.poll()[0] == "hit"


def test_new_mail_comes_and_hidden_messages_move(filled: Store) -> None:
    """Whatever flags and folder others give them; and a new message is shown as ever."""
    hide(filled, 0)
    os.rename(filled.file("new", NAMES[0]), filled.file("cur", NAMES[0] + ":2,FS"))
    filled.deliver("1700000002.M2P1.host")
    with filled.session() as opened:
        assert [unique_id for unique_id, _ in listing(opened)] == [
            NAMES[1].partition(":")[0].encode(),
            b"1700000002.M2P1.host",
        ]


def test_a_retrieved_message_that_is_hidden_is_seen_in_cur(filled: Store) -> None:
    """As any retrieved one: webmail does not show it as new."""
    with filled.session(removal="hide") as opened:
        opened.maildrop.retrieved.add(0)
        opened.maildrop.mark_deleted(0)
        assert opened.update().removed == 1
    assert ("cur", (NAMES[0] + ":2,S").encode()) in filled.files()
    assert len(expected(filled)) == 2
    with filled.session() as opened:
        assert len(listing(opened)) == 1


def test_what_is_gone_is_forgotten_when_more_is_hidden(filled: Store) -> None:
    """The file of hidden messages does not grow for ever."""
    hide(filled, 0)
    os.unlink(filled.file("new", NAMES[0]))
    assert hide(filled, 0) == (1, 0)
    assert importfile.read(filled.dir_fd) == {
        NAMES[1].partition(":")[0].encode(): ImportedId(NAMES[1].partition(":")[0].encode(), HIDDEN)
    }


def test_imported_ids_stay_when_something_is_hidden(filled: Store) -> None:
    """Of the message that is hidden, and of the others; unhiding brings it back with its id."""
    bases = [name.partition(":")[0].encode() for name in NAMES]
    importfile.add(filled.dir_fd, {bases[0]: ImportedId(b"one", 2), bases[1]: ImportedId(b"two", 1)})
    with filled.session() as opened:
        assert [unique_id for unique_id, _ in listing(opened)] == [b"two", b"one"]
    assert hide(filled, 1) == (1, 0)
    with filled.session() as opened:
        assert [unique_id for unique_id, _ in listing(opened)] == [b"two"]
    assert importfile.unhide(filled.dir_fd, {b"other"}) == 0
    assert importfile.unhide(filled.dir_fd, None) == 1
    with filled.session() as opened:
        assert [unique_id for unique_id, _ in listing(opened)] == [b"two", b"one"]


def test_no_new_message_gets_the_id_of_a_hidden_one(filled: Store) -> None:
    """A client has seen that id: it would take the new message for the old one."""
    hide(filled, 0)
    base = NAMES[0].encode()
    os.unlink(filled.file("new", NAMES[0]))
    filled.deliver("1700000005.M5P1.host")
    with filled.session() as opened:
        assert base not in [unique_id for unique_id, _ in listing(opened)]


def test_twins_are_not_hidden(store: Store) -> None:
    """One base name for two messages: hiding one would hide the other. The client is told."""
    store.deliver(NAMES[0], b"Subject: first\n\none\n")
    store.deliver(NAMES[0] + ":2,S", b"Subject: other\n\ntwo\n", "cur")
    assert hide(store, 0) == (0, 1)
    with store.session() as opened:
        assert len(listing(opened)) == 2


def test_who_is_told_that_a_message_was_removed_sees_it_no_more(filled: Store) -> None:
    """The n-th system call fails, for n = 1, 2, 3...: no file is lost, and what was answered is so."""
    failing = 0
    while True:
        failing += 1
        with filled.session(removal="hide") as opened:
            opened.maildrop.mark_deleted(0)
            with watched(failing, 28) as calls:
                result = opened.update()
        hidden = importfile.unhide(filled.dir_fd, None)
        # Not the other way round: when only the disk's last answer failed, it is hidden all the same.
        assert hidden if result.removed else result.failed == 1
        (filled.path / ".unique-ids").unlink(missing_ok=True)
        if not calls.failed:
            break
    assert failing > 8
    assert len(expected(filled)) == 2


def test_a_message_without_a_base_name_keeps_no_other_from_being_hidden(filled: Store) -> None:
    """`.unique-ids` has no place for it, so it stays, and the client is told; the others are hidden."""
    filled.deliver(":2,S", b"Subject: nameless\n\nthree\n", "cur")
    with filled.session() as opened:
        count = opened.maildrop.count
    assert hide(filled, *range(count)) == (2, 1)
    with filled.session() as opened:
        assert [content(opened, index) for index in range(opened.maildrop.count)] == [
            b"Subject: nameless\n\nthree\n"
        ]


def test_an_id_that_somebody_gave_away_meanwhile_is_no_end_of_update(filled: Store) -> None:
    """`.unique-ids` was changed in the session, and has that id for another message: not hidden, and told."""
    first = NAMES[0].encode()
    with filled.session(removal="hide") as opened:
        importfile.add(filled.dir_fd, {b"1600000000.other": ImportedId(first)})
        opened.maildrop.mark_deleted(0)
        result = opened.update()
        assert (result.removed, result.failed) == (0, 1)
        assert opened.warnings[-1][0] == "removal_failed"
