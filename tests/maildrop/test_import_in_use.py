"""Imported unique-ids as a session serves them, whatever becomes of statcache and import."""

from __future__ import annotations

import hashlib
import os
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpop.maildrop import hit, imported, importfile, opening, statcache, table
from gpop.maildrop.errors import MaildropUnavailable, MessageChanged
from gpop.maildrop.imported import ImportedId
from gpop.maildrop.maildir import Maildir
from tests.maildrop.faults import watched
from tests.maildrop.store import Store, content, delivery_time, expected_id, listing
from tests.pop3 import reference

BOOT = b"0123456789abcdef0123456789abcdef"
MANY = 1000


def base(number: int) -> bytes:
    return b"%d.M%dP1.host" % (1700000000 + number, number)


def ids_of(store: Store, **options: object) -> list[bytes]:
    with store.session(**options) as opened:
        return [shown for shown, _ in listing(opened)]


def warnings_of(store: Store) -> list[tuple[str, dict[str, int | str]]]:
    with store.session() as opened:
        return list(opened.warnings)


def give(store: Store, ids: dict[int, ImportedId]) -> None:
    importfile.add(store.dir_fd, {base(number): one for number, one in ids.items()})


def served_as_imported(store: Store) -> list[tuple[bytes, int]]:
    """The rules once more: imported id and order, else the default ones; no twins."""
    ids = importfile.read(store.dir_fd)
    reserved = {one.unique_id for one in ids.values()}
    rows = []
    for name, octets in store.messages():
        one = ids.get(name)
        shown = expected_id(name)
        if one:
            shown = one.unique_id
        elif shown in reserved:
            shown = hashed(name)
        order = one.order if one and one.order else float("inf")
        rows.append((order, delivery_time(name), name, shown, reference.octets_on_wire(octets)))
    return [(shown, octets) for *_, shown, octets in sorted(rows)]


def hashed(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=20).hexdigest().encode()


def test_imported_ids_and_their_order(store: Store) -> None:
    """The other server's order first, then delivery time; what it had no id for has the default one."""
    store.deliver_many(4)
    give(store, {3: ImportedId(b"old-3", 1), 1: ImportedId(b"/old.1", 2), 2: ImportedId(b".old2")})
    expected = [b"old-3", b"/old.1", base(0), b".old2"]
    assert ids_of(store) == expected
    store.deliver_many(1, first=9)
    assert ids_of(store) == [*expected, base(9)]
    assert ids_of(store, cache=False) == [*expected, base(9)]
    os.rename(store.file("new", base(1)), store.file("cur", base(1) + b":2,S"))
    assert ids_of(store) == [*expected, base(9)]
    store.settle()
    store.poll()
    assert store.poll() == ("hit", "unchanged")


def test_messages_are_found_and_removed_by_imported_ids(store: Store) -> None:
    """RETR sends the file of the id, after a rename too, and UPDATE removes that and no other."""
    store.deliver(base(1), b"one\n")
    store.deliver(base(2), b"two\n")
    give(store, {1: ImportedId(b"uid-1", 2), 2: ImportedId(b"uid-2", 1)})
    with store.session() as opened:
        os.rename(store.file("new", base(2)), store.file("cur", base(2) + b":2,S"))
        assert [content(opened, index) for index in (0, 1)] == [b"two\n", b"one\n"]
        opened.maildrop.mark_deleted(0)
        assert opened.update().removed == 1
    assert [name for _, name in store.files()] == [base(1)]
    assert ids_of(store) == [b"uid-1"]


def test_a_forged_cache_does_not_get_another_message_removed(store: Store) -> None:
    """What the cache says of an imported id has to be what the file of imported ids says."""
    store.deliver(base(1), b"one\n")
    store.deliver(base(2), b"two\n")
    give(store, {1: ImportedId(b"uid-1"), 2: ImportedId(b"uid-2")})
    store.open().close()
    store.settle()
    store.open().close()
    image = store.cache.read_bytes().replace(b"1 uid-1\r\n2 uid-2", b"1 uid-2\r\n2 uid-1")
    header = statcache.Header(image)
    header.body_crc = statcache.crc32(image[statcache.HEADER_OCTETS :])
    resealed = statcache.reseal(header, header.facts())
    store.cache.write_bytes(resealed + image[statcache.HEADER_OCTETS :])
    with store.session() as opened:
        assert opened.outcome == "hit"
        with pytest.raises(MessageChanged):
            opened.message(0)
        opened.maildrop.mark_deleted(0)
        assert opened.update().failed == 1
    assert len(store.files()) == 2


