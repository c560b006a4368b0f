"""
Random histories of one maildrop: two clients, and what delivery agents and other mail programs do meanwhile.

Beside it stands a model of RFC 1939 that is small and obvious: a session is a list of messages fixed at
login, with marks; only QUIT removes, and only what is marked. It is played in this process against the
session's own conversation (quick: CI), and against a real gpop over TCP (`./dev fuzz drop`).
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpop import signals
from gpop.maildrop import lock, opening
from gpop.maildrop.errors import MaildropInUse
from gpop.pop3.languages import Languages, Speech
from gpop.session.conversation import Conversation
from gpop.session.report import Report
from tests.maildrop.store import FOLDERS, delivery_time, expected_id
from tests.pop3 import reference
from tests.serving import PASSWORD, Dialogue, Server, Site

CLIENTS = ("ann", "bob")


# How a client is served


class Served(Protocol):
    """A maildrop with sessions on it. `login` returns the first answer; `ask` the octets of one answer."""

    maildir: Path

    def login(self, client: str) -> bytes: ...
    def ask(self, client: str, line: bytes, multiline: bool) -> bytes: ...
    def hang_up(self, client: str) -> None: ...
    def own(self, path: Path) -> None: ...
    def close(self) -> None: ...


class _Waits(Exception):
    """The conversation has answered all that was said."""


class _Stream:
    """What a conversation sends, kept; when it wants more it waits."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.octets_sent = self.batch_octets = 0

    def send(self, octets: bytes) -> None:
        self.sent += octets
        self.octets_sent += len(octets)

    def send_file(self, fd: int, offset: int, length: int) -> None:
        octets = os.pread(fd, length, offset)
        assert len(octets) == length
        self.send(octets)

    def flush(self) -> None:
        """All has gone."""

    def receive(self) -> bytes:
        raise _Waits


class _Session:
    """A session in this process."""

    def __init__(self, maildir: Path) -> None:
        self.dir_fd = os.open(maildir, os.O_RDONLY | os.O_DIRECTORY)
        self.opened = None
        try:
            lock.lock(self.dir_fd, 0)
            self.opened = opening.open_maildrop(self.dir_fd, opening.Options(boot_id=b"boot"))
        except BaseException:
            os.close(self.dir_fd)
            raise
        ours, self._front = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stream, self.report = _Stream(), Report(ours.detach(), False)
        self.conversation = Conversation(self.stream, self.report, self.opened, Speech(Languages({})), False)

    def ask(self, octets: bytes) -> bytes:
        self.stream.sent.clear()
        try:
            self.conversation.converse(octets)
        except _Waits:
            pass
        finally:
            signals.unblock_ending()
        return bytes(self.stream.sent)

    def close(self) -> None:
        self.opened.close()
        self.report.close()
        self._front.close()
        os.close(self.dir_fd)


