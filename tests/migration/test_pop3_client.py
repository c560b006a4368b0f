"""A client for servers that nobody vouches for: what they send takes little time and little memory."""

from __future__ import annotations

import itertools
import resource
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpop.migration import servers
from gpop.migration.fingerprint import Fingerprint
from gpop.migration.pop3_client import (
    Client,
    ConversationFailed,
    NotPop3,
    RefusedByServer,
    Unreachable,
)
from gpop.migration.servers import LoginForm, Master, NotUsable, TlsChoice
from tests.migration.hostile import Answer, Script, drop

MESSAGES = [b"Subject: one\r\n\r\nbody\r\n.dot\r\n", b"Subject: two\r\n\r\n" + b"x" * 100_000 + b"\r\n"]


def fingerprint(message: bytes) -> Fingerprint:
    made = Fingerprint()
    for line in message.split(b"\r\n"):
        made.feed(line + b"\r\n")
    return made


def learn(client: Client) -> tuple[list[int], list[bytes], list[bytes]]:
    count, _ = client.drop_listing()
    octets = client.scan_listings(count)
    return octets, client.unique_ids(count), client.headers(octets)


def but(answer: Answer, word: bytes, said: bytes | Iterator[bytes]) -> Answer:
    """Answer as `answer` does, but to one command."""
    return lambda line: said if line.split(b" ")[0] == word else answer(line)


def test_what_a_decent_server_says() -> None:
    """Sizes, ids, headers and contents, of lines of any length; and nothing is marked, read or removed."""
    with Script(drop(*MESSAGES)) as server:
        client = server.client()
        client.login(b"", b"anna", b"secret")
        octets, ids, headers = learn(client)
        contents = [client.content(number, octets[number - 1]) for number in (1, 2)]
        client.quit()
    assert octets == [len(message) for message in MESSAGES] and ids == [b"id1", b"id2"]
    assert headers == [fingerprint(message).header() for message in MESSAGES]
    assert contents[0] != contents[1]
    assert not {line.split()[0] for line in server.asked} & {b"RETR", b"DELE", b"RSET", b"NOOP"}
    assert server.asked[-1] == b"QUIT"


def test_without_top() -> None:
    """A server without TOP is asked by RETR, and then left without QUIT: some remove what was retrieved."""
    answer = but(but(drop(*MESSAGES), b"TOP", b"-ERR what?\r\n"), b"CAPA", b"-ERR what?\r\n")
    with Script(answer) as server:
        client = server.client()
        assert learn(client)[2] == [fingerprint(message).header() for message in MESSAGES]
        client.quit()
        assert b"QUIT" not in server.asked


