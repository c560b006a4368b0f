"""Filters that put something else under a message's name: never a wrong form, and soon the right octets."""

from __future__ import annotations

import os
import shutil

import pytest

from gpop.maildrop import cachefile, statcache, table
from gpop.maildrop.table import NOTHING
from gpop.pop3 import encoding
from tests.maildrop.faults import watched
from tests.maildrop.store import Store, content, expected, listing
from tests.pop3 import reference

NAME = "1700000001.b"
PLAIN = b"Subject: plain\n\nhello, with some octets more\n"
DOTS = b"Subject: dots\n\n.\n.hidden\n..\n"
WIRE = b"Subject: as on the wire\r\n\r\nhello\r\n"


def form(store: Store, index: int = 0) -> int:
    """The form that a session believes of a message, in a folder that was looked at some time ago."""
    with store.session() as opened:
        message = opened.message(index)
        os.close(message.fd)
        return message.form


@pytest.fixture
def polled(store: Store) -> Store:
    """Three messages; the middle one is NAME, plain, and its form is believed on a hit."""
    store.deliver("1700000000.a")
    store.deliver(NAME, PLAIN)
    store.deliver("1700000002.c", PLAIN, folder="cur")
    store.settle()
    store.poll()
    assert form(store, 1) == encoding.FORM_PLAIN_LF
    store.settle()  # whatever is written from here on has other stamps
    return store


def write_in_place(store: Store, octets: bytes) -> None:
    with open(store.file("new", NAME), "r+b") as file:
        file.write(octets)
        file.truncate()


def test_a_file_renamed_over_a_message_is_measured(polled: Store) -> None:
    """The next session lists its octets, knows its form, and reads that one file only."""
    for octets, wanted in (
        (DOTS, encoding.FORM_MIXED),
        (WIRE, encoding.FORM_WIRE),
        (DOTS, encoding.FORM_MIXED),
    ):
        polled.deliver(NAME, octets)
        polled.settle()
        with watched() as calls, polled.session() as opened:
            assert (opened.outcome, opened.reason) == ("refresh", "new_changed")
        assert calls.by_name["read"] == 1
        assert form(polled, 1) == wanted
        with polled.session() as opened:
            assert (opened.outcome, listing(opened)) == ("hit", expected(polled))
            assert opened.maildrop.unique_id(1) == NAME.encode()


def test_a_size_in_its_name_is_not_believed_any_more(store: Store) -> None:
    """`W=` was that of the message before."""
    name = f"1700000000.a,S={len(PLAIN)},W={reference.octets_on_wire(PLAIN)}"
    store.deliver(name, PLAIN)
    store.poll()
    store.deliver(name, PLAIN + b"one line more\n")
    for _ in range(2):
        with store.session() as opened:
            assert listing(opened) == expected(store)


def test_a_message_rewritten_in_place_is_sent_with_care(polled: Store) -> None:
    """Its folder does not change, so the poll is a hit; what RETR finds goes into the cache."""
    write_in_place(polled, DOTS)
    with polled.session() as opened:
        assert opened.outcome == "hit"
        message = opened.message(1)
        os.close(message.fd)
        assert message.form == encoding.FORM_UNKNOWN
        opened.learned(1, *encoding.measure(DOTS))
    with polled.session() as opened:
        assert (opened.outcome, listing(opened)) == ("hit", expected(polled))
    assert form(polled, 1) == encoding.FORM_UNKNOWN, "the clock was read before the file was written"


def test_a_refresh_does_not_make_it_believed_again(polled: Store) -> None:
    """Mail that comes later has the clock read again; the form was seen before the file was written to."""
    write_in_place(polled, DOTS)
    polled.deliver("1700000003.d")
    assert polled.poll()[0] == "refresh"
    polled.deliver("1600000000.early")
    assert polled.poll()[0] == "refresh"
    assert form(polled, 2) == encoding.FORM_UNKNOWN


def test_a_learned_form_is_believed(polled: Store) -> None:
    """What RETR has seen in a file that was old enough by then is remembered with that file's stamp."""
    write_in_place(polled, DOTS)
    polled.deliver("1700000003.d")
    polled.settle()
    polled.poll()
    with polled.session() as opened:
        os.close(opened.message(1).fd)
        opened.learned(1, *encoding.measure(DOTS))
    assert form(polled, 1) == encoding.FORM_MIXED


def test_a_time_that_was_set_back(polled: Store) -> None:
    """Same size, same mtime, other content: the ctime tells."""
    was = os.stat(polled.file("new", NAME))
    write_in_place(polled, PLAIN[:-6] + b"\nmore\n")
    os.utime(polled.file("new", NAME), ns=(was.st_atime_ns, was.st_mtime_ns))
    assert form(polled, 1) == encoding.FORM_UNKNOWN


def test_the_first_inode_number_again(polled: Store) -> None:
    """Removed, then made anew: on many file systems that gets the same inode number at once."""
    path = polled.file("new", NAME)
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(DOTS)
    assert form(polled, 1) != encoding.FORM_PLAIN_LF