def test_a_default_id_that_another_message_has_imported(store: Store) -> None:
    """The imported one keeps it, here or gone; the other gets the hash of its name, with or without cache."""
    store.deliver_many(2)
    give(store, {0: ImportedId(base(7))})
    before = ids_of(store)
    store.deliver_many(1, first=7)
    assert ids_of(store) == [*before, hashed(base(7))] == [base(7), base(1), hashed(base(7))]
    os.unlink(store.file("new", base(0)))
    assert ids_of(store) == ids_of(store, cache=False) == [base(1), hashed(base(7))]
    with store.session() as opened:
        assert content(opened, 1)


def test_even_the_hash_in_its_place_may_be_taken(store: Store) -> None:
    """Made up by its owner: then it gets the next free -2, -3 of that."""
    store.deliver_many(3)
    give(store, {0: ImportedId(base(2)), 1: ImportedId(hashed(base(2)))})
    assert ids_of(store) == [base(2), hashed(base(2)), hashed(base(2)) + b"-2"]
    with store.session() as opened:
        assert [content(opened, index) for index in range(3)]


def test_twins_of_an_imported_message(store: Store) -> None:
    """Which of them the other server meant can't be told: until one of them is gone neither has its id."""
    store.deliver(base(1), b"one\n")
    give(store, {1: ImportedId(b"uid-1", 1)})
    assert ids_of(store) == [b"uid-1"]
    store.deliver(base(1) + b":2,S", b"other\n", "cur")
    twins = ids_of(store)
    assert b"uid-1" not in twins and len(set(twins)) == 2
    os.unlink(store.file("cur", base(1) + b":2,S"))
    assert ids_of(store) == [b"uid-1"]


# Is the import still the one the cache was made with?


def looked(store: Store) -> bool:
    """Whether the short way takes the cache for true; it never does where the long way does not."""
    found = hit.look(store.dir_fd, 0, BOOT)
    verdict = opening.judge(Maildir(store.dir_fd), opening.Options(boot_id=BOOT))
    if verdict.image:
        verdict.image.close()
    if found:
        os.close(found[-1])
    assert (found is not None) == (verdict.outcome == "hit")
    return found is not None


def test_an_import_that_comes_changes_or_goes(store: Store) -> None:
    """By whatever means: the next session serves what is there then."""
    store.deliver_many(2)
    store.settle()
    assert ids_of(store, boot_id=BOOT) == [base(0), base(1)] and looked(store)
    path = store.path / importfile.IMPORT_NAME
    for ids in ({base(0): ImportedId(b"a")}, {base(0): ImportedId(b"b")}, None, {base(1): ImportedId(b"c")}):
        if ids is None:
            path.unlink()
        else:
            path.write_bytes(imported.render(ids))  # in place, as a careless restore would
        assert not looked(store)
        with store.session(boot_id=BOOT) as opened:
            assert (opened.outcome, opened.reason) == ("refresh", "import_changed")
        shown = [ids[name].unique_id if ids and name in ids else name for name in (base(0), base(1))]
        assert ids_of(store, boot_id=BOOT) == shown
        store.settle()
        store.settle_file(path)
        store.open(boot_id=BOOT).close()
        assert looked(store)


def test_an_import_in_the_tick_in_which_it_was_read(store: Store) -> None:
    """Where its stamps prove nothing it is read once more by the next session."""
    store.deliver_many(1)
    store.settle()
    give(store, {0: ImportedId(b"a")})
    path = store.path / importfile.IMPORT_NAME
    ahead = path.stat().st_mtime_ns + 3_600_000_000_000
    os.utime(path, ns=(ahead, ahead))
    assert ids_of(store, boot_id=BOOT) == [b"a"]
    assert not looked(store)
    with store.session(boot_id=BOOT) as opened:
        assert (opened.outcome, opened.reason) == ("refresh", "racy")


@pytest.mark.parametrize("damage", ["cut", "empty", "forged", "link", "fifo", "directory"])
def test_a_damaged_import_is_a_fault(store: Store, damage: str) -> None:
    """Never default ids, with a cache or without; and the statcache is left alone."""
    store.deliver_many(2)
    give(store, {0: ImportedId(b"a")})
    ids_of(store)
    path = store.path / importfile.IMPORT_NAME
    whole = path.read_bytes()
    path.unlink()
    if damage == "link":
        path.symlink_to("elsewhere")
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "directory":
        path.mkdir()
    elif damage == "forged":
        # The checksum is right, the line is none: that was a fault without a name.
        body = b"0 a %2E%2Fx\n"
        path.write_bytes(imported.FORMAT_MARK + b"%08x 1\n" % zlib.crc32(body) + body)
    else:
        path.write_bytes(whole[:-1] if damage == "cut" else b"")
    for _ in range(2):
        with pytest.raises(MaildropUnavailable, match=r"\.unique-ids"):
            store.open()
        with pytest.raises(MaildropUnavailable, match=r"\.unique-ids"):
            store.open(cache=False)
        assert hit.look(store.dir_fd, 0, b"") is None
    store.cache.unlink()
    with pytest.raises(MaildropUnavailable, match=r"\.unique-ids"):
        store.open()


