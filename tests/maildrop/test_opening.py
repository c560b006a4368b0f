"""Opening a maildrop: hit, refresh, rebuild and off, on real Maildirs, against the slow rules."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpop.maildrop import cachefile, errors, opening, statcache, system, table
from tests.maildrop.store import Store, content, expected, lines, listing, without_root

CORPUS = Path(__file__).parents[1] / "corpus"


def test_first_session_then_polls(store: Store) -> None:
    """The first session rebuilds, because there is no cache; the next ones are hits."""
    store.deliver_many(5)
    store.deliver_many(5, first=5, folder="cur", claim=True)
    assert store.poll() == ("rebuild", "absent")
    for _ in range(3):
        with store.session() as opened:
            assert (opened.outcome, opened.reason) == ("hit", "unchanged")
            assert listing(opened) == expected(store)
            assert opened.warnings == []


def test_new_mail_refreshes(store: Store) -> None:
    """A delivery makes the next session list new/, and the one after that is a hit again."""
    store.deliver_many(5, folder="cur")
    store.poll()
    store.deliver_many(2, first=5)
    with store.session() as opened:
        assert (opened.outcome, opened.reason) == ("refresh", "new_changed")
        assert listing(opened) == expected(store)
    assert store.poll() == ("hit", "unchanged")


@pytest.mark.parametrize("folders", [("new", "new"), ("cur", "new"), ("new", "cur")])
def test_appending_gives_the_cache_that_a_rebuild_gives(store: Store, folders: tuple[str, str]) -> None:
    """Octet for octet, whatever folder mail was in and comes into; what is known is not taken apart."""
    first, then = folders
    store.deliver_many(30, folder=first)
    store.deliver_many(30, first=30, folder="cur", claim=True)
    store.settle()
    store.poll()
    for number in (60, 61, 70):
        store.deliver_many(number - 59, first=number, folder=then, claim=number == 61)
        store.settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(table, "take_apart")  # who wants it gets an error
            assert store.poll() == ("refresh", f"{then}_changed")
        appended = store.cache.read_bytes()
        store.cache.unlink()
        assert store.poll() == ("rebuild", "absent")
        anew = store.cache.read_bytes()
        assert appended[statcache.HEADER_OCTETS :] == anew[statcache.HEADER_OCTETS :]
        assert statcache.Header(appended).listed == statcache.Header(anew).listed
        store.cache.write_bytes(appended)


def test_a_checksum_that_is_not_known_is_learned(store: Store) -> None:
    """A cache without it, as an earlier version wrote them, is refreshed with all that it knows, once."""
    store.deliver_many(4)
    store.poll()
    facts = statcache.Header(store.cache.read_bytes()).facts()
    facts.listed = statcache.NOTHING_LISTED
    store.cache.write_bytes(b"".join(cachefile.with_facts(store.cache.read_bytes(), facts)))
    assert store.poll() == ("hit", "unchanged")
    store.deliver("1800000000.a")
    with store.session() as opened:
        assert (opened.outcome, listing(opened)) == ("refresh", expected(store))
    assert statcache.Header(store.cache.read_bytes()).listed[0] != statcache.NOTHING_LISTED[0]


def test_an_empty_maildrop(store: Store) -> None:
    """No mail is an answer like any other, and its polls are hits."""
    with store.session() as opened:
        assert listing(opened) == []
    assert store.poll() == ("hit", "unchanged")


def test_flags_change_nothing_a_client_sees(store: Store) -> None:
    """Another program's renaming in cur/ changes names only: no number, unique-id or size."""
    store.deliver_many(12, folder="cur")
    store.poll()
    with store.session() as opened:
        before = listing(opened)
    for _, name in list(store.files()):
        os.rename(store.file("cur", name), store.file("cur", name + b":2,FS"))
    with store.session() as opened:
        assert opened.reason == "cur_changed"
        assert listing(opened) == before
        assert content(opened, 3) == store.files()["cur", b"1700000003.M3P1.host:2,FS"]
    assert store.poll() == ("hit", "unchanged")


def test_moves_from_new_to_cur_change_nothing_a_client_sees(store: Store) -> None:
    """A message that another program has taken note of keeps its number and its unique-id."""
    store.deliver_many(4)
    store.poll()
    os.rename(store.file("new", "1700000001.M1P1.host"), store.file("cur", "1700000001.M1P1.host:2,"))
    with store.session() as opened:
        assert (opened.outcome, opened.reason) == ("refresh", "both_changed")
        assert listing(opened) == expected(store)


