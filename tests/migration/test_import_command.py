"""`gpop uidl import` and `show`, as an operator uses them, on real Maildirs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gpop.maildrop import importfile
from gpop.maildrop.imported import ImportedId
from tests.maildrop.store import Store, listing

ROOT = os.geteuid() == 0
OWNER = 65534
HEADER = b"3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1\n"
NAMES = [b"1700000001.M1.host", b"1700000002.M2.host,S=4", b"1700000003.M3.host"]


@pytest.fixture
def site() -> Iterator[Path]:
    """A folder that other users get into: pytest's own is root's alone."""
    with TemporaryDirectory(prefix="gpop-import-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def store(site: Path) -> Iterator[Store]:
    """Three messages that came from another server; owned, under root, by somebody else."""
    made = Store(site / "Maildir")
    made.deliver(NAMES[0], b"X-UIDL: one\n\n", "cur")
    made.deliver(NAMES[1] + b":2,S", b"X-UIDL: two\n\n", "cur")
    made.deliver(NAMES[2], b"Subject: x\n\nX-UIDL: no\n")
    yield made
    made.close()


def gpop(
    store: Store, *arguments: str, maildirs: tuple[str, ...] | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run the command: not in here, since root becomes somebody else in it, for good.

    (And with no more descriptors than a mail user may have.)
    """
    give_away(store)
    command = [sys.executable, "-m", "gpop", "uidl", *arguments, *(maildirs or (str(store.path),))]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, timeout=60)


def give_away(store: Store) -> None:
    if ROOT:
        for folder, _, files in os.walk(os.fsencode(store.path)):
            for each in (b".", *files):
                os.chown(os.path.join(folder, each), OWNER, OWNER, follow_symlinks=False)


def write(store: Store, name: str, octets: bytes) -> None:
    (store.path / name).write_bytes(octets)


def ids(store: Store) -> dict[bytes, tuple[bytes, int]]:
    """What is imported; read as whoever owns it."""
    path = store.path / importfile.IMPORT_NAME
    if not path.exists():
        return {}
    assert path.stat().st_uid == path.parent.stat().st_uid
    octets = path.read_bytes()
    return {base: (one.unique_id, one.order) for base, one in importfile.imported.parse(octets).items()}


def test_a_dry_run_an_import_and_the_same_again(store: Store) -> None:
    """What would be done, then that, then nothing."""
    write(store, "dovecot-uidlist", HEADER + b"1 :%b\n2 Ptwo :%b:2,S\n9 :gone\n" % (NAMES[0], NAMES[1]))
    there = sorted(os.listdir(store.path))
    dry = gpop(store, "import", "--from", "dovecot", "--dry-run", "--verbose")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert " ".join(dry.stdout.splitlines()[0].split()) == "would take there default no file doubts Maildir"
    assert dry.stdout.splitlines()[1].split() == ["2", "0", "1", "1", "0", str(store.path)]
    assert "  1700000001.M1.host: taken 000000014c0907b0" in dry.stdout.splitlines()
    assert sorted(os.listdir(store.path)) == there
    done = gpop(store, "import", "--from", "dovecot")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 of 1 Maildirs imported, 2 unique-ids; 0 with problems"
    assert ids(store) == {NAMES[0]: (b"000000014c0907b0", 1), NAMES[1]: (b"two", 2)}
    again = gpop(store, "import", "--from", "dovecot")
    assert again.stdout.splitlines()[1].split()[:5] == ["0", "2", "1", "1", "0"]
    assert gpop(store, "show").stdout.splitlines() == [
        "1 000000014c0907b0 imported cur/1700000001.M1.host",
        "2 two imported cur/1700000002.M2.host,S=4:2,S",
        "3 1700000003.M3.host default new/1700000003.M3.host",
    ]


