"""
A mailbox owner with a shell, who arranges what lies in his home as he likes, while he logs in.

The jail is "none" where nothing else is said: links lead wherever they say, so that gpop's own care is tried,
and not the jail. What must never be read or written is watched by the kernel (inotify).
Long forms: GPOP_TEST_HOSTILE_TRIES=2000, GPOP_TEST_HOSTILE_FILES=1000000.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.root.played import ANYTHING, IN_ACCESS, IN_MODIFY, IN_OPEN, Shell, Watch, exchange, session
from tests.serving import PASSWORD, ROOT, Server, Site, wait_until

pytestmark = pytest.mark.skipif(not ROOT, reason="needs root: users are played, with uids of their own")

TRIES = int(os.environ.get("GPOP_TEST_HOSTILE_TRIES", "30"))
FILES = int(os.environ.get("GPOP_TEST_HOSTILE_FILES", "8000"))
# In a race, both sides of it have to have been seen so often.
EACH_SIDE = max(5, TRIES // 20)
LONGEST_RACE_S = 60 + TRIES / 10
SECRET = b"this is in the mail of user2 alone"
OWN = b"Subject: own\n\nmail of user1\n"
OWN_BASE, SECRET_BASE = "1700000001.M1.own", "1700000002.M2.victim"
OWN_FILES = (
    ".statcache",
    ".unique-ids",
    ".gpop-retrieved",
    ".gpop-retrieved.new",
    ".gpop-lock",
    "maildirsize",
)


@contextlib.contextmanager
def hostile_site(**settings: object) -> Iterator[Server]:
    """user1 is hostile; user2 has mail, by its modes for everybody to read and write; user3 is honest."""
    site = Site(accounts=4, **{"session__jail": "none", "session__expire_retrieved_days": 30} | settings)
    site.deliver(OWN, "user1", base=OWN_BASE)
    site.deliver(b"Subject: secret\n\n" + SECRET + b"\n", "user2", base=SECRET_BASE)
    site.deliver(b"Subject: three\n\n", "user3")
    for path in [site.home("user2"), site.maildir("user2"), *site.maildir("user2").iterdir()]:
        path.chmod(0o777)
    (site.maildir("user2") / "new" / SECRET_BASE).chmod(0o666)
    try:
        with Server(site) as server:
            yield server
    finally:
        site.remove()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Server]:
    """One gpop for all tests here that need no setting of their own."""
    with hostile_site() as server:
        yield server


@pytest.fixture
def server(lasting: Server) -> Iterator[Server]:
    """gpop, with user1's home as at first; in the end user2's mail is unchanged, and nothing has died."""
    site = lasting.site
    renew_home(site)
    before = everything_in(site.home("user2"))
    faults = len(deaths(lasting))
    yield lasting
    wait_until(lambda: not lasting.pids("session"), timeout_s=60)
    assert everything_in(site.home("user2")) == before
    assert deaths(lasting)[faults:] == []
    renew_home(site)
    assert_own_mail(lasting)


def renew_home(site: Site) -> None:
    """Give user1 the home that he had at first."""
    shutil.rmtree(site.home("user1"))
    site.make_home("user1")
    site.deliver(OWN, "user1", base=OWN_BASE)


def give_all(site: Site, path: Path) -> None:
    """Give user1 everything below a path."""
    subprocess.run(["chown", "-hR", f"{site.uid('user1')}:{site.gid('user1')}", path], check=True)


def make_message(site: Site, path: Path) -> None:
    """Make an empty message of user1's, fast."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL)
    os.fchown(fd, site.uid("user1"), site.gid("user1"))
    os.close(fd)


def everything_in(path: Path) -> dict[str, tuple[int, ...]]:
    """What a change of any file below would change."""
    found = {}
    for folder, _, names in os.walk(path):
        for name in ("", *names):
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (
                status.st_ino, status.st_mode, status.st_uid, status.st_nlink, status.st_size,
                status.st_mtime_ns,
            )  # fmt: skip
    return found