# What it costs


def number_all(store: Store) -> None:
    """Import a number for each message, in the order of names, and wait until that is not racy."""
    names = sorted(name.split(b":")[0] for _, name in store.files())
    importfile.add(store.dir_fd, {name: ImportedId(b"%d" % at, at) for at, name in enumerate(names, 1)})
    store.settle_file(store.path / importfile.IMPORT_NAME)


def test_a_poll_does_nothing_per_imported_id(store: Store) -> None:
    """Neither opens nor reads the file: one call looks at it."""
    store.fill(MANY)
    number_all(store)
    store.open(boot_id=BOOT).close()
    with watched() as calls:
        found = hit.look(store.dir_fd, 0, BOOT)
    assert found and found[0] == MANY
    os.close(found[-1])
    assert calls.by_name == {"open_file": 1, "fstat": 1, "pread": 2, "stat": 3}


def test_new_mail_is_appended_beside_an_import(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh for new mail alone takes neither cache nor import apart."""
    store.fill(MANY)
    number_all(store)
    before = ids_of(store)
    store.deliver("1800000000.M1.host")
    with monkeypatch.context() as patch:
        patch.setattr(imported, "_entries", None)
        patch.setattr(table, "take_apart", None)
        assert ids_of(store) == [*before, b"1800000000.M1.host"]
    assert ids_of(store, cache=False) == [*before, b"1800000000.M1.host"]


# Histories


event = st.sampled_from(["deliver", "deliver", "early", "seen", "remove", "import", "import", "lose", "poll"])


@settings(max_examples=60, deadline=None)
@given(events=st.lists(st.tuples(event, st.integers(0, 9)), min_size=1, max_size=25))
def test_losing_the_statcache_changes_no_unique_id(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    """Deliveries, renames, removals and imports: with the cache or without, the same ids in one order."""
    store = Store(tmp_path_factory.mktemp("history") / "Maildir")
    told: dict[bytes, bytes] = {}
    for number, (what, which) in enumerate(events):
        there = sorted(store.files())
        before = importfile.read(store.dir_fd)
        if what in ("deliver", "early"):
            seconds = 1600000000 if what == "early" else 1700000000
            store.deliver(f"{seconds + number}.M{number}", b".\n" * which, "cur" if which % 3 == 0 else "new")
        elif what == "lose":
            store.cache.unlink(missing_ok=True)
        elif what == "poll":
            store.poll()
        elif there:
            folder, name = there[which % len(there)]
            own = name.split(b":")[0]
            if what == "remove":
                os.unlink(store.file(folder, name))
            elif what == "seen":
                os.rename(store.file(folder, name), store.file("cur", own + b":2,S"))
            elif own not in before:
                # A number; or what a message to come will have by default.
                shown = b"%d" % number if which % 2 else b"1700000%03d.M%d" % (number + 1, number + 1)
                if shown not in {one.unique_id for one in before.values()}:
                    importfile.add(store.dir_fd, {own: ImportedId(shown, which % 4)})
        with store.session() as opened:
            assert listing(opened) == served_as_imported(store)
            now = {opened.maildrop.location(at).base: shown for at, (shown, _) in enumerate(listing(opened))}
            for index in range(opened.maildrop.count):
                content(opened, index)
        assert ids_of(store, cache=False) == ids_of(store)
        if importfile.read(store.dir_fd) == before:
            assert all(now[own] == shown for own, shown in told.items() if own in now)
        told.update(now)
    store.close()


# The alarm


def test_nobody_is_alarmed_by_mail_that_comes_and_goes(store: Store) -> None:
    """Nor by flags, by moves to cur/, by an import before the first session, or by a lost cache."""
    store.deliver_many(20)
    give(store, {number: ImportedId(b"%d" % number) for number in range(10)})
    assert warnings_of(store) == []
    for number in range(8):
        os.unlink(store.file("new", base(number)))
    for number in range(8, 12):
        os.rename(store.file("new", base(number)), store.file("cur", base(number) + b":2,S"))
    store.deliver_many(8, first=30)
    assert warnings_of(store) == []
    store.cache.unlink()
    assert warnings_of(store) == []
    # All gone, most of it through POP3, and more came.
    with store.session() as opened:
        assert opened.maildrop.count == 20
        for index in range(15):
            opened.maildrop.mark_deleted(index)
        assert opened.update().removed == 15
    for folder, name in store.files():
        os.unlink(store.file(folder, name))
    store.deliver_many(22, first=60)
    assert warnings_of(store) == []
    # All but one gone, otherwise.
    for folder, name in sorted(store.files())[1:]:
        os.unlink(store.file(folder, name))
    store.deliver_many(22, first=100)
    assert warnings_of(store) == []


def test_alarm_when_another_maildrop_is_there(store: Store) -> None:
    """All is gone and there is as much; what POP3 had removed before is not counted."""
    store.deliver_many(20)
    with store.session() as opened:
        for index in range(5):
            opened.maildrop.mark_deleted(index)
        opened.update()
    for folder, name in store.files():
        os.unlink(store.file(folder, name))
    for number in range(15):
        store.deliver(base(200 + number), b"x" * (5000 + number) + b"\n")
    counts = {"changed": 0, "renamed": 0, "gone": 15, "messages": 20, "reason": "unexplained"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]
    assert warnings_of(store) == []


def test_what_pop3_removed_is_noted_in_the_cache(store: Store) -> None:
    """Once for each session, beside a correction of sizes too; a cache that is another's is left alone."""
    store.deliver_many(6)
    for expected in (1, 2):
        with store.session() as opened:
            if expected == 2:  # as if nobody had listed meanwhile
                opened.learned(0, 4711, 0)
            opened.maildrop.mark_deleted(0)
            opened.update()
        header = statcache.parse_header(
            store.cache.read_bytes()[: statcache.HEADER_OCTETS], store.cache.stat().st_size
        )
        assert header.removed == 1
    with store.session() as opened:
        opened.maildrop.mark_deleted(0)
        opened.update()
        store.cache.rename(store.path / "away")
        store.cache.write_bytes(b"another's")
    assert store.cache.read_bytes() == b"another's"


def test_alarm_when_an_import_is_lost(store: Store) -> None:
    """The messages are there, under other ids than before: told once, with counts."""
    store.deliver_many(5)
    give(store, {number: ImportedId(b"%d" % number) for number in range(3)})
    ids_of(store)
    (store.path / importfile.IMPORT_NAME).unlink()
    counts = {"changed": 3, "renamed": 0, "gone": 3, "messages": 5, "reason": "import_changed"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]
    assert warnings_of(store) == []


def test_alarm_when_messages_get_other_names(store: Store) -> None:
    """A file is known by mtime and size under its new name, be it one among many."""
    store.deliver_many(5)
    store.settle()
    ids_of(store)
    os.rename(store.file("new", base(2)), store.file("cur", b"1700000099.renamed:2,S"))
    counts = {"changed": 0, "renamed": 1, "gone": 1, "messages": 5, "reason": "unexplained"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]


def test_alarm_when_a_copy_has_another_name(store: Store) -> None:
    """The same for a file that was restored with its mtime, and one that comes by chance is nobody's copy."""
    store.deliver_many(3)
    store.settle()
    ids_of(store)
    store.deliver(base(7), b"Subject: 2\n\nlineline\n")
    os.unlink(store.file("new", base(0)))
    assert warnings_of(store) == []
    status = os.stat(store.file("new", base(1)))
    with open(store.file("new", base(1)), "rb") as file:
        octets = file.read()
    os.unlink(store.file("new", base(1)))
    store.deliver(b"1700000001.restored", octets)
    os.utime(store.file("new", b"1700000001.restored"), ns=(status.st_atime_ns, status.st_mtime_ns))
    counts = {"changed": 0, "renamed": 1, "gone": 1, "messages": 3, "reason": "unexplained"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]


def test_alarm_when_a_restore_renames_all(store: Store) -> None:
    """Other files with other names, and the sizes of those that are gone."""
    for number in range(30):
        store.deliver(base(number), b"x" * (1000 + 17 * number) + b"\n")
    ids_of(store)
    for folder, name in store.files():
        with open(store.file(folder, name), "rb") as file:
            octets = file.read()
        store.deliver(b"restored-" + name, octets, "cur")
        os.unlink(store.file(folder, name))
    counts = {"changed": 0, "renamed": 30, "gone": 30, "messages": 30, "reason": "unexplained"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]


def test_alarm_when_a_twin_comes(store: Store) -> None:
    """The message that was there can't keep its id."""
    store.deliver_many(3)
    ids_of(store)
    store.deliver(base(1) + b":2,S", b"another\n", "cur")
    counts = {"changed": 2, "renamed": 0, "gone": 1, "messages": 3, "reason": "unexplained"}
    assert warnings_of(store) == [("unique_ids_changed", counts)]
