"""The load test's client: TLS in both ways, what it takes for an answer, what it tells of a failure."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from loadtest import client as clients
from loadtest import site as sites
from loadtest.client import Answer, Client, CutOff, Failed, Failure, Server
from loadtest.mail import MailMaker, byte_stuffed, on_the_wire
from tests import serving
from tests.pop3 import reference


class Reported:
    """Takes what a client reports."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.failures: list[Failure] = []

    def __call__(self, _kind: str, name: str, ms: float, octets: int, failure: Failure | None = None) -> None:
        assert ms >= 0
        self.requests.append((name, octets))
        if failure:
            self.failures.append(failure)


@contextmanager
def scripted(*answers: bytes, is_killed: bool = False) -> Iterator[tuple[Client, Reported]]:
    """A client connected to a server that greets, answers each line with the next of these, then closes."""

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as commands:
            connection.sendall(b"+OK hello\r\n")
            for answer in answers:
                commands.readline()
                connection.sendall(answer)
            # Closed with a command in it that nobody has read, it would answer with a reset.
            with suppress(OSError):  # the client leaves with one, too
                connection.shutdown(socket.SHUT_WR)
                while commands.readline():
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        reported = Reported()
        client = Client(
            Server.of(f"pop3://127.0.0.1:{listening.getsockname()[1]}", None, is_killed), reported
        )
        try:
            client.connect()
            yield client, reported
        finally:
            client.close()
            server.join(20)


@pytest.mark.parametrize("scheme", ["pop3", "pop3s", "pop3+stls"])
def test_tls_begins_as_the_host_says(scheme: str) -> None:
    """From the start, by STLS, or not at all; a handshake of STLS is a request of its own."""
    folder = Path(tempfile.mkdtemp(prefix="gpop-test-loadtest-"))
    folder.chmod(0o755)
    try:
        site = sites.make(folder / "site", 3, 0, 0)
        account = site.accounts()[2]
        with serving.Server(site) as server:
            port = server.tls_port if scheme == "pop3s" else server.port
            reported = Reported()
            client = Client(Server.of(f"{scheme}://127.0.0.1:{port}", str(site.certificate)), reported)
            client.connect()
            client.ask("USER", f"USER {account.name}")
            client.ask("PASS", f"PASS {account.password}")
            uidl = client.ask("UIDL", "UIDL", multi_line=True)
            client.ask("QUIT", "QUIT")
            client.close()
            closed = server.wait_for_event("session_closed")
        assert len(uidl.lines()) == closed["messages"] == sites.MESSAGES_AT_FIRST[2]
        assert bool(closed["tls"]) == (scheme != "pop3")
        names = [name for name, _ in reported.requests]
        assert ("TLS handshake" in names) == (scheme == "pop3+stls")
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1", "pop3://", "pop3s:///"])
def test_a_host_of_another_kind_is_refused(host: str) -> None:
    """In words, before anything is started."""
    with pytest.raises(ValueError, match="pop3://HOST"):
        Server.of(host, None)


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"one\r\n..two\r\n...\r\n.\r\n", b"one\r\n.two\r\n..\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"x" * 200_000 + b"\r\n.\r\n", b"x" * 200_000 + b"\r\n"),
    ],
)
def test_a_body_ends_with_its_terminator(wire: bytes, body: bytes) -> None:
    """Byte-stuffing is undone; the octets that are reported are those on the wire."""
    with scripted(b"+OK\r\n" + wire) as (client, reported):
        answer = client.ask("RETR", "RETR 1", multi_line=True)
        assert answer.body == body
        assert reported.requests[-1] == ("RETR", len(wire) + 5)


def test_a_failure_has_the_dialogue_without_the_password() -> None:
    """What led to it, on one line; the answer's octets cannot write on somebody's terminal."""
    with scripted(b"+OK\r\n", b"-ERR [AUTH] no\x1b[31m\r\n") as (client, reported):
        client.ask("USER", "USER anna")
        with pytest.raises(Failed):
            client.ask("PASS", "PASS open-sesame")
    (failure,) = reported.failures
    assert "C: USER anna | S: +OK | C: PASS (hidden) | S: -ERR [AUTH] no" in repr(failure)
    assert "open-sesame" not in repr(failure)
    assert repr(failure).isprintable()


def test_a_long_dialogue_is_cut() -> None:
    """The end of it is told, and no line without end."""
    with scripted(*[b"+OK " + b"x" * 500 + b"\r\n"] * 100) as (client, reported):
        with pytest.raises(Failed):
            for _ in range(200):
                client.ask("NOOP", "NOOP")
        assert client.octets > 50_000
    assert len(repr(reported.failures[0])) < clients.DIALOGUE_LINES * (clients.DIALOGUE_COLUMNS + 30)
    assert "the server has closed the connection" in reported.failures[0].what


@pytest.mark.parametrize("answer", [b"x" * 100_000, b"+OK\r\n" + b"x\r\n" * 100_000])
def test_an_answer_without_end_is_a_failure(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken server does not fill the memory of its tester."""
    monkeypatch.setattr(clients, "MOST_ANSWER_OCTETS", 100_000)
    with scripted(answer) as (client, reported), pytest.raises(Failed):
        client.ask("LIST", "LIST", multi_line=True)
    assert len(reported.failures) == 1


def test_a_wrong_answer_fails_its_request() -> None:
    """Whoever asked says what is wrong with it."""

    def never(answer: Answer) -> None:
        raise clients.Wrong(f"{answer.status!r} is wrong")

    with scripted(b"+OK 1 2\r\n") as (client, reported), pytest.raises(Failed, match="is wrong"):
        client.ask("STAT", "STAT", never)
    assert [name for name, _ in reported.requests] == ["connect", "STAT"]


def test_mail_goes_over_the_wire_as_it_should() -> None:
    """The awkward kinds too: what RETR is expected to send is what the reference sends; no two are alike."""
    maker = MailMaker()
    mails = [maker.mail("anna") for _ in range(400)] + [maker.large("anna")]
    for mail in mails:
        assert byte_stuffed(on_the_wire(mail.file)) + b".\r\n" == reference.encode(mail.file)
        assert mail.octets == reference.octets_on_wire(mail.file)
        assert len(mail.base) <= 70
    assert len({mail.digest for mail in mails}) == len({mail.base for mail in mails}) == len(mails)
    assert any(b"\n." in mail.file for mail in mails)
    assert any(not mail.file.endswith(b"\n") for mail in mails)


@pytest.mark.parametrize(
    ("answers", "is_cut_off"),
    [
        ([], True),
        ([b"+OK half of a li"], True),
        ([b"-ERR [SYS/TEMP] try again\r\n"], True),
        ([b"-ERR no such message\r\n"], False),
        ([b"+OK\r\n"], False),
    ],
)
def test_what_broke_off_is_no_failure_where_processes_are_killed(
    answers: list[bytes], is_cut_off: bool
) -> None:
    """And an answer that is wrong is one there as well. Where nothing is killed all of them are failures."""

    def never(_answer: Answer) -> None:
        raise clients.Wrong("not what it should be")

    for is_killed in (True, False):
        with scripted(*answers, is_killed=is_killed) as (client, reported):
            with pytest.raises(Failed) as raised:
                client.ask("STAT", "STAT", never)
            excused = is_killed and is_cut_off
            assert isinstance(raised.value, CutOff) == excused
            assert len(reported.failures) == int(not excused)
