"""
A maildrop of every kind of message, a client that believes nothing, and what has to hold after any fault.

Something fails while the client is served (`Attempt`); then `after` looks at the files and at what the next
client is told, and `Lasting` at the processes.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpop.maildrop import importfile
from gpop.maildrop.imported import ImportedId
from tests.pop3 import reference
from tests.serving import PASSWORD, Dialogue, Server, Site, wait_until

FIRST_S = 1700000000
PATIENCE_S = 60
# What a client gets of a connection that has ended in no order, with and without TLS.
BROKEN = (ConnectionError, ssl.SSLError)
# Codes of RFC 3206 and RFC 2449: a client comes again, and no mail program asks for a password.
COME_AGAIN = (b"-ERR [SYS/TEMP]", b"-ERR [IN-USE]")
# Slow and obvious: once for each message is enough.
encode, octets_on_wire, top = (
    functools.cache(each) for each in (reference.encode, reference.octets_on_wire, reference.top)
)


class Cut(Exception):
    """The connection ended, or the login was refused for now."""


def octets_of(number: int) -> bytes:
    """The content of message `number`: all line ends, lines that begin with dots, and sizes up to large."""
    bodies = (
        b"plain\n",
        b".\n..stuffed\n\n",
        b"with CRLF\r\n.dot\r\n",
        b"no end",
        b"a line of a large message\n" * 4000,
        b"a line of a large message\r\n" * 4000,
        b"\n",
        b"\xc3\xa4 \xff\r\n",
    )
    return b"Subject: %d\n\n" % number + bodies[number % len(bodies)]


class Drop:
    """
    A maildrop in one of `STATES`, with eight messages (and one more): truth, and what is on the disk.

    Attributes:
        truth: unique-id and content of each message, in the order in which a client must see them.
    """

    STATES = ("absent", "unchanged", "changed")

    def __init__(
        self, server: Server, state: str, name: str = "user0", context: ssl.SSLContext | None = None
    ) -> None:
        """`context`: its clients come by TLS."""
        self.server, self.name, self.context = server, name, context
        self.path = server.site.maildir(name)
        self._make(state)

    def _make(self, state: str) -> None:
        site = self.server.site
        shutil.rmtree(self.path, ignore_errors=True)
        site.make_home(self.name)
        self.truth: list[tuple[bytes, bytes]] = []
        bases = [f"{FIRST_S + number}.M{number}P1.host" for number in range(8)]
        ids = {bases[5].encode(): ImportedId(b"old-5", 1), bases[2].encode(): ImportedId(b"old-2", 2)}
        for number, base in enumerate(bases):
            folder, flags = ("cur", ":2,S") if number % 3 == 0 else ("new", "")
            site.deliver(octets_of(number), self.name, base + flags, folder)
        (self.path / "maildirsize").write_bytes(b"10000000S\n")
        site.own(self.path / "maildirsize", self.name)
        dir_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        importfile.add(dir_fd, ids)
        os.close(dir_fd)
        site.own(self.path / importfile.IMPORT_NAME, self.name)
        order = [5, 2, 0, 1, 3, 4, 6, 7]  # as in the server before, then as they were delivered
        for number in order:
            base = bases[number].encode()
            self.truth.append((ids[base].unique_id if base in ids else base, octets_of(number)))
        if state != "absent":
            settle(self.path)
            client = next_login(self)
            client.look(self.truth)
            client.quit()
        if state == "changed":
            base = f"{FIRST_S + 8}.M8P1.host"
            site.deliver(octets_of(8), self.name, base)
            self.truth.append((base.encode(), octets_of(8)))
            one = self.path / "new" / bases[1]
            one.rename(self.path / "cur" / (bases[1] + ":2,F"))
        settle(self.path)

    def connect(self) -> socket.socket:
        """Connect as a client of it does. Raises OSError."""
        port = self.server.tls_port if self.context else self.server.port
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        return self.context.wrap_socket(plain, server_hostname="localhost") if self.context else plain

    def contents(self) -> list[bytes]:
        """Content of each message on the disk, once however many names its file has, sorted."""
        found = {}
        for folder in ("new", "cur"):
            for entry in os.scandir(self.path / folder):
                found[entry.inode()] = Path(entry.path).read_bytes()
        return sorted(found.values())


def settle(maildir: Path) -> None:
    """Wait for the file system's clock to step past everything in a Maildir."""
    there = [maildir / folder for folder in ("new", "cur")]
    there += [maildir / ".statcache"] if (maildir / ".statcache").exists() else []
    last = max(path.stat().st_ctime_ns for path in there)

    def stepped() -> bool:
        (maildir / "tmp" / "clock").write_bytes(b"")
        return (maildir / "tmp" / "clock").stat().st_ctime_ns > last

    wait_until(stepped, PATIENCE_S)