def test_flags_and_moves_cost_no_look_at_a_file(store: Store) -> None:
    """Renamed, in its folder or into the other one, a message is the file it was: that is not opened."""
    store.deliver_many(20)
    store.deliver_many(20, first=20, folder="cur")
    store.poll()
    with watched() as quiet:
        store.deliver("1800000000.claims,S=2,W=4", b"\n\n")
        store.settle()
        assert store.poll()[0] == "refresh"
    for folder, name in list(store.files()):
        os.rename(store.file(folder, name), store.file("cur", name.partition(b":")[0] + b":2,FS"))
    store.settle()
    with watched() as calls:
        assert store.poll() == ("refresh", "both_changed")
    assert calls.by_name["read"] == 0
    assert calls.by_name["fstat"] == quiet.by_name["fstat"]
    assert calls.by_name["stat"] == quiet.by_name["stat"]
    assert calls.by_name["open_file"] <= quiet.by_name["open_file"] + 1  # cur/ is listed, too
    assert form(store, 3) == encoding.FORM_PLAIN_LF


def restored(store: Store, with_times: bool) -> None:
    """Everything comes back from a backup: the same names and contents, other files."""
    copy = shutil.copy2 if with_times else shutil.copyfile
    for folder in ("new", "cur"):
        (store.path / folder).rename(store.path / "old")
        shutil.copytree(store.path / "old", store.path / folder, copy_function=copy)
        shutil.rmtree(store.path / "old")


@pytest.mark.parametrize("with_times", [True, False])
def test_a_backup_that_was_restored(store: Store, with_times: bool) -> None:
    """Where times came back each file is looked at, else it is read: once. No client sees a difference."""
    store.deliver_many(10)
    store.deliver_many(10, first=10, folder="cur", claim=True)
    store.poll()
    kept = [store.path / "kept", store.path / "kept too"]  # so that no inode number is used again
    for folder, keep in zip(("new", "cur"), kept, strict=True):
        shutil.copytree(store.path / folder, keep, copy_function=os.link)
    restored(store, with_times)
    store.settle()
    with watched() as calls, store.session() as opened:
        assert opened.reason == "both_changed"
        assert listing(opened) == expected(store)
    assert calls.by_name["read"] == (
        10 if with_times else 20
    )  # those known by `W=` only are read in any case
    store.deliver("1800000000.claims,S=2,W=4", b"\n\n")
    with watched() as calls, store.session() as opened:
        assert listing(opened) == expected(store)
    assert calls.by_name["read"] == 0
    assert form(store) == (encoding.FORM_UNKNOWN if with_times else encoding.FORM_PLAIN_LF)


def with_other_inodes(store: Store) -> None:
    """Have the cache remember other inode numbers: as on a file system that does not keep them."""
    image = cachefile.open_image(store.dir_fd)
    known = table.take_apart(table.cut(image.header, image.load()))
    known.inodes = [inode ^ 1 << 31 for inode in known.inodes]
    facts = image.header.facts()
    facts.listed = statcache.NOTHING_LISTED
    pieces = statcache.assemble(NOTHING, table.render(NOTHING, known), image.header.octets, facts)
    image.close()
    store.cache.write_bytes(b"".join(pieces))


def test_inode_numbers_that_do_not_last(store: Store) -> None:
    """Then a refresh looks at each file, and reads none that it has read before."""
    store.deliver_many(10)
    store.deliver_many(10, first=10, claim=True)
    store.poll()
    for number in range(3):
        with_other_inodes(store)
        store.deliver(f"{1800000000 + number}.claims,S=2,W=4", b"\n\n")
        with watched() as calls, store.session() as opened:
            assert opened.outcome == "refresh"
            assert listing(opened) == expected(store)
            assert [content(opened, index) for index in range(opened.maildrop.count)]
        # Those that are known by `W=` only are read, once.
        assert calls.by_name["read"] == (10 if number == 0 else 1)


def test_a_file_from_the_future_has_no_stamp(store: Store) -> None:
    """A file that may have been written to after it was read is listed right, and sent with care."""
    store.deliver("1700000000.a", PLAIN)
    ahead = os.stat(store.file("new", "1700000000.a")).st_mtime_ns + 3600 * 10**9
    os.utime(store.file("new", "1700000000.a"), ns=(ahead, ahead))
    for _ in range(2):
        with store.session() as opened:
            assert listing(opened) == expected(store)
        assert form(store) == encoding.FORM_UNKNOWN


def test_a_replaced_twin(store: Store) -> None:
    """Twins are told by their content: one that was replaced has another unique-id, the other keeps its."""
    store.deliver(NAME, PLAIN)
    store.deliver(NAME + ":2,S", b"other\n", folder="cur")
    with store.session() as opened:
        before = {shown for shown, _ in listing(opened)}
    store.deliver(NAME, DOTS)
    with store.session() as opened:
        after = {shown for shown, _ in listing(opened)}
        octets = sorted(size for _, size in listing(opened))
        assert octets == sorted(map(reference.octets_on_wire, (DOTS, b"other\n")))
    assert len(before & after) == 1 and len(after) == 2


@pytest.mark.parametrize("seconds", [-2_000_000_000, 13_500_000_000])
def test_times_out_of_the_ordinary(store: Store, seconds: int) -> None:
    """Folders and messages with stamps of other centuries are served."""
    store.deliver("1700000000.a", PLAIN)
    for path in (store.file("new", "1700000000.a"), os.fsencode(store.path / "new")):
        try:
            os.utime(path, (seconds, seconds))
        except OSError:
            pytest.skip("this file system has no such times")
    for _ in range(3):
        with store.session() as opened:
            assert listing(opened) == expected(store)
            assert content(opened, 0) == PLAIN