def deaths(server: Server) -> list[dict]:
    """Events that say that something of gpop's broke, and did not just refuse."""
    return [event for event in server.faults() if event["event"] != "session_closed"] + [
        event
        for event in server.events("session_closed")
        if event["close_reason"] == "fault" and event["account"] != "user1"
    ]


def victims_mail(site: Site) -> Watch:
    """A watch that nothing must be seen by: nobody lists or reads the mail of user2, or changes anything."""
    maildir = site.maildir("user2")
    return Watch(maildir / "new", maildir / "cur", maildir / "new" / SECRET_BASE, mask=ANYTHING)


ASKED = ("STAT", "UIDL", "RETR 1", "QUIT")


def poll(server: Server, name: str = "user1") -> bytes:
    """A login that asks for all there is."""
    answers = session(server, name, *ASKED)
    if name != "user2":
        assert SECRET not in answers and SECRET_BASE.encode() not in answers, answers
    return answers


def assert_own_mail(server: Server) -> None:
    """user1 is served, with his own mail and all of it."""
    answers = poll(server)
    assert b"+OK 1 " in answers and f"1 {OWN_BASE}\r\n".encode() in answers, answers
    assert b"mail of user1\r\n.\r\n" in answers


def is_refused(answers: bytes) -> bool:
    """Whether a login was refused for the moment; nothing else may be in the answer then."""
    return re.fullmatch(rb"-ERR \[SYS/TEMP\][^\r\n]*\r\n", answers) is not None


# What lies where gpop keeps its own files


def a_link_to(target: str | Path) -> Callable[[Path, Path], None]:
    return lambda path, _: path.symlink_to(target)


def sparse(path: Path, _: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 << 30)