def test_what_is_known_is_not_read_again(store: Store) -> None:
    """A refresh measures only what is new: a file that was changed in place keeps its octets."""
    store.deliver("1700000000.a", b"one\n", folder="cur")
    store.poll()
    with open(store.file("cur", "1700000000.a"), "ab") as file:
        file.write(b"two\n")
    store.deliver("1699999999.b", b"x\n")
    with store.session() as opened:
        assert listing(opened) == [(b"1699999999.b", 3), (b"1700000000.a", 5)]


@pytest.mark.parametrize("message", sorted(CORPUS.glob("*.eml")), ids=lambda path: path.stem)
def test_octets_of_awkward_messages(store: Store, message: Path) -> None:
    """RFC 1939 §11: octets are those of the wire, whatever the message is made of."""
    wire = message.with_suffix(".wire").read_bytes()
    store.deliver("1700000000.a", message.read_bytes())
    with store.session() as opened:
        ((_, octets),) = listing(opened)
        stuffed = sum(line.startswith(b"..") for line in wire.split(b"\r\n"))
        assert octets == len(wire) - len(b".\r\n") - stuffed


def test_a_large_message_is_measured_in_pieces(store: Store) -> None:
    """A message longer than any buffer has exact octets, with line ends on every border."""
    body = (b"x" * 65535 + b"\n") * 3 + b".\r\n" + b"y" * 70000
    store.deliver("1700000000.a", body)
    with store.session() as opened:
        assert listing(opened) == expected(store)
        message = opened.message(0)
        os.close(message.fd)
        assert message.file_size == len(body)


def test_w_is_believed_and_not_read(store: Store) -> None:
    """A size in the name saves reading the file: here the file says otherwise."""
    store.deliver("1700000000.a,S=6,W=7", b"a\nb\nc\n")
    with store.session() as opened:
        assert listing(opened) == [(b"1700000000.a,S=6,W=7", 7)]


