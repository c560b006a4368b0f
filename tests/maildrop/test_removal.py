"""What becomes of the files of removed messages: gone, or in a folder of the same Maildir."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest

from gpop.maildrop import errors
from tests.maildrop.faults import watched
from tests.maildrop.store import Store, expected, listing

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