class InThisProcess:
    """The session's conversation, without a front, a broker and a fork."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="gpop-fuzz-")
        self.maildir = Path(self._folder) / "Maildir"
        for folder in (*FOLDERS, "tmp"):
            (self.maildir / folder).mkdir(parents=True)
        self._sessions: dict[str, _Session] = {}

    def login(self, client: str) -> bytes:
        try:
            self._sessions[client] = _Session(self.maildir)
        except MaildropInUse:
            return b"-ERR [IN-USE]\r\n"
        return b"+OK\r\n"

    def ask(self, client: str, line: bytes, multiline: bool) -> bytes:
        answer = self._sessions[client].ask(line + b"\r\n")
        if line.upper() == b"QUIT":
            self.hang_up(client)
        return answer

    def hang_up(self, client: str) -> None:
        self._sessions.pop(client).close()

    def own(self, path: Path) -> None:
        """It is ours."""

    def close(self) -> None:
        for client in list(self._sessions):
            self.hang_up(client)
        shutil.rmtree(self._folder)


class OverTcp:
    """A real gpop, one for all histories; each has a Maildir of its own."""

    server: ClassVar[Server]

    def __init__(self) -> None:
        self._site = self.server.site
        self._site.empty()
        self.maildir = self._site.maildir()
        self._dialogues: dict[str, Dialogue] = {}

    def login(self, client: str) -> bytes:
        dialogue = self.server.connect()
        dialogue.ask("USER user0")
        answer = dialogue.ask(f"PASS {PASSWORD}")
        if answer.startswith(b"+OK"):
            self._dialogues[client] = dialogue
        else:
            dialogue.close()
        return answer + b"\r\n"

    def ask(self, client: str, line: bytes, multiline: bool) -> bytes:
        dialogue = self._dialogues[client]
        dialogue.send(line + b"\r\n")
        first = dialogue.line() + b"\r\n"
        if line.upper() == b"QUIT":
            assert dialogue.rest() == b""
            self._dialogues.pop(client).close()
        elif multiline and first.startswith(b"+OK"):
            return first + b"".join(each + b"\r\n" for each in dialogue.lines()) + b".\r\n"
        return first

    def hang_up(self, client: str) -> None:
        before = self.server.pids("session")
        self._dialogues.pop(client).close()
        deadline = time.monotonic() + 20
        # Only then is the lock free; there is at most one session here.
        while before and set(before) & set(self.server.pids("session")):
            assert time.monotonic() < deadline, "a session whose client has left goes on"
            time.sleep(0.001)

    def own(self, path: Path) -> None:
        self._site.own(path, "user0")

    def close(self) -> None:
        for client in list(self._dialogues):
            self.hang_up(client)
        assert self.server.faults() == []


# The model


@dataclass(eq=False)
class Message:
    """A message: its base name and content never change, whatever its file is called and wherever it lies."""

    base: bytes
    content: bytes
    is_there: bool = True

    @property
    def octets(self) -> int:
        return reference.octets_on_wire(self.content)

    @property
    def order(self) -> tuple[int, bytes]:
        return delivery_time(self.base), self.base


@dataclass
class ModelSession:
    """What RFC 1939 has of a session: messages with fixed numbers, and marks."""

    messages: list[Message]
    marked: set[int] = field(default_factory=set)

    def shown(self) -> list[tuple[int, Message]]:
        return [(n, each) for n, each in enumerate(self.messages, 1) if n not in self.marked]

    def message(self, number: int) -> Message | None:
        """The message with a number that can be used now."""
        return dict(self.shown()).get(number)


LINES = (b"", b"Subject: x", b".", b"..", b".hidden", b"text", b"a\rb", b"\xe4\xf6", b"x" * 1000)
CONTENTS = st.builds(
    lambda lines, end, is_ended: end.join(lines) + (end if is_ended else b""),
    st.lists(st.sampled_from(LINES), max_size=6),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
NUMBERS = st.integers(0, 9)
FLAGS = st.sampled_from([b":2,", b":2,S", b":2,FS"])
MARKS = st.lists(st.integers(1, 6), max_size=3)
ODD_LINES = (
    b"",
    b"XYZZY",
    b"RETR",
    b"DELE x",
    b"LIST 1 2",
    b"TOP 1",
    b"USER tim",
    b"UIDL -1",
    b"x" * 300,
    b"\0",
)
client = st.sampled_from(CLIENTS)


class Drop(RuleBasedStateMachine):
    """The machine: `served` and the model beside each other."""

    make_served: ClassVar[type[Served]] = InThisProcess
    steps: ClassVar[int] = 0

    @initialize(contents=st.lists(CONTENTS, max_size=6))
    def begin(self, contents: list[bytes]) -> None:
        self.served = self.make_served()
        self.drop: list[Message] = []
        self.sessions: dict[str, ModelSession] = {}
        self.delivered = 0
        for number, content in enumerate(contents):
            self.deliver(content, number % 4, FOLDERS[number % 2], number)

    # Others

    @rule(content=CONTENTS, when=st.integers(0, 3), folder=st.sampled_from(FOLDERS), odd=st.integers(0, 7))
    def deliver(self, content: bytes, when: int, folder: str, odd: int) -> None:
        """
        By a delivery agent; some earlier than what is there, some with sizes in or octets beyond a
        unique-id's.
        """
        self.delivered += 1
        base = b"%d.M%dP1.host" % (1700000000 + 100 * when + self.delivered, self.delivered)
        if odd == 0:
            base += b",S=%d,W=%d" % (len(content), reference.octets_on_wire(content))
        elif odd == 1:
            base += b" \xff" + b"long" * 20
        draft = self.served.maildir / "tmp" / "draft"
        draft.write_bytes(content)
        self.served.own(draft)
        os.rename(draft, self._path(folder, base + (b":2,S" if folder == "cur" else b"")))
        self.drop.append(Message(base, content))

    @precondition(lambda self: self.drop)
    @rule(which=NUMBERS, flags=FLAGS)
    def rename(self, which: int, flags: bytes) -> None:
        """By an IMAP server: into cur/, and with other flags."""
        message = self.drop[which % len(self.drop)]
        os.rename(self._file(message), self._path("cur", message.base + flags))

    @precondition(lambda self: self.drop)
    @rule(which=NUMBERS)
    def remove(self, which: int) -> None:
        """By an IMAP server."""
        message = self.drop.pop(which % len(self.drop))
        os.unlink(self._file(message))
        message.is_there = False

    @rule(garbage=st.sampled_from([None, b"", b"gpopstat", b"x" * 500]))
    def lose_the_cache(self, garbage: bytes | None) -> None:
        """By somebody who tidies up."""
        cache = self.served.maildir / ".statcache"
        cache.unlink(missing_ok=True)
        if garbage is not None:
            cache.write_bytes(garbage)
            self.served.own(cache)

    # Clients

    @rule(client=client)
    def login(self, client: str) -> None:
        """One session at a time (RFC 1939 §8)."""
        if client in self.sessions:
            return
        answer = self.served.login(client)
        if self.sessions:
            assert answer.startswith(b"-ERR [IN-USE]"), answer
        else:
            assert answer.startswith(b"+OK"), answer
            self.sessions[client] = ModelSession(sorted(self.drop, key=lambda each: each.order))

    def _ask(self, line: bytes, multiline: bool = False) -> bytes:
        assert self._session
        ((client, _),) = self.sessions.items()
        answer = self.served.ask(client, line, multiline)
        type(self).steps += 1
        return answer

    @property
    def _session(self) -> ModelSession:
        """The session there is; whoever wants to say something logs in first."""
        if not self.sessions:
            self.login(CLIENTS[0])
        ((_, session),) = self.sessions.items()
        return session

    @rule()
    def look(self) -> None:
        """STAT, LIST and UIDL: what was there at login, less what is marked."""
        shown = self._session.shown()
        total = sum(each.octets for _, each in shown)
        assert self._ask(b"STAT") == b"+OK %d %d\r\n" % (len(shown), total)
        self._check_listing(b"LIST", [b"%d %d" % (number, each.octets) for number, each in shown])
        self._check_listing(b"UIDL", [b"%d %b" % (number, expected_id(each.base)) for number, each in shown])

    def _check_listing(self, command: bytes, lines: list[bytes]) -> None:
        status, end, rest = self._ask(command, multiline=True).partition(b"\r\n")
        assert status.startswith(b"+OK") and end
        assert rest == b"".join(line + b"\r\n" for line in lines) + b".\r\n"

    @rule(number=NUMBERS)
    def look_at_one(self, number: int) -> None:
        """LIST and UIDL of one message, whether its file is still there or not."""
        message = self._session.message(number)
        for command, value in (
            (b"LIST", b"%d" % message.octets if message else b""),
            (b"UIDL", expected_id(message.base) if message else b""),
        ):
            answer = self._ask(b"%b %d" % (command, number))
            assert answer == b"+OK %d %b\r\n" % (number, value) if message else answer.startswith(b"-ERR ")

    @rule(number=NUMBERS, flags=st.none() | FLAGS)
    def retrieve(self, number: int, flags: bytes | None) -> None:
        """RETR: all of it, wherever its file is by now; -ERR if it is gone."""
        message = self._session.message(number)
        if flags and message and message.is_there:
            os.rename(self._file(message), self._path("cur", message.base + flags))
        answer = self._ask(b"RETR %d" % number, multiline=True)
        if message and message.is_there:
            first = b"+OK %d octets\r\n" % message.octets
            assert answer == first + reference.encode(message.content)
        else:
            assert answer.startswith(b"-ERR ") and answer.count(b"\n") == 1

    @rule(number=NUMBERS, count=st.integers(0, 5))
    def top(self, number: int, count: int) -> None:
        """TOP: header and so many lines."""
        message = self._session.message(number)
        status, _, rest = self._ask(b"TOP %d %d" % (number, count), multiline=True).partition(b"\r\n")
        if message and message.is_there:
            assert status.startswith(b"+OK") and rest == reference.top(message.content, count)
        else:
            assert status.startswith(b"-ERR ") and not rest

    @rule(number=NUMBERS)
    def mark(self, number: int) -> None:
        """DELE."""
        message = self._session.message(number)
        answer = self._ask(b"DELE %d" % number)
        assert answer.startswith(b"+OK" if message else b"-ERR ")
        if message:
            self._session.marked.add(number)

    @rule(numbers=MARKS)
    def reset(self, numbers: list[int]) -> None:
        """RSET takes back every mark."""
        for number in numbers:
            self.mark(number)
        assert self._ask(b"RSET").startswith(b"+OK")
        self._session.marked.clear()

    @rule(line=st.sampled_from(ODD_LINES))
    def say_something_odd(self, line: bytes) -> None:
        """One -ERR each, and nothing changes."""
        answer = self._ask(line)
        assert answer.startswith(b"-ERR ") and answer.count(b"\n") == 1

    @rule(numbers=MARKS)
    def quit(self, numbers: list[int]) -> None:
        """UPDATE: what is marked goes, and nothing else; it is refused only if something had gone already."""
        for number in numbers:
            self.mark(number)
        session = self._session
        marked = [session.messages[number - 1] for number in sorted(session.marked)]
        answer = self._ask(b"QUIT")
        self.sessions.clear()
        assert answer.startswith(b"+OK") or not all(each.is_there for each in marked), answer
        for message in marked:
            if message.is_there:
                self.drop.remove(message)
                message.is_there = False

    @rule(numbers=MARKS)
    def hang_up(self, numbers: list[int]) -> None:
        """A session that ends without QUIT removes nothing (RFC 1939 §3)."""
        for number in numbers:
            self.mark(number)
        assert self._session
        ((client, _),) = self.sessions.items()
        self.served.hang_up(client)
        self.sessions.clear()

    # What is on the disk

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Every message there is once, with its content, and no other."""
        if not hasattr(self, "drop"):
            return
        found = []
        for folder in FOLDERS:
            for entry in os.scandir(os.fsencode(self.served.maildir / folder)):
                with open(entry.path, "rb") as file:
                    found.append((entry.name.split(b":")[0], file.read()))
        assert sorted(found) == sorted((each.base, each.content) for each in self.drop)

    def teardown(self) -> None:
        if hasattr(self, "served"):
            self.served.close()

    def _path(self, folder: str, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.served.maildir / folder), name)

    def _file(self, message: Message) -> bytes:
        """Where it is by now."""
        for folder in FOLDERS:
            for name in os.listdir(os.fsencode(self.served.maildir / folder)):
                if name.split(b":")[0] == message.base:
                    return self._path(folder, name)
        raise AssertionError(f"{message.base!r} is lost")


class RealDrop(Drop):
    """The same histories over TCP."""

    make_served = OverTcp


def options(histories: int, steps: int, database: Path | None = None) -> settings:
    """How many histories, and how long each may be."""
    return settings(
        max_examples=histories,
        stateful_step_count=steps,
        deadline=None,
        database=DirectoryBasedExampleDatabase(database) if database else None,
        phases=set(Phase) - {Phase.explain},
        suppress_health_check=list(HealthCheck),
    )


def run_for(seconds: float, database: Path) -> int:
    """Play histories for so long, half of the time over TCP; returns how many commands were answered."""
    Drop.steps = RealDrop.steps = 0
    half = time.monotonic() + seconds / 2
    while time.monotonic() < half:
        run_state_machine_as_test(Drop, settings=options(100, 60, database))
    site = Site(accounts=1, session__lock_wait_s=0.0)
    try:
        with Server(site) as OverTcp.server:
            while time.monotonic() < half + seconds / 2:
                run_state_machine_as_test(RealDrop, settings=options(20, 60, database))
    finally:
        site.remove()
    return Drop.steps + RealDrop.steps