def test_odd_names(store: Store) -> None:
    """Spaces, colons, 8 bit, controls, newlines, 250 octets: each is a message, with a fit unique-id."""
    odd = [
        b"1700000000.with space:2,S",
        b"1700000001.two:colons:2,S",
        b"1700000002.h\xf6st",
        b"1700000003.h\xc3\xb6st:2,",
        b"1700000004.bell\x07.newline\n.tab\t",
        b"1700000005.\r\n",
        b"1700000006." + b"x" * 239,
        b"no time at all",
        b"\xff",
        b":2,S",
        b"17000000060.longer",
        b"-dash",
        b"1700000007.a:2,\n",
    ]
    for number, name in enumerate(odd):
        store.deliver(name, b"%d\n" % number * number, folder="cur" if number % 2 else "new")
    for outcome in ("rebuild", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            assert listing(opened) == expected(store)
            contents = sorted(content(opened, index) for index in range(len(odd)))
            assert contents == sorted(b"%d\n" % number * number for number in range(len(odd)))
    store.deliver(b"1700000008.a\xfe")
    with store.session() as opened:
        assert listing(opened) == expected(store)


def test_odd_entries_hide_nothing(store: Store) -> None:
    """Links, FIFOs, sockets, directories and dot files are skipped, never followed, never waited for."""
    store.deliver_many(2)
    new = store.path / "new"
    (new / "1700000009.link").symlink_to("1700000000.M0P1.host")
    (new / "1700000009.dangling").symlink_to("nowhere")
    (new / "1700000009.outside").symlink_to("/etc/passwd")
    (new / "1700000009.directory").mkdir()
    (new / ".hidden").write_bytes(b"x")
    os.mkfifo(new / "1700000009.fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{store.dir_fd}/new/1700000009.socket")
    listener.close()
    for outcome in ("rebuild", "hit"):
        with store.session() as opened:
            assert opened.outcome == outcome
            assert listing(opened) == expected(store)
            skipped = [fields for event, fields in opened.warnings if event == "message_skipped"]
            assert skipped == ([{"folder": "new", "entries": 6}] if outcome == "rebuild" else [])


def test_an_unreadable_message_stays_listed(store: Store) -> None:
    """A regular file that can't be read hides nothing: W=, S= or its size, and RETR says so."""
    store.deliver("1700000000.a", b"a\nb\n")
    store.deliver("1700000001.b,S=4", b"a\nb\n")
    store.deliver("1700000002.c,S=4,W=6", b"a\nb\n")
    store.deliver("1700000003.d", b"a\nb\n")
    for _, name in list(store.files())[:]:
        if not name.endswith(b"d"):
            os.chmod(store.file("new", name), 0)
    with without_root(store):
        for outcome in ("rebuild", "hit"):
            with store.session() as opened:
                assert opened.outcome == outcome
                assert [octets for _, octets in listing(opened)] == [4, 4, 6, 6]
                with pytest.raises(errors.MessageUnreadable):
                    opened.message(0)
                assert content(opened, 3) == b"a\nb\n"
        os.chmod(f"/proc/self/fd/{store.dir_fd}/new/1700000000.a", 0o600)
        store_file = os.open("new/1700000004.e", os.O_CREAT | os.O_WRONLY, dir_fd=store.dir_fd)
        os.close(store_file)
        with store.session() as opened:
            assert [octets for _, octets in listing(opened)] == [6, 4, 6, 6, 0]


@pytest.mark.parametrize("folder", ["new", "cur"])
@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("state", ["missing", "file", "link", "no permission"])
def test_a_fault_is_never_an_empty_maildrop(store: Store, folder: str, state: str, with_cache: bool) -> None:
    """A folder that is missing, of another kind or unreadable is a fault, cache or no cache."""
    store.deliver_many(3)
    if with_cache:
        store.poll()
    where = store.path / folder
    if state == "no permission":
        where.chmod(0)
        if with_cache:
            # Its ctime has changed, so the cache is not enough.
            assert stat.S_IMODE(where.stat().st_mode) == 0
    else:
        where.rename(store.path / "elsewhere")
        if state == "file":
            where.write_bytes(b"")
        if state == "link":
            where.symlink_to("elsewhere")
    with without_root(store), pytest.raises(errors.MaildropUnavailable) as unavailable:
        store.open()
    assert unavailable.value.errno != 0
    where.chmod(0o700) if state == "no permission" else None


def test_descriptors_are_closed(store: Store) -> None:
    """A session that ends, or never begins, leaves no descriptor open."""
    store.deliver_many(3)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        store.poll()
    store.deliver_many(1, first=3)
    opened = store.open()
    content(opened, 0)
    opened.close()
    opened.close()
    shutil.rmtree(store.path / "cur")
    with pytest.raises(errors.MaildropUnavailable):
        store.open()
    assert os.listdir("/proc/self/fd") == before


# Settings


def test_the_oldest_are_served(store: Store) -> None:
    """Over max_messages the oldest are served; when they go, others take their place."""
    store.deliver_many(8, folder="cur")
    store.deliver_many(4, first=8)
    everything = expected(store)
    assert store.poll(max_messages=5) == ("rebuild", "absent")
    with store.session(max_messages=5) as opened:
        assert opened.outcome == "hit"
        assert listing(opened) == everything[:5]
    os.unlink(store.file("cur", everything[2][0]))
    with store.session(max_messages=5) as opened:
        assert opened.outcome == "refresh"
        assert listing(opened) == everything[:2] + everything[3:6]
    store.deliver("1600000000.early", b"\n")
    with store.session(max_messages=5) as opened:
        assert listing(opened) == expected(store)[:5]


def test_growing_over_the_limit(store: Store) -> None:
    """A maildrop that reaches max_messages by new mail serves the oldest, whichever folder changed."""
    store.deliver_many(3)
    store.poll(max_messages=4)
    store.deliver_many(3, first=3)
    for _ in range(2):
        with store.session(max_messages=4) as opened:
            assert listing(opened) == expected(store)[:4]


def test_another_limit_is_not_a_hit(store: Store) -> None:
    """A cache written under another max_messages is not served, but what it knows of octets is kept."""
    store.deliver_many(6)
    store.poll(max_messages=3)
    assert store.poll() == ("refresh", "settings_changed")
    with store.session() as opened:
        assert opened.outcome == "hit"
        assert listing(opened) == expected(store)


def test_off(store: Store) -> None:
    """Without the cache the same is served, and no file is written or read."""
    store.deliver_many(6)
    for _ in range(2):
        with store.session(cache=False) as opened:
            assert (opened.outcome, opened.reason) == ("off", "disabled")
            assert listing(opened) == expected(store)
    assert sorted(os.listdir(store.path)) == ["cur", "new", "tmp"]


def test_a_user_without_a_maildir() -> None:
    """A Maildir that is wholly absent is an empty maildrop."""
    opened = opening.absent_maildrop()
    assert (opened.outcome, opened.reason) == ("off", "maildir_absent")
    assert listing(opened) == []
    result = opened.update()
    assert (result.removed, result.failed, result.moved) == (0, 0, 0)
    opened.close()


# Racy, and the state of the world


def age(store: Store, seconds: int = 10) -> None:
    """Set the folders' mtime back, as if nothing had happened for a while; their ctime is now."""
    for folder in ("new", "cur"):
        was = (store.path / folder).stat()
        os.utime(store.path / folder, ns=(was.st_mtime_ns, was.st_mtime_ns - seconds * 10**9))


def test_a_folder_from_the_future_is_looked_at_each_time(store: Store) -> None:
    """A stamp that is not below the clock proves nothing: each session lists that folder once more."""
    store.deliver_many(3)
    ahead = (store.path / "new").stat().st_mtime_ns + 3600 * 10**9
    os.utime(store.path / "new", ns=(ahead, ahead))
    assert store.poll() == ("rebuild", "absent")
    with store.session() as opened:
        assert (opened.outcome, opened.reason) == ("refresh", "racy")
        assert opened.cache_ms < 20, "waiting would not help"
    # A delivery that leaves the stamp as it is: here it is set back afterwards.
    store.deliver_many(1, first=3)
    os.utime(store.path / "new", ns=(ahead, ahead))
    with store.session() as opened:
        assert listing(opened) == expected(store)


def test_nothing_new_in_a_racy_folder_writes_nothing(store: Store) -> None:
    """A folder that stays racy costs a listing on each poll, not a write."""
    store.deliver_many(3)
    ahead = (store.path / "new").stat().st_mtime_ns + 3600 * 10**9
    os.utime(store.path / "new", ns=(ahead, ahead))
    store.poll()
    before = store.cache.stat()
    assert store.poll() == ("refresh", "racy")
    assert store.cache.stat().st_ino == before.st_ino
    assert store.cache.stat().st_mtime_ns == before.st_mtime_ns


def test_an_aged_maildrop_is_trusted_at_once(store: Store) -> None:
    """Mail delivered some time ago makes no session wait for the clock."""
    store.deliver_many(3)
    age(store)
    assert store.poll()[0] == "rebuild"
    assert store.poll() == ("hit", "unchanged")


def test_a_folder_replaced_by_another_is_listed(store: Store) -> None:
    """Device and inode belong to the signature: a restored folder with the same stamps is another."""
    store.deliver_many(3)
    store.poll()
    was = (store.path / "new").stat()
    (store.path / "new").rename(store.path / "old")
    shutil.copytree(store.path / "old", store.path / "new")
    os.utime(store.path / "new", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert store.poll() == ("refresh", "new_changed")
    assert store.poll() == ("hit", "unchanged")


def test_a_maildrop_that_changes_all_the_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that never holds still is served with all that was seen, and looked at again."""
    store.deliver_many(3)
    real = system.scandir

    def scandir_while_mail_comes(fd: int) -> Any:
        store.deliver_many(1, first=10 + store.deliveries)
        return real(fd)

    monkeypatch.setattr(system, "scandir", scandir_while_mail_comes)
    with store.session() as opened:
        first = listing(opened)
    monkeypatch.undo()
    assert set(expected(store)[:3]) <= set(first) <= set(expected(store))
    with store.session() as opened:
        assert opened.outcome == "refresh"
        assert listing(opened) == expected(store)
    assert store.poll() == ("hit", "unchanged")


def test_a_message_renamed_before_it_is_measured(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may rename what was just listed: it is found by its base name, not missed."""
    store.deliver_many(4)
    real = system.open_file
    moved: list[bytes] = []

    def open_after_a_move(name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if isinstance(name, bytes) and len(moved) < 3:
            moved.append(name)
            if len(moved) < 3:
                os.rename(store.file("new", name), store.file("cur", name + b":2,S"))
            else:
                os.unlink(store.file("new", name))
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(system, "open_file", open_after_a_move)
    with store.session() as opened:
        assert listing(opened) == expected(store)
        assert len(expected(store)) == 3
    monkeypatch.undo()
    assert store.poll()[0] == "refresh"


# Boots and sizes


@pytest.fixture
def large(store: Store) -> Store:
    """A maildrop whose cache is too large to be read on a hit."""
    for number in range(1500):
        path = store.file("cur", f"{1700000000 + number}.M{number:060}.a,S=0,W=0:2,S" + "x" * 120)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    store.poll(boot_id=b"first")
    assert store.cache.stat().st_size > cachefile.SMALL_BODY_OCTETS + statcache.HEADER_OCTETS
    return store


def test_a_large_cache_is_served_from_its_file(large: Store) -> None:
    """Above 256 KiB only the header is read; LIST and UIDL come straight from the file."""
    with large.session(boot_id=b"first") as opened:
        assert (opened.outcome, opened.reason) == ("hit", "unchanged")
        assert opened.image.octets is None
        assert listing(opened) == expected(large)
        for index in (0, 7, 1499):
            opened.maildrop.mark_deleted(index)
        assert [number for number, _ in lines(opened, "UIDL")] == [*range(2, 8), *range(9, 1500)]
        listing(opened)


def test_a_large_cache_is_checked_once_after_a_boot(large: Store) -> None:
    """What a crash may have torn is read whole, once; the next poll trusts it again."""
    assert large.poll(boot_id=b"second") == ("hit", "unchanged_since_boot")
    assert large.poll(boot_id=b"second") == ("hit", "unchanged")


def test_a_large_cache_torn_by_a_crash(large: Store) -> None:
    """After a boot a damaged body is found and made anew; nobody sees a wrong listing."""
    with open(large.cache, "r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))
    with large.session(boot_id=b"second") as opened:
        assert (opened.outcome, opened.reason) == ("rebuild", "body_damaged")
        assert [event for event, _ in opened.warnings] == ["cache_damaged"]
        assert listing(opened) == expected(large)
    assert large.poll(boot_id=b"second") == ("hit", "unchanged")


def test_without_a_boot_id_a_large_cache_is_always_checked(large: Store) -> None:
    """If nobody can tell whether the machine was booted, it is taken for booted."""
    assert large.poll() == ("hit", "unchanged_since_boot")
    with open(large.cache, "r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))
    assert large.poll() == ("rebuild", "body_damaged")


def test_a_large_cache_is_refreshed(large: Store) -> None:
    """New mail is appended to a large cache; a damaged one is not appended to."""
    large.deliver("1800000000.z")
    with large.session(boot_id=b"first") as opened:
        assert (opened.outcome, opened.reason) == ("refresh", "new_changed")
        assert listing(opened) == expected(large)
    with open(large.cache, "r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))
    large.deliver("1800000001.z")
    with large.session(boot_id=b"first") as opened:
        assert (opened.outcome, opened.reason) == ("rebuild", "body_damaged")
        assert listing(opened) == expected(large)


def test_a_cache_cut_short_under_a_session(large: Store) -> None:
    """What is not there any more is a named fault, not a wrong answer."""
    with large.session(boot_id=b"first") as opened:
        os.truncate(large.cache, 5000)
        with pytest.raises(errors.MaildropUnavailable):
            opened.maildrop.unique_id(1499)
        with pytest.raises(errors.MaildropUnavailable):
            opened.maildrop.mark_deleted(1499)
        assert opened.maildrop.marked() == []


# Whatever happens


event = st.sampled_from(["deliver", "deliver early", "claim", "seen", "flag", "replace", "remove", "poll"])


@settings(max_examples=25)
@given(events=st.lists(st.tuples(event, st.integers(0, 9)), min_size=1, max_size=25))
def test_any_history_is_served_as_if_it_were_new(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    """Whatever happened since the last poll, a session is told what a rebuild would tell."""
    store = Store(tmp_path_factory.mktemp("history") / "Maildir")
    for number, (what, which) in enumerate(events):
        files = sorted(store.files())
        if what == "poll":
            store.poll()
        elif what.startswith("deliver"):
            time = 1600000000 if what.endswith("early") else 1700000000
            store.deliver(f"{time + number}.M{number}", b".\n" * which, "cur" if which % 3 == 0 else "new")
        elif what == "claim":
            store.deliver(f"{1700000000 + number}.M{number},S={2 * which},W={3 * which}", b".\n" * which)
        elif files:
            folder, name = files[which % len(files)]
            base = name.split(b":")[0]
            if what == "remove":
                os.unlink(store.file(folder, name))
            elif what == "replace":
                store.deliver(name, b"..\r\n" * which, folder)
            else:
                flags = b":2,S" if what == "seen" else b":2,F"
                os.rename(store.file(folder, name), store.file("cur", base + flags))
        with store.session() as opened:
            assert listing(opened) == expected(store)
            for index in range(opened.maildrop.count):
                content(opened, index)
    assert store.poll() == ("hit", "unchanged")
    store.close()
