"""`gpop uidl import --from-server`: for many users at once, whatever the server and one of them is up to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpop.maildrop import importfile
from tests.migration.hostile import Answer, Script, drop
from tests.serving import FIRST_TEST_UID, ROOT, wait_until

TOP = Path(__file__).parent.parent.parent
SECRET = "a-password-that-nobody-prints"
ONE = b"Subject: one\r\n\r\nbody\r\n"
TWO = b"Subject: two\r\n\r\nbody\r\n"


class Homes:
    """Maildirs of users who all have the same two messages; as root each is somebody else's."""

    def __init__(self, count: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gpop-test-"))
        self.path.chmod(0o755)
        self.names = [f"user{number}" for number in range(count)]
        for name in self.names:
            for folder in ("new", "cur", "tmp"):
                (self.maildir(name) / folder).mkdir(parents=True)
            self.deliver(name, "new/1000.a", ONE)
            self.deliver(name, "cur/1001.b:2,S", TWO)
        self.users = self.path / "users"
        self.users.write_text("".join(f"{name}:{SECRET}{name}\n" for name in self.names))
        self.users.chmod(0o600)
        self.journal = Path(f"{self.users}.gpop-journal")

    def maildir(self, name: str) -> Path:
        return self.path / name / "Maildir"

    def deliver(self, name: str, file: str, message: bytes) -> None:
        """Put a message there as Unix has it."""
        (self.maildir(name) / file).write_bytes(message.replace(b"\r\n", b"\n"))
        if ROOT:
            uid = FIRST_TEST_UID + self.names.index(name)
            for path in (self.path / name, *(self.path / name).rglob("*")):
                os.chown(path, uid, uid)

    def ids(self, name: str = "user0") -> dict[bytes, tuple[bytes, int]]:
        """What was imported."""
        path = self.maildir(name) / importfile.IMPORT_NAME
        if not path.exists():
            return {}
        lines = path.read_bytes().splitlines()[1:]
        return {base: (unique_id, int(order)) for order, unique_id, base in map(bytes.split, lines)}

    def command(self, url: str, *more: str) -> list[str]:
        return [
            *(
                sys.executable,
                "-m",
                "gpop",
                "uidl",
                "import",
                "--from-server",
                url,
                "--users",
                str(self.users),
            ),
            *("--maildir-of", f"{self.path}/%u/Maildir", "--silence-s", "20", *more),
        ]

    def run(self, server: Script, *more: str, **how: object) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; no password may be in what it says."""
        command = self.command(server.url, *more)
        done = subprocess.run(
            command, check=False, cwd=TOP, capture_output=True, text=True, timeout=120, **how
        )  # type: ignore[call-overload]
        assert SECRET not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done


@pytest.fixture
def homes() -> Iterator[Homes]:
    """Three users."""
    made = Homes(3)
    yield made
    shutil.rmtree(made.path)


BOTH = drop(TWO, ONE, ids=[b"second", b"first"])
IMPORTED = {b"1001.b": (b"second", 1), b"1000.a": (b"first", 2)}


def but(answer: Answer, line: bytes, said: Answer) -> Answer:
    """Answer as `answer` does, but to one line."""
    return lambda asked: said(asked) if asked == line else answer(asked)


def test_everybody(homes: Homes) -> None:
    """Each Maildir has the ids and the order of the server, in its owner's file; nothing else changes."""
    before = sorted(path for path in homes.path.rglob("*"))
    with Script(BOTH) as server:
        done = homes.run(server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 users imported, 6 unique-ids; 0 with problems" in done.stdout
    for number, name in enumerate(homes.names):
        assert homes.ids(name) == IMPORTED
        status = (homes.maildir(name) / importfile.IMPORT_NAME).stat()
        assert status.st_uid == (FIRST_TEST_UID + number if ROOT else os.geteuid())
    added = {path.name for path in homes.path.rglob("*") if path not in before}
    assert added == {importfile.IMPORT_NAME, "users.gpop-journal"}
    assert SECRET not in homes.journal.read_text()
    assert not {line.split()[0] for line in server.asked} & {b"DELE", b"RETR"}


def test_dry_run(homes: Homes) -> None:
    """A dry run says what it would do, message by message if asked to, and changes nothing."""
    before = sorted(homes.path.rglob("*"))
    with Script(BOTH) as server:
        done = homes.run(server, "--dry-run", "--verbose")
    assert done.returncode == 0 and "3 of 3 users could be imported, 6 unique-ids" in done.stdout
    assert "1001.b: taken second" in done.stdout
    assert sorted(homes.path.rglob("*")) == before


def test_doubts(homes: Homes) -> None:
    """A message whose file is not there leaves all of that Maildir as it is; others go on."""
    (homes.maildir("user1") / "new/1000.a").unlink()
    with Script(BOTH) as server:
        done = homes.run(server)
    assert done.returncode == 1
    assert "doubt: message 2: no file first: no file has its header" in done.stdout
    assert "2 of 3 users imported, 4 unique-ids; 1 with problems" in done.stdout
    assert homes.ids("user0") == homes.ids("user2") == IMPORTED and not homes.ids("user1")


def test_mail_that_came_since(homes: Homes) -> None:
    """A file that the server has no message for keeps gpop's own id, and the others are imported."""
    homes.deliver("user0", "new/1002.c", b"Subject: three\r\n\r\nlater\r\n")
    with Script(BOTH) as server:
        done = homes.run(server)
    assert done.returncode == 0 and homes.ids("user0") == IMPORTED


def test_one_of_many_is_trouble(homes: Homes) -> None:
    """A refused password, and a server that for one user sends for ever: everybody else is done."""

    def endless(_line: bytes) -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    refused = but(BOTH, f"PASS {SECRET}user0".encode(), lambda _line: b"-ERR [AUTH] no\r\n")
    with Script(but(refused, f"PASS {SECRET}user1".encode(), endless)) as server:
        done = homes.run(server)
    assert done.returncode == 1
    assert "user0: the login was refused: -ERR [AUTH] no" in done.stdout
    assert "user1: a line of more than 2048 octets" in done.stdout
    assert "1 of 3 users imported" in done.stdout and homes.ids("user2") == IMPORTED
    assert not homes.ids("user0") and not homes.ids("user1")


def test_a_killed_run_goes_on(homes: Homes) -> None:
    """Killed in the middle, the same command does those who are left, and only those."""
    go_on = threading.Event()

    def waiting(_line: bytes) -> bytes:
        go_on.wait(60)
        return b"+OK\r\n"

    with Script(but(BOTH, f"PASS {SECRET}user1".encode(), waiting)) as server:
        first = subprocess.Popen(
            homes.command(server.url, "--at-once", "1"),
            cwd=TOP,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: b"USER user1" in server.asked, 60)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert homes.ids("user0") == IMPORTED and not homes.ids("user2")
        with open(homes.journal, "a") as journal:
            journal.write('{"done": "user2')  # as if the kill had hit there
        go_on.set()
        server.asked.clear()
        done = homes.run(server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 users were done before" in done.stderr and "2 of 2 users imported" in done.stdout
    assert b"USER user0" not in server.asked
    assert all(homes.ids(name) == IMPORTED for name in homes.names)


def test_once_more(homes: Homes) -> None:
    """Without the journal everybody is done again, and what is there is left as it is."""
    with Script(BOTH) as server:
        homes.run(server)
        done = homes.run(server, "--again")
        assert done.returncode == 0 and "3 of 3 users imported, 0 unique-ids" in done.stdout
    with Script(drop(TWO, ONE, ids=[b"second", b"another"])) as other:
        done = homes.run(other)
        assert done.returncode == 2 and "the journal of another run" in done.stderr
        done = homes.run(other, "--again")
    assert done.returncode == 1 and "has another id" in done.stdout
    assert homes.ids("user0") == IMPORTED


def test_terminated(homes: Homes) -> None:
    """SIGTERM ends the users' processes, says what was done, and leaves nothing behind."""
    with Script(but(BOTH, f"PASS {SECRET}user2".encode(), lambda _line: b"")) as server:
        running = subprocess.Popen(
            homes.command(server.url), cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: homes.ids("user0") and homes.ids("user1") and b"USER user2" in server.asked, 60)
        running.terminate()
        out, err = running.communicate(timeout=60)
    assert running.returncode == 1 and "the same command goes on from here" in err
    assert "users imported" in out and "Traceback" not in err


def test_lists_that_are_none(homes: Homes) -> None:
    """What is wrong with a list is said by line, without the passwords, before anybody is asked."""
    homes.users.write_text(f"user0:{SECRET}\nuser0:{SECRET}\n:{SECRET}\nuser2\n# a comment\n\n")
    with Script(BOTH) as server:
        done = homes.run(server)
        assert done.returncode == 2 and not server.asked
        for words in ("line 2: the user of line 1 again", "line 3: no name of a user", "line 4: no password"):
            assert words in done.stderr
        homes.users.write_text("")
        assert "there is no user in it" in homes.run(server).stderr


def test_names_that_lead_elsewhere(homes: Homes) -> None:
    """A name is never a path."""
    homes.users.write_text(f"../user0:{SECRET}\n.:{SECRET}\na/b:{SECRET}\n")
    with Script(BOTH) as server:
        done = homes.run(server)
    assert done.returncode == 1 and done.stdout.count("no part of a path") == 3 and not server.asked


def test_from_standard_input(homes: Homes) -> None:
    """The list may come by a pipe: then there is no journal unless it is named."""
    with Script(BOTH) as server:
        text = homes.users.read_text()
        done = homes.run(server, "--users", "-", input=text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert homes.ids("user2") == IMPORTED and not homes.journal.exists()


def test_nobody_at_a_time_is_no_number(homes: Homes) -> None:
    """With --at-once 0 nothing was done, and exit status 0 said that all was well."""
    with Script(BOTH) as server:
        for words in (["--at-once", "0"], ["--silence-s", "nan"], ["--user-timeout-s", "-1"]):
            done = homes.run(server, *words)
            assert done.returncode == 2 and "is no number" in done.stderr
    assert not homes.ids()


def test_a_user_who_never_got_mail(homes: Homes) -> None:
    """No Maildir, and no message on the server: nothing to keep, and no failure; with one it is."""
    shutil.rmtree(homes.maildir("user0"))
    shutil.rmtree(homes.maildir("user1"))
    with Script(BOTH) as server:
        done = homes.run(server)
    assert done.returncode == 1
    assert f"user1: {homes.maildir('user1')} is not there, and the server has 2 messages" in done.stdout
    with Script(drop()) as server:
        done = homes.run(server, "--again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "user0  (no Maildir: nothing to keep)" in done.stdout
    assert "1 of 3 users imported, 0 unique-ids; 2 with nothing to keep; 0 with problems" in done.stdout


def test_a_journal_is_about_these_maildirs(homes: Homes) -> None:
    """A trial on copies of Maildirs noted everybody as done, and the import itself then did nobody."""
    copies = homes.path / "copies"
    with Script(BOTH) as server:
        for name in homes.names:
            shutil.copytree(homes.path / name, copies / name)
        if ROOT:
            for path in copies.rglob("*"):
                uid = FIRST_TEST_UID + homes.names.index(path.relative_to(copies).parts[0])
                os.chown(path, uid, uid)
        done = homes.run(server, "--maildir-of", f"{copies}/%u/Maildir")
        assert done.returncode == 0, done.stdout + done.stderr
        done = homes.run(server)
        assert done.returncode == 2 and f"maildirs {copies}/%u/Maildir" in done.stderr
        assert homes.run(server, "--again").returncode == 0
        done = homes.run(server)
    assert "3 users were done before" in done.stderr and "--again does them again" in done.stderr
    assert homes.ids() == IMPORTED


def test_a_list_that_is_edited_meanwhile(homes: Homes) -> None:
    """Whose line has moved is told so, and no other user's password is sent for them."""

    def edited(line: bytes) -> bytes:
        if line == b"USER user0":
            homes.users.write_text("#\n" + homes.users.read_text())
        return BOTH(line)

    with Script(edited) as server:
        done = homes.run(server, "--at-once", "1")
    assert done.returncode == 1
    assert done.stdout.count("the list of users has changed since it was read") == 2
