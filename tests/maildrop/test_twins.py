"""Files that share a base name: one message, or several, and never the wrong one removed."""

from __future__ import annotations

import os
from typing import Any

import pytest

from gpop.maildrop import errors, renewal, system
from gpop.maildrop.opened import Opened
from tests.maildrop.store import Store, content, expected_id, expected_twin_id, listing, without_root

BASE = b"1700000001.b"


def twins(store: Store, *contents: bytes) -> None:
    for number, octets in enumerate(contents):
        store.deliver(BASE + b":2," + b"DFRST"[number : number + 1], octets, folder="cur")


def inodes(opened: Opened) -> list[int]:
    """The files behind the message-numbers."""
    found = []
    for index in range(opened.maildrop.count):
        message = opened.message(index)
        found.append(os.fstat(message.fd).st_ino)
        os.close(message.fd)
    return found


def test_two_names_of_one_file_are_one_message(store: Store) -> None:
    """A move to cur/ that was interrupted between link and unlink leaves one message, and stays so."""
    store.deliver(BASE, b"one\n")
    os.link(store.file("new", BASE), store.file("cur", BASE + b":2,S"))
    for outcome in ("rebuild", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            assert listing(opened) == [(BASE, 5)]
            assert content(opened, 0) == b"one\n"


def test_removing_it_removes_both_names(store: Store) -> None:
    """Else the message would be there again in the next session."""
    store.deliver(BASE, b"one\n")
    store.deliver("1700000002.c", b"two\n")
    os.link(store.file("new", BASE), store.file("cur", BASE + b":2,S"))
    with store.session() as opened:
        opened.maildrop.mark_deleted(0)
        result = opened.update()
    assert (result.removed, result.failed) == (1, 0)
    assert set(store.files()) == {("new", b"1700000002.c")}


def test_different_files_with_one_base_name(store: Store) -> None:
    """Each has a unique-id made of base name and content, whatever its flags or folder."""
    twins(store, b"one\n", b"two\n")
    store.deliver(BASE, b"three\n")
    wanted = sorted(expected_twin_id(BASE, octets) for octets in (b"one\n", b"two\n", b"three\n"))
    for outcome in ("rebuild", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            assert [shown for shown, _ in listing(opened)] == wanted
            for index, shown in enumerate(wanted):
                assert expected_twin_id(BASE, content(opened, index)) == shown
    for _, name in list(store.files()):
        if name != BASE:
            os.rename(store.file("cur", name), store.file("cur", name + b"a"))
    with store.session() as opened:
        assert [shown for shown, _ in listing(opened)] == wanted


def test_identical_twins_are_numbered(store: Store) -> None:
    """Same base name, same content: -2 and -3, in an order that survives a change of flags."""
    twins(store, b"one\n", b"one\n", b"one\n")
    shown = expected_twin_id(BASE, b"one\n")
    with store.session() as opened:
        assert [each for each, _ in listing(opened)] == [shown, shown + b"-2", shown + b"-3"]
        before = inodes(opened)
    names = sorted(store.files())
    os.rename(store.file(*names[0]), store.file("cur", BASE + b":2,Z"))
    with store.session() as opened:
        assert opened.reason == "cur_changed"
        assert inodes(opened) == before


def test_removing_one_twin_leaves_the_other(store: Store) -> None:
    """What is removed is the file whose content the unique-id was made of."""
    twins(store, b"one\n", b"two\n")
    with store.session() as opened:
        ids = [shown for shown, _ in listing(opened)]
        opened.maildrop.mark_deleted(ids.index(expected_twin_id(BASE, b"two\n")))
        assert opened.update().removed == 1
    assert list(store.files().values()) == [b"one\n"]
    with store.session() as opened:
        assert listing(opened) == [(BASE, 5)]


def test_a_twin_whose_content_changed_is_not_removed(store: Store) -> None:
    """A file that is no longer what was shown is neither sent nor removed."""
    twins(store, b"one\n", b"two\n")
    with store.session() as opened:
        for _, name in store.files():
            with open(store.file("cur", name), "ab") as file:
                file.write(b"more\n")
        with pytest.raises(errors.MessageChanged):
            opened.message(0)
        opened.maildrop.mark_deleted(0)
        assert opened.update().failed == 1
    assert len(store.files()) == 2


def test_a_renamed_twin_is_not_guessed_at(store: Store) -> None:
    """If a twin is not where it was, its name can't tell which of them it is: neither is removed."""
    twins(store, b"one\n", b"two\n")
    with store.session() as opened:
        for _, name in list(store.files()):
            os.rename(store.file("cur", name), store.file("cur", name + b"a"))
        opened.maildrop.mark_deleted(0)
        with pytest.raises(errors.MessageChanged):
            opened.message(0)
        result = opened.update()
        assert (result.removed, result.failed) == (0, 1)
    assert len(store.files()) == 2


def test_a_twin_that_came_later_is_not_removed(store: Store) -> None:
    """A renamed message and a newcomer with its base name: the fall-back removes neither."""
    store.deliver(BASE, b"one\n")
    with store.session() as opened:
        os.rename(store.file("new", BASE), store.file("cur", BASE + b":2,S"))
        store.deliver(BASE + b":2,F", b"two\n", folder="cur")
        opened.maildrop.mark_deleted(0)
        with pytest.raises(errors.MessageChanged):
            opened.message(0)
        assert opened.update().failed == 1
    assert len(store.files()) == 2


def test_an_unreadable_twin(store: Store) -> None:
    """A twin that can't be read hides nothing and is not removed unseen."""
    twins(store, b"one\n", b"two\n")
    os.chmod(store.file("cur", BASE + b":2,D"), 0)
    with without_root(store), store.session() as opened:
        shown = listing(opened)
        assert {each for each, _ in shown} == {
            expected_id(BASE + b"\0" + renewal.NO_DIGEST),
            expected_twin_id(BASE, b"two\n"),
        }
        for index in range(2):
            opened.maildrop.mark_deleted(index)
        result = opened.update()
        assert (result.removed, result.failed) == (1, 1)
    assert os.listdir(store.path / "cur") == [BASE.decode() + ":2,D"]


def test_hashed_base_names(store: Store) -> None:
    """A long base name has a hash as its unique-id, and a file named like that hash gets another."""
    long = b"1700000000." + b"x" * 80
    hashed = expected_id(long)
    store.deliver(long, b"one\n")
    for outcome in ("rebuild", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            assert listing(opened) == [(hashed, 5)]
    store.deliver(hashed, b"two\n")
    for outcome in ("refresh", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            shown = [each for each, _ in listing(opened)]
            assert sorted(shown) == [hashed, hashed + b"-2"]
            assert {content(opened, 0), content(opened, 1)} == {b"one\n", b"two\n"}
    with store.session() as opened:
        kept = content(opened, 0)
        opened.maildrop.mark_deleted(1)
        assert opened.update().removed == 1
    assert list(store.files().values()) == [kept]


def test_a_hash_that_arrives_after_its_double(store: Store) -> None:
    """The short way of appending new mail does not append a unique-id that is there already."""
    long = b"1700000009." + b"x" * 80
    hashed = expected_id(long)
    store.deliver(hashed, b"two\n")
    store.poll()
    store.deliver(long, b"one\n")
    with store.session() as opened:
        assert {shown for shown, _ in listing(opened)} == {hashed, hashed + b"-2"}


@pytest.mark.parametrize("call", ["stat", "open_file", "second open_file"])
def test_a_twin_that_is_renamed_while_it_is_told_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """An IMAP server sets a flag between listing and reading: both twins are there, under their ids."""
    twins(store, b"one\n", b"two\n")
    store.settle()
    listed, flagged = BASE + b":2,D", BASE + b":2,DS"
    wanted = sorted(expected_twin_id(BASE, octets) for octets in (b"one\n", b"two\n"))
    looks = 2 if call.startswith("second") else 1
    real = getattr(system, call.removeprefix("second "))

    def rename_first(path: bytes, *arguments: Any, **named: Any) -> Any:
        nonlocal looks
        if path == listed:
            looks -= 1
            if not looks:
                os.rename(store.file("cur", listed), store.file("cur", flagged))
        return real(path, *arguments, **named)

    monkeypatch.setattr(system, call.removeprefix("second "), rename_first)
    with store.session() as opened:
        assert looks <= 0
        assert [shown for shown, _ in listing(opened)] == wanted
        assert sorted(content(opened, index) for index in range(2)) == [b"one\n", b"two\n"]
    with store.session() as opened:
        assert [shown for shown, _ in listing(opened)] == wanted


def test_a_twin_that_is_removed_while_it_is_told_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the other one has the base name for itself."""
    twins(store, b"one\n", b"two\n")
    store.settle()
    real = system.open_file

    def remove_first(path: bytes, *arguments: Any, **named: Any) -> int:
        if path == BASE + b":2,D":
            os.unlink(store.file("cur", path))
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(system, "open_file", remove_first)
        opened = store.open()
    assert listing(opened) == [(BASE, 5)]
    opened.close()