@pytest.mark.parametrize(
    ("arguments", "name", "octets", "expected"),
    [
        (["courier"], "courierpop3dsizelist", b"/3 2 7\n%b 9 1:7:0\n", [(b"UID1-7", 0)]),
        (["courier-imap"], "courierimapuiddb", b"1 7 9\n3 %b\n", [(b"7-3", 3)]),
        (["cyrus"], "dovecot-uidlist", b"1 7 9\n3 %b\n", [(b"7.3", 3)]),
        (["uw"], "dovecot-uidlist", b"1 7 9\n3 %b\n", [(b"0000000700000003", 3)]),
        (["dovecot", "--uidl-format", "%v.%u", "--state", "list"], "list", b"1 7 9\n3 %b\n", [(b"7.3", 3)]),
        (["x-uidl"], "", b"", [(b"one", 0), (b"two", 0)]),
        (
            ["dovecot", "--reuse-x-uidl"],
            "dovecot-uidlist",
            HEADER + b"3 :%b\n4 Pp :" + NAMES[1] + b"\n",
            [(b"one", 3), (b"p", 4)],
        ),
    ],
)
def test_each_server_s_state(
    store: Store, arguments: list[str], name: str, octets: bytes, expected: list[tuple[bytes, int]]
) -> None:
    """A family's file or headers, to ids and orders."""
    if name:
        write(store, name, octets.replace(b"%b", NAMES[0]))
    done = gpop(store, "import", "--from", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(ids(store).values()) == expected


def test_md5_of_names_and_of_headers(store: Store) -> None:
    """One for every message, whatever is in it."""
    assert gpop(store, "import", "--from", "md5-name").returncode == 0
    assert {len(each) for each, _ in ids(store).values()} == {32}
    (store.path / importfile.IMPORT_NAME).unlink()
    store.deliver(NAMES[2], b"Message-ID: <3@host>\n\n")
    os.unlink(store.file("cur", NAMES[1] + b":2,S"))
    assert gpop(store, "import", "--from", "popa3d").returncode == 0
    assert {len(each) for each, _ in ids(store).values()} == {16}


def test_qmail_s_order(store: Store) -> None:
    """By mtime; the ids are what they are anyway, and the mtimes stay."""
    for seconds, (folder, name) in zip((30, 20, 10), sorted(store.files()), strict=True):
        os.utime(store.file(folder, name), (seconds, seconds))
    assert gpop(store, "import", "--from", "qmail").returncode == 0
    assert ids(store) == {NAMES[0]: (NAMES[0], 30), NAMES[1]: (NAMES[1], 20), NAMES[2]: (NAMES[2], 10)}


def test_an_id_that_no_client_may_be_told(store: Store) -> None:
    """A doubt; or, if that is wanted, the default id in the old place."""
    long = b"1700000000." + b"x" * 80
    store.deliver(long, folder="cur")
    write(store, "dovecot-uidlist", HEADER + b"1 :%b\n2 :%b\n3 :%b\n" % (NAMES[1], long, NAMES[0]))
    done = gpop(store, "import", "--from", "dovecot", "--uidl-format", "%f")
    assert done.returncode == 1 and "unusable id" in done.stdout
    assert ids(store) == {}
    done = gpop(store, "import", "--from", "dovecot", "--uidl-format", "%f", "--replace-unusable")
    assert done.returncode == 0, done.stdout
    assert ids(store) == {
        NAMES[1]: (NAMES[1], 1),
        long: (hashlib.blake2b(long, digest_size=20).hexdigest().encode(), 2),
        NAMES[0]: (NAMES[0], 3),
    }


def test_nupop_s_fake_uids(store: Store) -> None:
    """The key is an mtime below the bound, and stays what it is; other mtimes are dates."""
    keyed, dated = store.file("cur", NAMES[0]), store.file("new", NAMES[2])
    os.utime(keyed, (17, 17))
    write(store, ".fake_uids", b"17 old-17\n18 old-18\n")
    before = os.stat(dated).st_mtime_ns
    assert gpop(store, "import", "--from", "nupop").returncode == 0
    assert ids(store) == {NAMES[0]: (b"old-17", 0)}
    assert (os.stat(keyed).st_mtime_ns, os.stat(dated).st_mtime_ns) == (17_000_000_000, before)
    os.utime(dated, (99, 99))
    doubtful = gpop(store, "import", "--from", "nupop")
    assert doubtful.returncode == 1 and "its mtime is 99" in doubtful.stdout
    assert gpop(store, "import", "--from", "nupop", "--fake-uid-max", "50").returncode == 0


def test_a_doubt_leaves_the_maildir_as_it_is(store: Store) -> None:
    """The others' ids as well; the message and the reason are named, and the exit status says so."""
    write(store, "dovecot-uidlist", HEADER + b"1 Pid :%b\n2 Pid :%b\n" % (NAMES[0], NAMES[1]))
    done = gpop(store, "import", "--from", "dovecot")
    assert done.returncode == 1
    assert "doubt: 1700000002.M2.host,S=4: one id for two messages id: b'1700000001.M1.host'" in done.stdout
    assert ids(store) == {}


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"3 V0 N1\n", "dovecot-uidlist: line 1: UIDVALIDITY is not a number"),
        (HEADER + b"5 :a\n4 :b\n", "dovecot-uidlist: line 3: the UID 4 follows 5"),
        (HEADER + b"5 :a", "dovecot-uidlist: line 2: is cut off"),
    ],
)
def test_a_damaged_state_file_changes_nothing(store: Store, octets: bytes, reason: str) -> None:
    """It is named, with the line and the reason."""
    write(store, "dovecot-uidlist", octets)
    done = gpop(store, "import", "--from", "dovecot")
    assert done.returncode == 1 and reason in done.stdout
    assert ids(store) == {}