def bound_socket(path: Path, _: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def device(path: Path, _: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")  # in a container that may make none


def unreadable(path: Path, _: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "link to another's file": lambda path, target: path.symlink_to(target),
    "link to shadow": a_link_to("/etc/shadow"),
    "link to root's file": lambda path, target: path.symlink_to(target.with_name("roots-own")),
    "link to itself": lambda path, _: path.symlink_to(path),
    "dangling link": lambda path, _: path.symlink_to(path.parent / "made-through-a-link"),
    "link to a terminal": a_link_to("/dev/tty"),
    "FIFO": lambda path, _: os.mkfifo(path),
    "directory": lambda path, _: path.mkdir(),
    "device": device,
    "socket": bound_socket,
    "another's file by a hard link": lambda path, target: os.link(target, path),
    "10 GB of nothing": sparse,
    "unreadable": unreadable,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_lies_in_place_of_gpops_own_files(server, kind):
    """
    Nothing is waited for, read or written through it: the owner is served, or (imported unique-ids) refused.

    The target is a file of user2's that everybody may read and write.
    """
    site = server.site
    target = site.path / "target"
    target.write_bytes(b"of user2")
    site.own(target, "user2")
    target.chmod(0o666)
    roots_own = site.path / "roots-own"
    roots_own.write_bytes(b"of root")
    roots_own.chmod(0o600)
    unopened = [target, roots_own]
    try:
        for name in OWN_FILES:
            renew_home(site)
            path = site.maildir("user1") / name
            KINDS[kind](path, target)
            if kind != "another's file by a hard link":
                site.own(path, "user1")
            # Through a hard link the user could read it as well; it must not be believed or written.
            with Watch(*unopened, mask=IN_MODIFY if "hard" in kind else ANYTHING) as watch:
                if name == ".unique-ids":
                    for _ in range(2):
                        assert is_refused(poll(server))
                else:
                    for _ in range(2):
                        assert_own_mail(server)
                    # UPDATE appends to the quota file, if it is one.
                    assert session(server, "user1", "DELE 1", "QUIT").count(b"+OK") == 3
                    assert site.files("user1") == []
                assert watch.events() == [], name
            assert target.read_bytes() == b"of user2"
            assert not (site.maildir("user1") / "made-through-a-link").exists()
            with contextlib.suppress(OSError):
                path.unlink()  # before the links are counted
    finally:
        target.unlink()
    assert poll(server, "user3").startswith(b"+OK")


# What changes while it is read


def rewrite(path: str, images: list[bytes]) -> Callable[[int], None]:
    """A deed: write, cut, damage or exchange a file, another way each time."""
    chance = random.Random(1939)

    def deed(number: int) -> None:
        image = chance.choice(images)
        way = number % 4
        if way == 0:
            with open(path + ".own", "wb") as file:
                file.write(image)
            os.rename(path + ".own", path)
            return
        with contextlib.suppress(FileNotFoundError), open(path, "r+b", buffering=0) as file:
            if way == 1:
                file.truncate(chance.randrange(len(image) + 1))
            elif way == 2:
                file.seek(chance.randrange(len(image) + 1))
                file.write(chance.randbytes(40))
            else:
                file.write(image)

    return deed


def race(
    server: Server,
    once: Callable[[], object],
    enough: Callable[[], bool] = lambda: True,
    at_least: int = TRIES,
) -> int:
    """Do it so often, and on until `enough`; another user is served all the while. Returns how often."""
    deadline = time.monotonic() + LONGEST_RACE_S
    tries = 0
    while tries < at_least or not enough():
        assert time.monotonic() < deadline, f"one side of the race was not seen often enough in {tries} tries"
        once()
        tries += 1
        if tries % 20 == 0:
            assert poll(server, "user3").startswith(b"+OK")
    return tries


@pytest.mark.parametrize("name", [".statcache", ".gpop-retrieved", ".unique-ids"])
def test_a_file_that_changes_while_it_is_read(server, name):
    """
    A user's process rewrites, cuts, damages and exchanges it all the time while he logs in.

    Cache and record of retrievals: every answer is right. Imported unique-ids: right, or refused.
    """
    site = server.site
    maildir = site.maildir("user1")
    ids = maildir / ".unique-ids"
    if name == ".unique-ids":
        from gpop.maildrop import imported

        ids.write_bytes(imported.render({OWN_BASE.encode(): imported.ImportedId(b"imported", 1)}))
        site.own(ids, "user1")
    assert poll(server).startswith(b"+OK")
    valid = (maildir / name).read_bytes()
    images = [valid, valid[: len(valid) // 2], os.urandom(len(valid)), valid + b"\0" * 5000, b""]

    def login() -> None:
        answers = poll(server)
        if name == ".unique-ids":
            # Whatever is refused, and when: the default unique-id would have the mail downloaded again.
            assert f"1 {OWN_BASE}".encode() not in answers
            assert is_refused(answers) or answers.startswith(b"+OK")
        else:
            assert answers.startswith(b"+OK") and f"1 {OWN_BASE}\r\n".encode() in answers, answers
            assert b"mail of user1\r\n.\r\n" in answers, answers

    with Shell(site.uid("user1"), rewrite(str(maildir / name), images)):
        race(server, login)
    if name == ".unique-ids":
        ids.unlink()
    assert_own_mail(server)


def test_a_large_cache_that_changes_while_it_is_served(server):
    """Served from its file: its owner may tell himself nonsense, but nobody waits, dies or loses mail."""
    site = server.site
    maildir = site.maildir("user1")
    for number in range(3000):
        make_message(site, maildir / "cur" / f"{1600000000 + number}.M{number:06d}P{'1' * 44}.host:2,S")
    assert b"+OK 3001 " in session(server, "user1", "STAT", "QUIT")
    valid = (maildir / ".statcache").read_bytes()
    assert len(valid) > 270_000  # else it is read as a whole
    images = [valid, valid[: len(valid) // 2], valid[:200] + os.urandom(len(valid) - 200), b""]
    with Shell(site.uid("user1"), rewrite(str(maildir / ".statcache"), images)):
        race(server, lambda: poll(server), at_least=TRIES // 8)
    assert len(site.files("user1")) == 3001
    (maildir / ".statcache").unlink()
    assert b"+OK 3001 " in session(server, "user1", "STAT", "QUIT")


# Another's Maildir in the place of one's own


def swapped(server: Server, own: Path, theirs: Path) -> None:
    """Have `own` be exchanged with a link to `theirs` all the time while user1 logs in."""
    site = server.site
    link = own.with_name(own.name + ".link")
    link.symlink_to(theirs)
    site.own(link, "user1")
    seen = {"own": 0, "refused": 0}

    def login() -> None:
        answers = poll(server)
        if is_refused(answers):
            seen["refused"] += 1
        else:
            # It may be refused later on, when the folder is looked into again; it is never another's.
            assert answers.startswith(b"+OK"), answers
            seen["own"] += f"1 {OWN_BASE}\r\n".encode() in answers

    with victims_mail(site) as watch:
        with Shell(site.uid("user1"), lambda _: exchange(str(own), str(link))):
            race(server, login, lambda: min(seen.values()) >= EACH_SIDE)
        assert watch.events() == []
        (site.maildir("user2") / "new" / SECRET_BASE).read_bytes()
        assert watch.events(), "the watch sees nothing"


@pytest.mark.parametrize("place", ["Maildir", "Maildir/new", "Maildir/cur"])
def test_a_maildir_swapped_for_a_link_to_anothers(server, place):
    """Logins while it is exchanged in a loop: own mail or [SYS/TEMP]; the other's is not touched."""
    site = server.site
    swapped(server, site.home("user1") / place, site.home("user2") / place)


@pytest.mark.parametrize("jail", ["home", "maildir"])
def test_a_home_swapped_for_a_link_to_anothers(jail):
    """The same with the directory above, where the user has that, too."""
    with hostile_site(session__jail=jail) as server:
        site = server.site
        homes = site.home("user1")
        below = homes / "home"
        below.mkdir()
        site.maildir("user1").rename(below / "Maildir")
        site.own(below, "user1")
        lines = site.passwd.read_text().replace(f"{homes}::", f"{below}::")
        site.passwd.write_text(lines)
        wait_until(lambda: f"1 {OWN_BASE}".encode() in poll(server))
        swapped(server, below, site.home("user2"))


def test_removed_mail_does_not_move_to_anothers_folder():
    """.Trash as a link to user2's Maildir, or its cur/ as one: the message stays where it is."""
    with hostile_site(session__removal=".Trash") as server:
        site = server.site
        trash = site.maildir("user1") / ".Trash"
        theirs = site.maildir("user2")
        before = everything_in(site.home("user2"))
        with victims_mail(site) as watch:
            for inner in (False, True):
                if inner:
                    trash.mkdir()
                    (trash / "cur").symlink_to(theirs / "cur")
                else:
                    trash.symlink_to(theirs)
                for path in (trash, *(trash.iterdir() if inner else ())):
                    site.own(path, "user1")
                answers = session(server, "user1", "DELE 1", "QUIT")
                assert answers.rstrip().rpartition(b"\r\n")[2].startswith(b"-ERR"), answers
                assert site.files("user1") == [OWN_BASE]
                trash.unlink() if trash.is_symlink() else shutil.rmtree(trash)
            assert watch.events() == []
        assert everything_in(site.home("user2")) == before


def test_root_commands_on_a_maildir_that_is_swapped(server):
    """`gpop cache` and `gpop uidl` enter as the owner: his Maildir or none, however often it changes."""
    from gpop.commands import owner

    site = server.site
    own = site.maildir("user1")
    link = own.with_name("link")
    link.symlink_to(site.maildir("user2"))
    own_inode = own.stat().st_ino
    reading, writing = os.pipe()

    def enter() -> None:
        pid = os.fork()
        if pid == 0:
            said = b"r"
            try:
                fd = owner.enter(str(own))
                entered = os.getresuid() == (site.uid("user1"),) * 3 and os.fstat(fd).st_ino == own_inode
                said = b"o" if entered else b"x"
            except (owner.Refused, OSError):
                said = b"r"
            finally:
                os.write(writing, said)
                os._exit(0)
        os.waitpid(pid, 0)
        seen.append(os.read(reading, 1))

    seen: list[bytes] = []
    with Shell(site.uid("user1"), lambda _: exchange(str(own), str(link))):
        race(server, enter, lambda: min(map(seen.count, (b"o", b"r"))) >= EACH_SIDE)
    os.close(reading)
    os.close(writing)
    assert set(seen) == {b"o", b"r"}


# Code and data that libraries would look for


PLANTED = """
    encodings/__init__.py encodings/idna.py encodings/utf_8.py sitecustomize.py usercustomize.py
    gpop/__init__.py gpop/session/session.py os.py random.py hashlib.py linecache.py traceback.py
    _strptime.py calendar.py zlib.py planted.pth _blake2.so zlib.cpython-311-x86_64-linux-gnu.so
    python311.zip pyvenv.cfg lib/python3.11/site-packages/a.pth lib/python3.11/encodings/idna.py
    etc/ld.so.preload etc/ld.so.cache etc/nsswitch.conf etc/passwd etc/group etc/hosts
    etc/resolv.conf etc/host.conf lib/x86_64-linux-gnu/libnss_files.so.2 lib/libnss_compat.so.2
    lib/x86_64-linux-gnu/libgcc_s.so.1 lib/x86_64-linux-gnu/libc.so.6
    usr/lib/x86_64-linux-gnu/gconv/gconv-modules usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache
    usr/lib/locale/locale-archive usr/lib/locale/C.utf8/LC_CTYPE
    usr/share/locale/de/LC_MESSAGES/libc.mo usr/share/zoneinfo/UTC usr/lib/ssl/openssl.cnf bin/sh
"""


@pytest.mark.parametrize("jail", ["maildir", "none"])
def test_planted_code_is_never_opened(jail):
    """
    Python modules, .pth, .so, NSS, locale, gconv, ld.so.preload, in the jail and the current directory.

    Not one of them is so much as opened, whichever way a session goes: refresh, hit, faults, errors, UPDATE.
    """
    with hostile_site(session__jail=jail) as server:
        site = server.site
        places = {site.home("user1"), site.maildir("user1")}
        planted = []
        for place in places:
            for name in PLANTED.split():
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("import os\nopen('/planted', 'w').close()\nopen('planted', 'w').close()\n")
                path.chmod(0o755)
                planted.append(path)
        give_all(site, site.home("user1"))
        folders = {path.parent for path in planted} - places
        site.deliver(b"Subject: \xff\xfe\n\n.\r\nbody", "user1", base="1" + "x" * 90)
        with Watch(*planted, *folders) as watch:
            for _ in range(2):
                said = (
                    "UTF8",
                    "LANG de",
                    "STAT",
                    "UIDL",
                    "LIST",
                    "TOP 1 1",
                    "RETR 2",
                    "XYZZY \u00e9",
                    "LIST 99",
                    "QUIT",
                )
                assert session(server, "user1", *said).startswith(b"+OK")
            cache = site.maildir("user1") / ".statcache"
            cache.write_bytes(b"damaged")
            assert session(server, "user1", *ASKED).startswith(b"+OK")
            shutil.move(site.maildir("user1") / "cur", site.maildir("user1") / "away")
            assert is_refused(session(server, "user1", *ASKED))
            shutil.move(site.maildir("user1") / "away", site.maildir("user1") / "cur")
            assert session(server, "user1", "DELE 1", "QUIT").startswith(b"+OK")
            opened = [event for event in watch.events() if event[1] & (IN_OPEN | IN_ACCESS)]
            assert opened == []
            planted[0].read_bytes()
            assert watch.events(), "the watch sees nothing"
        assert not list(site.path.rglob("planted")) and not Path("/planted").exists()


# Others' messages under own names


def test_a_hard_link_to_mail_that_its_user_may_not_read(server):
    """
    Where the kernel lets users link what is not theirs (fs.protected_hardlinks = 0): listed, never sent.

    Its size is told, which `ls -l` says as well. DELE takes the user's own name away, and not the other's.
    """
    site = server.site
    theirs = site.maildir("user2") / "new" / SECRET_BASE
    theirs.chmod(0o600)
    linked = site.maildir("user1") / "new" / "1700000009.M9.linked"
    os.link(theirs, linked)
    before = (theirs.stat().st_ino, theirs.stat().st_mtime_ns, theirs.read_bytes())
    with Watch(theirs) as watch:
        for _ in range(2):
            answers = session(server, "user1", "UIDL", "RETR 2", "TOP 2 5", "QUIT")
            assert SECRET not in answers
            assert b"2 1700000009.M9.linked\r\n" in answers and answers.count(b"\r\n-ERR ") == 2, answers
        assert [event for event in watch.events() if event[1] & (IN_OPEN | IN_ACCESS)] == []
    assert session(server, "user1", "DELE 2", "QUIT").count(b"+OK") == 3
    assert (theirs.stat().st_ino, theirs.stat().st_mtime_ns, theirs.read_bytes()) == before
    assert theirs.stat().st_nlink == 1
    theirs.chmod(0o666)


# Very many


def test_very_many_files(server):
    """Very many messages, names of 200 octets: others are served meanwhile; memory has a bound per file."""
    site = server.site
    new = site.maildir("user1") / "new"
    for number in range(FILES):
        name = f"{1700000000 + number}.M{number}" + "x" * 180
        make_message(site, new / name)
    taken: list[float] = []
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            started = time.monotonic()
            assert poll(server, "user3").startswith(b"+OK")
            taken.append(time.monotonic() - started)

    beside = threading.Thread(target=others)
    beside.start()
    try:
        started = time.monotonic()
        with server.connect(timeout_s=600) as dialogue:
            dialogue.ask("USER user1")
            assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
            first_s = time.monotonic() - started
            kib = max(peak_kib(pid) for pid in server.pids("session"))
            assert dialogue.ask("STAT").startswith(b"+OK %d " % (FILES + 1))
            assert dialogue.ask("UIDL").startswith(b"+OK")
            assert len(dialogue.lines()) == FILES + 1
            assert dialogue.ask("QUIT").startswith(b"+OK")
        started = time.monotonic()
        assert session(server, "user1", "STAT", "QUIT").startswith(b"+OK")
        second_s = time.monotonic() - started
    finally:
        stop.set()
        beside.join()
    print(f"{FILES} files: {first_s:.1f} s, then {second_s:.3f} s; {kib} KiB; others {len(taken)} polls, "
          f"longest {max(taken):.2f} s")  # fmt: skip
    assert kib < 40 * 1024 + FILES * 2
    assert len(taken) >= 2
    # A session of that user has cost nobody else memory.
    assert peak_kib(server.process.pid) < 60 * 1024


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0  # a process that has ended has none


def test_directories_below_directories(server):
    """Deeper trees, loops of links and thousands of entries that are no mail are passed over."""
    site = server.site
    deep = site.maildir("user1") / "new"
    where = os.open(deep, os.O_RDONLY)
    for number in range(300):
        os.mkdir("d" * 200 + str(number % 10), dir_fd=where)
        os.symlink("..", "up", dir_fd=where)
        next_where = os.open("d" * 200 + str(number % 10), os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = next_where
    os.close(where)
    for number in range(300):
        (deep / f"link{number}").symlink_to("/")
    give_all(site, site.home("user1"))
    assert_own_mail(server)