class Client:
    """
    A client that knows what it has to be told, and takes nothing else.

    Attributes:
        sent_quit: whether UPDATE may have begun.
        marked: indexes into the truth of the messages it has marked.
    """

    def __init__(self, drop: Drop) -> None:
        """Log in. Raises Cut: not now."""
        self.sent_quit = False
        self.marked: list[int] = []
        try:
            self.dialogue = Dialogue(drop.connect())
        except BROKEN:
            raise Cut("refused to connect") from None
        try:
            self._ask(None)
            self._ask(f"USER {drop.name}")
            self._ask(f"PASS {PASSWORD}")
        except Cut:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self.dialogue.close()

    def _line(self) -> bytes:
        try:
            line = self.dialogue.file.readline()
        except BROKEN:
            raise Cut("reset") from None
        if not line.endswith(b"\r\n"):
            raise Cut(f"ended with {line!r}")
        return line

    def _ask(self, command: str | None) -> bytes:
        """Send a command, and return the first line of the answer. Raises Cut: there is none, or not now."""
        if command is not None:
            try:
                self.dialogue.send(command.encode() + b"\r\n")
            except BROKEN:
                raise Cut("reset") from None
        answer = self._line()
        if answer.startswith(COME_AGAIN):
            raise Cut(answer.decode())
        return answer

    def look(self, truth: list[tuple[bytes, bytes]], wrong_sizes: int = 0) -> None:
        """STAT, LIST and UIDL, compared with the truth; so many sizes may be guesses."""
        stat = self._ask("STAT").split()
        assert stat[:2] == [b"+OK", b"%d" % len(truth)], stat
        sizes = self._listing("LIST")
        ids = self._listing("UIDL")
        assert ids == [b"%d %b" % (i + 1, unique_id) for i, (unique_id, _) in enumerate(truth)]
        wanted = [b"%d %d" % (i + 1, octets_on_wire(octets)) for i, (_, octets) in enumerate(truth)]
        assert len(sizes) == len(wanted)
        assert sum(a != b for a, b in zip(sizes, wanted, strict=True)) <= wrong_sizes, (sizes, wanted)

    def _listing(self, command: str) -> list[bytes]:
        answer = self._ask(command)
        assert answer.startswith(b"+OK"), answer
        lines = []
        while (line := self._line()) != b".\r\n":
            lines.append(line.removesuffix(b"\r\n"))
        return lines

    def retrieve(self, index: int, octets: bytes, must: bool = True) -> None:
        """RETR: the whole message; where it may fail, also -ERR, or a part and the end of the connection."""
        self._message(f"RETR {index + 1}", encode(octets), must)

    def top(self, index: int, octets: bytes, lines: int, must: bool = True) -> None:
        """TOP, as `retrieve`."""
        self._message(f"TOP {index + 1} {lines}", top(octets, lines), must)

    def _message(self, command: str, wanted: bytes, must: bool) -> None:
        answer = self._ask(command)
        if answer.startswith(b"-ERR") and not must:
            return
        assert answer.startswith(b"+OK"), answer
        try:
            received = self.dialogue.file.read(len(wanted))
        except BROKEN:
            raise Cut("reset") from None
        assert received == wanted[: len(received)], f"wrong octets in {command}"
        if len(received) < len(wanted):
            raise Cut(f"within {command}")

    def mark(self, index: int) -> None:
        """DELE."""
        self.marked.append(index)  # a mark that was not answered may have been made
        assert self._ask(f"DELE {index + 1}").startswith(b"+OK")

    def quit(self) -> bytes:
        """QUIT; returns the answer."""
        self.sent_quit = True
        answer = self._ask("QUIT")
        assert answer.startswith((b"+OK", b"-ERR"))
        self.close()
        return answer


class Attempt:
    """
    One client, from login to QUIT, while something fails.

    Attributes:
        cut: how it was cut off; empty if it was served to its end.
        removed: whether the messages that were marked must be gone (True), be there, or may be both (None).
    """

    def __init__(self, drop: Drop, wrong_sizes: int = 1, logged_in: Callable[[], object] = int) -> None:
        """`logged_in` is called when there is a session."""
        self.drop, self.cut = drop, ""
        self.removed: bool | None = False
        self.marked: list[int] = []
        client = None
        try:
            client = Client(drop)
            logged_in()
            self._converse(client, drop.truth, wrong_sizes)
        except Cut as cut:
            self.cut = str(cut)
        if client:
            self.marked = client.marked
            if client.sent_quit and self.removed is False:
                self.removed = None
            client.close()

    def _converse(self, client: Client, truth: list[tuple[bytes, bytes]], wrong_sizes: int) -> None:
        client.look(truth, wrong_sizes)
        for index in range(len(truth)):
            client.retrieve(index, truth[index][1], must=False)
        client.top(4, truth[4][1], 2, must=False)
        client.mark(0)
        client.mark(3)
        client.mark(6)
        answer = client.quit()
        self.removed = True if answer.startswith(b"+OK") else None