def endless(first: bytes, more: bytes) -> Iterator[bytes]:
    yield first
    yield from itertools.repeat(more * (1 + 65536 // len(more)))


@pytest.mark.parametrize(
    ("word", "said", "words"),
    [
        (b"UIDL", endless(b"+OK\r\n", b"1 x\r\n"), "listed"),
        (b"UIDL", endless(b"+OK\r\n1 ", b"x"), "a line of more than"),
        (b"LIST", endless(b"+OK\r\n", b"7"), "a line of more than"),
        (b"STAT", endless(b"+OK", b" "), "a line of more than"),
        (b"CAPA", endless(b"+OK\r\n", b"X\r\n"), "more than 200 lines"),
        (b"TOP", endless(b"+OK\r\n", b"X: y\r\n"), "far more octets"),
        (b"TOP", endless(b"+OK\r\n", b"y"), "far more octets"),
        (b"TOP", endless(b"+OK\r\n", b"\r"), "far more octets"),
        (b"STAT", b"+OK 1000000000 1\r\n", "of at most 1000000"),
        (b"STAT", b"+OK 2\r\n", "no drop listing"),
        (b"STAT", b"+OK 99999999999999999999 1\r\n", "no drop listing"),
        (b"STAT", b"\x1b[2J\r\n", "neither +OK nor -ERR: \\x1b[2J"),
        (b"LIST", b"+OK\r\n1 5\r\n1 5\r\n.\r\n", "in place of message 2"),
        (b"LIST", b"+OK\r\n1 5\r\n.\r\n", "1 messages listed, of which STAT says that there are 2"),
        (b"LIST", b"+OK\r\n1 five\r\n2 5\r\n.\r\n", "no scan listing"),
        (b"UIDL", b"+OK\r\n1\r\n2 x\r\n.\r\n", "in place of message 1"),
        (b"UIDL", b"-ERR [SYS/TEMP] later\r\n", "UIDL was refused: -ERR [SYS/TEMP] later"),
        (b"TOP", b"", "silent"),
    ],
)
def test_what_a_hostile_server_says(word: bytes, said: bytes | Iterator[bytes], words: str) -> None:
    """It is refused in words that say what was wrong, soon, and without memory for what it sends."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Script(but(drop(*MESSAGES), word, said)) as server, pytest.raises(ConversationFailed) as caught:
        learn(server.client(silence_s=1))
    assert words in str(caught.value) and str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


def test_a_server_that_drips() -> None:
    """An octet now and then is no silence, but there is an end to it."""

    def dripping() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b"+"

    started = time.monotonic()
    with Script(but(drop(), b"STAT", dripping())) as server, pytest.raises(Unreachable, match="altogether"):
        learn(server.client(silence_s=1, altogether_s=1.5))
    assert time.monotonic() - started < 15


def test_a_server_that_hangs_up() -> None:
    """The connection ends, or there is none: that may go otherwise another time."""

    def hang_up(_line: bytes) -> bytes:
        raise ValueError

    with Script(hang_up) as server, pytest.raises(Unreachable, match="hung up") as caught:
        server.client()
    assert caught.value.temporary
    server = Script(drop())
    server.__exit__()
    with pytest.raises(Unreachable, match="port"):
        server.client()


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_octets_for_an_answer(octets: bytes) -> None:
    """Whatever is said to a login ends in one kind of error, or in a login."""
    with Script(but(but(drop(), b"PASS", octets), b"USER", b"+OK\r\n")) as server:
        client = server.client(silence_s=0.05)
        try:
            client.login(b"", b"anna", b"secret")
        except ConversationFailed as error:
            assert "secret" not in str(error)
        client.close()


def test_login_forms() -> None:
    """By the user's password, by a master user's in two forms, and never with a line end in it."""
    plain = LoginForm("{user}@example.org")
    assert plain.login(b"anna", b"pw") == (b"", b"anna@example.org", b"pw")
    master = LoginForm("{user}*{master}", Master("root", b"pw"))
    assert master.login(b"anna", b"") == (b"", b"anna*root", b"pw")
    by_authzid = LoginForm("{user}", Master("cyrus", b"pw", True))
    assert by_authzid.login(b"anna", b"") == (b"anna", b"cyrus", b"pw")
    assert "pw" not in repr(master)

    def sasl(line: bytes) -> bytes:
        return b"+ \r\n" if line == b"AUTH PLAIN" else drop()(line)

    with Script(sasl) as server:
        server.client().login(*by_authzid.login(b"anna", b""))
        assert b"YW5uYQBjeXJ1cwBwdw==" in server.asked
        with pytest.raises(ConversationFailed, match="line end"):
            server.client().login(b"", b"anna\r\nDELE 1", b"pw")


def test_refused_logins() -> None:
    """A wrong password is one for good, a mailbox in use is one for now."""
    for said, temporary in ((b"-ERR [AUTH] no", False), (b"-ERR [IN-USE] busy", True), (b"-ERR no", False)):
        with Script(but(drop(), b"PASS", said + b"\r\n")) as server:
            with pytest.raises(RefusedByServer, match="the login was refused") as caught:
                server.client().login(b"", b"anna", b"secret")
            assert caught.value.temporary is temporary


def test_no_password_in_cleartext(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond this machine pop3:// is STLS or nothing; only --cleartext says otherwise."""
    with Script(drop()) as server:
        monkeypatch.setattr(servers, "_is_loopback", lambda _address: False)
        located = servers.locate(server.url, TlsChoice())
        assert located.tls == servers.STLS
        with pytest.raises(NotPop3, match="offers no STLS"):
            Client(located, 5, time.monotonic() + 5)
        assert servers.locate(server.url, TlsChoice(cleartext=True)).tls == servers.NO_TLS


def test_octets_slipped_in_before_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody sends behind the answer to STLS is never taken for something said within TLS."""
    answer = but(but(drop(), b"CAPA", b"+OK\r\nSTLS\r\n.\r\n"), b"STLS", b"+OK\r\n+OK\r\nPIPELINING\r\n.\r\n")
    with Script(answer) as server:
        monkeypatch.setattr(servers, "_is_loopback", lambda _address: False)
        with pytest.raises(Unreachable, match="no TLS"):
            Client(servers.locate(server.url, TlsChoice()), 5, time.monotonic() + 5)


@pytest.mark.parametrize(
    "url", ["imap://host", "pop3s://", "pop3s://a:99999", "pop3s://u:p@h", "pop3://h/x", ""]
)
def test_urls_that_are_none(url: str) -> None:
    """Anything but a host and a port is refused before anybody is asked."""
    with pytest.raises(NotUsable):
        servers.locate(url, TlsChoice())


def test_ca_file_that_is_none(tmp_path: Path) -> None:
    """A file that holds no certificate is named."""
    (tmp_path / "ca").write_text("nothing")
    with pytest.raises(NotUsable, match="ca"):
        servers.locate("pop3s://localhost", TlsChoice(ca_file=str(tmp_path / "ca")))


def test_an_old_servers_tls(tmp_path: Path) -> None:
    """Versions of yesterday are taken if that is asked for; certificates are checked even then."""
    context = servers.locate("pop3s://localhost", TlsChoice(old=True)).context
    assert context and context.minimum_version == ssl.TLSVersion.TLSv1
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