def test_a_hostile_state_file_is_neither_followed_nor_waited_for(store: Store) -> None:
    """A link to what its owner may not see, and a FIFO that nobody writes to."""
    path = store.path / "dovecot-uidlist"
    path.symlink_to("/etc/hostname")
    assert gpop(store, "import", "--from", "dovecot").returncode == 1
    path.unlink()
    os.mkfifo(path)
    done = gpop(store, "import", "--from", "dovecot")
    assert done.returncode == 1 and "not a regular file" in done.stdout


@pytest.mark.parametrize(
    ("server", "name", "octets"),
    [
        ("dovecot", "dovecot-uidlist", HEADER + b"1 :%b\n" % NAMES[0]),
        ("courier", "courierpop3dsizelist", b"/3 2 7\n%b 9 1:7:0\n" % NAMES[0]),
    ],
)
def test_who_has_never_used_the_old_server_is_no_failure(
    store: Store, site: Path, server: str, name: str, octets: bytes
) -> None:
    """No file of its, so nobody was told an id. If there is none at all, they are elsewhere: a problem."""
    other = Store(site / "other")
    other.close()
    other.deliver(NAMES[0], b"Subject: x\n\n")
    give_away(other)
    nowhere = gpop(store, "import", "--from", server, maildirs=(str(store.path), str(other.path)))
    assert nowhere.returncode == 1 and "--state says where" in nowhere.stderr
    assert "0 of 2 Maildirs imported, 0 unique-ids; 2 with nothing to keep; 0 with problems" in nowhere.stdout
    write(store, name, octets)
    done = gpop(store, "import", "--from", server, maildirs=(str(store.path), str(other.path)))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{other.path}  (no {name}: nothing to keep)" in done.stdout
    assert "1 of 2 Maildirs imported, 1 unique-ids; 1 with nothing to keep; 0 with problems" in done.stdout
    assert len(ids(store)) == 1 and ids(other) == {}


def test_many_maildirs(store: Store, site: Path) -> None:
    """By pattern and by list; what fails for one is no matter of the others."""
    others = [Store(site / f"user{number}") for number in range(3)]
    for number, other in enumerate(others):
        other.close()
        other.deliver(NAMES[0], b"X-UIDL: x%d\n\n" % number)
        give_away(other)
    (site / "list").write_text(f"{store.path}\n{site}/none\n")
    done = gpop(
        store,
        *("import", "--from", "x-uidl", "--list", str(site / "list"), "--at-once", "2"),
        maildirs=(f"{site}/user*",),
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "4 of 5 Maildirs imported, 5 unique-ids; 1 with problems"
    assert [ids(other) for other in others] == [{NAMES[0]: (b"x%d" % number, 0)} for number in range(3)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import"], "--from is missing"),
        (["import", "--from", "dovecot", "--uidl-format", "%m"], "of mbox files"),
        (["import", "--from", "nupop", "--at-once", "0"], "no number from 1"),
        (["import", "--from", "nupop", "--fake-uid-max", "0"], "a number from 1"),
        (["import", "--from", "nupop", "--list", "/nonexistent"], "/nonexistent"),
    ],
)
def test_a_command_line_that_can_t_be_meant(store: Store, arguments: list[str], reason: str) -> None:
    """Refused before any Maildir is looked at."""
    done = gpop(store, *arguments)
    assert done.returncode == 2 and reason in done.stderr


def test_what_was_imported_is_never_changed(store: Store) -> None:
    """Another server's other id for a message that has one is a doubt."""
    importfile.add(store.dir_fd, {NAMES[0]: ImportedId(b"first")})
    done = gpop(store, "import", "--from", "x-uidl")
    assert done.returncode == 1 and "was imported as b'first' before" in done.stdout
    assert ids(store) == {NAMES[0]: (b"first", 0)}


def test_sessions_serve_what_was_imported(store: Store) -> None:
    """With a statcache of before, too."""
    store.open().close()
    assert gpop(store, "import", "--from", "x-uidl").returncode == 0
    if ROOT:
        os.chown(store.path / importfile.IMPORT_NAME, 0, 0)
        os.chown(store.cache, 0, 0)
    with store.session() as opened:
        assert [each for each, _ in listing(opened)] == [b"one", b"two", NAMES[2]]