def after(attempt: Attempt) -> None:
    """Nothing lost, doubled or changed, as far as the client can know; and the next one is served."""
    drop, server = attempt.drop, attempt.drop.server
    if attempt.cut:
        wait_until(lambda: not any(map(is_serving, server.pids("session"))), PATIENCE_S, "the session's end")
    marked = [drop.truth[index][1] for index in attempt.marked]
    left = drop.contents()
    kept = [octets for index, (_, octets) in enumerate(drop.truth) if index not in attempt.marked]
    gone = sorted(kept + marked)
    for octets in left:
        gone.remove(octets)  # neither doubled nor changed
    assert set(gone) <= set(marked), "a message is lost"
    if attempt.removed is not None:
        assert gone == (sorted(marked) if attempt.removed else [])
    truth = [one for one in drop.truth if one[1] not in gone]
    client = next_login(drop)
    client.look(truth)
    for index, (_, octets) in enumerate(truth):
        client.retrieve(index, octets)
    assert client.quit().startswith(b"+OK")


def next_login(drop: Drop) -> Client:
    """Log in, as soon as a front and auth are there (one of them may have been replaced)."""
    found: list[Client] = []

    def served() -> bool:
        try:
            found.append(Client(drop))
        except Cut:
            return False
        return True

    wait_until(served, PATIENCE_S, "a login that is served")
    return found[0]


def is_serving(pid: int) -> bool:
    """Whether a session's process serves a login: one that is reused and free has the broker alone."""
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return sum(link.startswith("socket:") for link in links) > 1


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def free_descriptor(pid: int) -> int:
    """The number that the next descriptor of a process will have."""
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    return min(set(range(len(taken) + 1)) - taken)


@contextmanager
def no_descriptor_free(pid: int) -> Iterator[int]:
    """A process can have no descriptor more than it has; gives the limit that it has meanwhile."""
    limit = free_descriptor(pid)
    before = _limit_descriptors(pid, str(limit))
    try:
        yield limit
    finally:
        _limit_descriptors(pid, before)


def _limit_descriptors(pid: int, soft: str) -> str:
    """
    Give a process a soft limit; returns the one that it had.

    As the user that it is: root may be without the right to do that to others (CAP_SYS_RESOURCE).
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return soft  # it was replaced
    uid, gid = (int(status.partition(f"\n{name}:")[2].split()[0]) for name in ("Uid", "Gid"))
    tool = ["prlimit", f"--pid={pid}"]
    who: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
    show = [*tool, "--nofile", "--output=SOFT", "--noheadings"]
    had = subprocess.run(show, check=False, capture_output=True, text=True, **who).stdout.strip()
    subprocess.run([*tool, f"--nofile={soft}:"], check=False, **who)
    return had or soft


class Lasting:
    """The long-lived processes of a server: they have to be there, with no more descriptors than before."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.most = dict.fromkeys(("broker", "auth", "front"), 0)
        for kind, count in self._open():
            self.most[kind] = max(self.most[kind], count)

    def _pids(self) -> list[tuple[str, int]]:
        found = [("broker", self.server.process.pid)]
        found += [(kind, pid) for kind in ("auth", "front") for pid in self.server.pids(kind)]
        return found

    def check(self) -> None:
        """The broker is the same; there are one auth and one front; nothing is left open."""
        server = self.server
        assert server.process.poll() is None, server.output_path.read_text()[-4000:]
        wait_until(lambda: len(server.pids("front")) == len(server.pids("auth")) == 1, PATIENCE_S)
        wait_until(self._nothing_left_open, PATIENCE_S, lambda: f"descriptors: {self._open()} of {self.most}")

    def _open(self) -> list[tuple[str, int]]:
        # The broker has one for each process that is reused; of other sessions it has none.
        is_reused = "session__reuse_below" in self.server.site.settings
        spared = {"broker": len(self.server.pids("session")) if is_reused else 0}
        return [(kind, descriptors(pid) - spared.get(kind, 0)) for kind, pid in self._pids()]

    def _nothing_left_open(self) -> bool:
        try:
            return all(count <= self.most[kind] for kind, count in self._open())
        except FileNotFoundError:
            return False  # one is being replaced


def end(pid: int) -> None:
    """Kill a process of ours, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def unmount(where: Path) -> None:
    """Unmount, as soon as nobody is in there any more."""
    command = ["umount", where]
    wait_until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, 60)


@contextmanager
def mounted(site: Site, *arguments: str | Path, again: bool = False) -> Iterator[Path]:
    """A file system of its own at the home of the account, empty, or as it is if it is mounted `again`."""
    where = site.home("user0")
    shutil.rmtree(where)
    where.mkdir()
    done = subprocess.run(["mount", *arguments, where], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system can't be mounted here: {done.stderr.strip()}")
    if not again:
        site.make_home("user0")
    try:
        yield where
    finally:
        unmount(where)
