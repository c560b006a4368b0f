"""
Moving in from real servers: whatever was there before, no client of its users finds one new message.

Dovecot and Courier from Debian serve maildrops in which everything is hard: file names of all kinds,
messages that are the same or nearly so. fetchmail and getmail6 fetch all of it and keep it; then ids are
imported, and gpop serves.
"""

from __future__ import annotations

import os
import poplib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.bench.courier import Courier
from loadtest.bench.kinds import Dovecot
from loadtest.bench.maildrops import PASSWORD
from loadtest.bench.servers import NotHere
from loadtest.bench.servers import Server as OldServer
from tests.migration.old_servers import (
    DovecotOfNames,
    DovecotWithMaster,
    fill,
    site_for_both,
    started,
    users_file,
)
from tests.serving import ROOT, Server, wait_until

pytestmark = pytest.mark.skipif(not ROOT, reason="starts servers that want root, for users of their own")

COUNT = 1000
TOP = Path(__file__).parent.parent.parent
NOTHING_NEW = 1  # fetchmail's exit status


class Move:
    """A site with an old server on it, its users' clients, and the commands of whoever moves it."""

    def __init__(self, kind: type[OldServer], count: int) -> None:
        self.site = site_for_both(2)
        self.work = self.site.path / "work"
        self.work.mkdir(mode=0o755)
        fill(self.site, count)
        fill(self.site, 3, "user1")
        self.getmaildir = self.work / "getmail"
        self.getmaildir.mkdir()
        self.users = users_file(self.site, self.work / "users")
        self.old = started(kind, self.site)

    def end(self) -> None:
        self.old.stop()
        self.site.remove()

    def gpop(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `gpop uidl` as an administrator does."""
        command = [sys.executable, "-m", "gpop", "uidl", *arguments]
        return subprocess.run(command, check=False, cwd=TOP, capture_output=True, text=True, timeout=120)

    def live(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Import from the old server."""
        where = ("--from-server", f"pop3://127.0.0.1:{self.old.port}", "--users", str(self.users))
        return self.gpop("import", *where, "--config", str(self.site.config), *more)

    def verify(self, new: Server, *more: str) -> subprocess.CompletedProcess[str]:
        """Compare both servers."""
        urls = [f"pop3://127.0.0.1:{port}" for port in (self.old.port, new.port)]
        return self.gpop("verify", "--old", urls[0], "--new", urls[1], "--users", str(self.users), *more)

    def listed(self, port: int, name: str = "user0") -> list[bytes]:
        """The unique-ids that a server lists."""
        client = self._logged_in(port, name)
        listed = client.uidl()[1]
        client.quit()
        return listed

    def _logged_in(self, port: int, name: str) -> poplib.POP3:
        """On a busy machine Courier has a temporary problem now and then, and asks to be tried again."""
        found: list[poplib.POP3] = []

        def served() -> bool:
            client = poplib.POP3("127.0.0.1", port, timeout=60)
            client.user(name)
            try:
                client.pass_(PASSWORD)
            except poplib.error_proto as refused:
                client.close()
                if b"Temporary problem" not in refused.args[0] or port != self.old.port:
                    raise
                return False
            found.append(client)
            return True

        wait_until(served, 60, "a login that the old server does not put off")
        return found[0]

    def imported(self) -> bytes:
        return (self.site.maildir() / ".unique-ids").read_bytes()

    # Clients, which keep on the server what they have fetched

    def fetchmail(self, port: int) -> int:
        """Let fetchmail fetch what is new; returns how many messages."""
        config = self.work / "fetchmailrc"
        config.write_text(
            f"poll 127.0.0.1 service {port} protocol pop3 uidl\n"
            f'user "user0" password "{PASSWORD}" sslproto "" keep bsmtp "{self.work}/mail"\n'
        )
        config.chmod(0o600)
        (self.work / "mail").unlink(missing_ok=True)
        command = [
            "fetchmail",
            "--nosyslog",
            "--fetchmailrc",
            str(config),
            "--idfile",
            str(self.work / "ids"),
        ]
        environment = os.environ | {"HOME": str(self.work)}
        done = subprocess.run(
            [*command, "--pidfile", str(self.work / "pid")],
            check=False, capture_output=True, timeout=120, env=environment,
        )  # fmt: skip
        assert done.returncode in (0, NOTHING_NEW), done.stdout + done.stderr
        if done.returncode == NOTHING_NEW:
            return 0
        return (self.work / "mail").read_bytes().count(b"\nMAIL FROM:") + 1

    def getmail_has_all(self, port: int) -> int:
        """Tell getmail6's own code that all there is was delivered; returns how much of it was new."""
        # Delivering it for real, its processes wait for each other and miss each other now and then.
        arguments = [str(self.getmaildir), str(port), PASSWORD]
        return int(self._as_nobody(SYSTEM_PYTHON, "-c", GETMAIL_HAS_ALL, *arguments).splitlines()[-1])

    def getmail(self, port: int) -> str:
        """Let getmail6 fetch what is new; returns its summary."""
        folder = self.getmaildir
        for each in ("new", "cur", "tmp"):
            (folder / "inbox" / each).mkdir(parents=True)
        (folder / "rc").write_text(
            f"[retriever]\ntype = SimplePOP3Retriever\nserver = 127.0.0.1\nport = {port}\n"
            f"username = user0\npassword = {PASSWORD}\n"
            f"[destination]\ntype = Maildir\npath = {folder}/inbox/\n"
            "[options]\nread_all = false\ndelete = false\n"
        )
        # It keeps its ids by server and port.
        for path in folder.glob("oldmail-*"):
            path.rename(folder / f"oldmail-127.0.0.1-{port}-user0")
        return (
            self._as_nobody("getmail", "--getmaildir", str(folder), "--rcfile", "rc").splitlines()[-1].strip()
        )

    def _as_nobody(self, *command: str) -> str:
        """Run a command that will not be root; returns what it prints."""
        for path in (self.getmaildir, *self.getmaildir.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60,
            user="nobody", group="nogroup", cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


SYSTEM_PYTHON = "/usr/bin/python3"
GETMAIL_HAS_ALL = """
import configparser, sys
from getmailcore import retrievers
folder, port, password = sys.argv[1:]
fetching = retrievers.SimplePOP3Retriever(
    getmaildir=folder, configparser=configparser.ConfigParser(),
    server="127.0.0.1", port=port, username="user0", password=password,
)
fetching.checkconf()
fetching.initialize({})
fetching.select_mailbox(None)
new = len([each for each in fetching if each not in fetching.oldmail])
for each in fetching:
    fetching.delivered(each)
fetching.quit()
print(new)
"""


@pytest.fixture
def moves() -> Iterator[list[Move]]:
    """What is moved in a test; ended afterwards."""
    made: list[Move] = []
    yield made
    for each in made:
        each.end()


def move_from(moves: list[Move], kind: type[OldServer], count: int = COUNT) -> Move:
    try:
        kind.check()
    except NotHere as error:
        pytest.skip(str(error))
    moves.append(Move(kind, count))
    return moves[-1]


@pytest.mark.parametrize("kind", [Dovecot, Courier], ids=["dovecot", "courier"])
def test_no_client_notices(moves: list[Move], kind: type[OldServer]) -> None:
    """A thousand messages that two clients have stay the same to them, and in the same order."""
    for program in ("fetchmail", "getmail"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    move = move_from(moves, kind)
    port = move.old.port
    assert move.fetchmail(port) == COUNT
    # Courier numbers a file anew which had no flags when it was fetched, so there some are fetched again.
    assert move.fetchmail(port) < COUNT // 4 and move.fetchmail(port) == 0
    assert move.getmail_has_all(port) == COUNT and move.getmail_has_all(port) == 0
    before = move.listed(port)
    assert len(before) == COUNT

    done = move.live()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"2 of 2 users imported, {COUNT + 3} unique-ids; 0 with problems" in done.stdout
    with Server(move.site) as new:
        assert move.listed(new.port) == before
        compared = move.verify(new, "--ignore-sizes")
        assert compared.returncode == 0, compared.stdout + compared.stderr
        assert f"2 users, 2 identical; {COUNT + 3} messages are on both sides" in compared.stdout
        assert move.fetchmail(new.port) == 0
        assert move.getmail(new.port).startswith("0 messages (0 bytes) retrieved, 1000 skipped")
        assert not new.faults()
    # The way back: the old server has lost nothing of what it knew.
    assert move.listed(port) == before and move.fetchmail(port) == 0


@pytest.mark.parametrize(
    ("kind", "source"), [(Dovecot, "dovecot"), (Courier, "courier")], ids=["dovecot", "courier"]
)
def test_files_say_what_the_server_says(moves: list[Move], kind: type[OldServer], source: str) -> None:
    """Ids imported from what the server leaves in the Maildir are those that it lists, in its order."""
    move = move_from(moves, kind, 120)
    before = move.listed(move.old.port)
    maildir = str(move.site.maildir())
    done = move.gpop("import", "--from", source, maildir)
    assert done.returncode == 0, done.stdout + done.stderr
    by_files = move.imported()
    with Server(move.site) as new:
        assert move.listed(new.port) == before
    # What the server itself says then is no news, and alone it gives the same file.
    done = move.live()
    assert done.returncode == 0, done.stdout + done.stderr
    assert move.imported() == by_files
    (move.site.maildir() / ".unique-ids").unlink()
    assert move.live("--again").returncode == 0 and ids_of(move.imported()) == ids_of(by_files)


def ids_of(octets: bytes) -> list[list[bytes]]:
    """The unique-id and the base name in each line; each source numbers the order as it likes."""
    return [line.split(b" ")[1:] for line in octets.splitlines()[1:]]


def test_a_master_user(moves: list[Move]) -> None:
    """With a master user's password in a file nobody else's is needed."""
    move = move_from(moves, DovecotWithMaster, 20)
    name, password = DovecotWithMaster.master
    secret = move.work / "master"
    secret.write_text(f"{password}\n")
    move.users.write_text("user0\nuser1\n")
    done = move.live("--master-user", name, "--master-password-file", str(secret))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 users imported, 23 unique-ids" in done.stdout
    # Or with the user named beside it, as Cyrus wants it.
    done = move.live(
        "--again", "--master-user", name, "--master-password-file", str(secret), "--master-by-authzid"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 users imported, 0 unique-ids" in done.stdout


def test_ids_that_no_client_may_be_told(moves: list[Move]) -> None:
    """Dovecot with ids that are file names of any length: in doubt, or these alone are other ones."""
    move = move_from(moves, DovecotOfNames, 60)
    before = move.listed(move.old.port)
    done = move.live()
    assert done.returncode == 1 and "unusable id" in done.stdout
    assert move.live("--replace-unusable").returncode == 0
    with Server(move.site) as new:
        after = move.listed(new.port)
    assert len(after) == len(before)
    for was, now in zip(before, after, strict=True):
        shown = was.partition(b" ")[2]
        assert was == now or len(shown) > 70 or not shown.isascii()
