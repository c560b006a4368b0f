"""UTF8 and LANG (RFC 6856) through a real server."""

from __future__ import annotations

import os
import poplib
import unicodedata

import pytest

from tests.serving import Server, Site, wait_until

NAME = "jörg"
PASSWORD = "schlüssel ☂ ½"  # SASLprep would write the last character otherwise
UTF8_HEADER = "Subject: Grüße\nTo: jörg\n\nbody\n".encode()
ASCII_HEADER = "Subject: hello\n\nGrüße\n".encode()
NO_BODY = b"Subject: " + b"x" * 70_000 + "ß\n".encode()


@pytest.fixture
def make_utf8_server(make_site, make_server):
    """A function that starts gpop with one account, whose name and password are not ASCII."""

    def make(name: str = NAME, password: str = PASSWORD, **settings: object) -> Server:
        site: Site = make_site(**settings)
        ids = f"{site.uid('user0')}:{site.gid('user0')}"
        site.passwd.write_text(f"{name}:{{PLAIN}}{password}:{ids}::{site.home()}::\n", "utf-8")
        return make_server(site)

    return make


class Utf8Client(poplib.POP3):
    """poplib, with which UTF-8 in a name or password is possible since it has UTF8."""

    encoding = "UTF-8"


def log_in(server: Server, name: str = NAME, password: str = PASSWORD) -> Utf8Client:
    client = Utf8Client("127.0.0.1", server.port, timeout=20)
    client.utf8()
    client.user(name)
    client.pass_(password)
    return client


def test_a_name_and_a_password_in_utf8(make_utf8_server):
    """UTF8, USER and PASS by poplib, for an account of a passwd-file; the log has the name as it is."""
    server = make_utf8_server()
    server.site.deliver(UTF8_HEADER)
    client = log_in(server)
    assert client.capa()["UTF8"] == ["USER"] and "LANG" in client.capa()
    assert client.retr(1)[1][0] == "Subject: Grüße".encode()
    client.quit()
    closed = server.wait_for_event("session_closed")
    assert (closed["user"], closed["account"], closed["close_reason"]) == (NAME, NAME, "quit")
    assert server.faults() == []


@pytest.mark.parametrize("stored", ["NFC", "NFD", "NFKC"])
@pytest.mark.parametrize("sent", ["NFC", "NFD"])
def test_a_name_and_a_password_as_they_are_stored_or_prepared(make_utf8_server, stored, sent):
    """What was sent is tried first, its prepared form (NFKC) next: either may be in the file."""
    name, password = (unicodedata.normalize(stored, text) for text in (NAME, PASSWORD))
    server = make_utf8_server(name, password)
    typed = [unicodedata.normalize(sent, text) for text in (NAME, PASSWORD)]
    if stored in (sent, "NFKC"):
        log_in(server, *typed).quit()
        closed = server.wait_for_event("session_closed")
        assert (closed["user"], closed["account"]) == (typed[0], name)
    else:
        with pytest.raises(poplib.error_proto, match="AUTH"):
            log_in(server, *typed)
        reason = {"NFC": "wrong_password", "NFD": "unknown_user"}[stored]
        assert server.wait_for_event("login_refused")["reason"] == reason
    assert server.faults() == []


def test_a_refusal_before_auth_is_logged_with_its_reason(server):
    """What is no UTF-8, and what SASLprep prohibits: one line each, at once, with the name escaped."""
    with server.connect() as client:
        client.send(b"USER j\xf6rg\r\nPASS pw\r\n" + "USER user0\r\nPASS p\ue000w\r\n".encode())
        client.line()
        assert client.line() == b"-ERR [AUTH] Authentication failed"
        client.line()
        assert client.line() == b"-ERR [AUTH] Authentication failed"
    server.wait_for_event("login_refused", 2)
    first, second = server.events("login_refused")
    assert (first["reason"], first["source"], first["code"]) == ("ill_formed_utf8", "front", "AUTH")
    assert (second["reason"], second["user"]) == ("prohibited_character", "user0")
    assert first["user"] != "jörg" and first["user"].isascii()


def test_by_default_a_message_goes_out_as_it_is(server):
    """Whether its client has said UTF8 or not."""
    server.site.deliver(UTF8_HEADER)
    for say_utf8 in (False, True):
        client = poplib.POP3("127.0.0.1", server.port, timeout=20)
        if say_utf8:
            client.utf8()
        client.user("user0")
        client.pass_("open sesame")
        assert b"\n".join(client.retr(1)[1]) == UTF8_HEADER.rstrip(b"\n")
        client.quit()


def test_a_message_with_utf8_headers_can_be_refused(make_server):
    """session.utf8_headers = "refuse": [UTF8] to who did not say UTF8, the message to who did."""
    server = make_server(session__utf8_headers="refuse")
    for number, message in enumerate((ASCII_HEADER, UTF8_HEADER, NO_BODY), 1):
        server.site.deliver(message, base=f"{number}.M{number}.test")
    with server.login() as client:
        assert client.ask("STAT").startswith(b"+OK 3 ")
        for command in ("LIST 2", "RETR 2", "TOP 2 0", "RETR 3", "LIST 3"):
            assert client.ask(command).startswith(b"-ERR [UTF8] "), command
        assert client.ask("LIST 1") == b"+OK 1 %d" % (len(ASCII_HEADER) + 3)
        assert client.ask("RETR 1").startswith(b"+OK")
        assert client.lines()[-1] == "Grüße".encode()
        assert client.ask("LIST").startswith(b"+OK")
        assert len(client.lines()) == 3
        client.ask("LANG de")
        assert client.ask("RETR 2").startswith(b"-ERR [UTF8] Diese Nachricht ist f")
        assert client.ask("UTF8").startswith(b"+OK")
        assert client.ask("RETR 2").startswith(b"-ERR [UTF8] ")
        client.ask("QUIT")
    with server.connect() as client:
        for command in ("UTF8", "USER user0", "PASS open sesame"):
            assert client.ask(command).startswith(b"+OK")
        assert client.ask("RETR 2").startswith(b"+OK")
        assert "Subject: Grüße".encode() in client.lines()
        client.ask("QUIT")
    wait_until(lambda: len(server.events("session_closed")) == 2)
    assert [event["retr"] for event in server.events("session_closed")] == [1, 1]
    assert server.faults() == []


def test_a_message_that_is_gone_is_not_said_to_need_utf8(make_server):
    """What is wrong with a message is said as ever."""
    server = make_server(session__utf8_headers="refuse")
    base = server.site.deliver(UTF8_HEADER)
    with server.login() as client:
        (server.site.maildir() / "new" / base).unlink()
        assert client.ask("RETR 1") == b"-ERR That message is gone"
        assert client.ask("LIST 1").startswith(b"+OK 1 ")


def test_a_poll_reads_no_header(make_server):
    """With "refuse" and UTF8 too a poll is the short way: nothing is opened but the statcache."""
    server = make_server(session__utf8_headers="refuse")
    base = server.site.deliver(UTF8_HEADER)
    with server.login() as client:
        client.ask("QUIT")
    path = server.site.maildir() / "new" / base
    os.utime(path, ns=(0, path.stat().st_mtime_ns))  # so long ago that the next read counts (relatime)
    with server.connect() as client:
        client.send(b"UTF8\r\nUSER user0\r\nPASS open sesame\r\nSTAT\r\nLIST\r\nUIDL\r\nQUIT\r\n")
        assert client.rest().endswith(b"+OK bye\r\n")
    assert server.wait_for_event("session_closed", 2)["cache"] == "hit"
    assert path.stat().st_atime_ns == 0
    path.read_bytes()
    if path.stat().st_atime_ns == 0:
        pytest.skip("reading leaves no trace on this file system")


def test_the_language_holds_in_the_session(make_server):
    """From before the login, for its reply and all that follow, hit or not; LANG * is the setting's."""
    server = make_server(server__language="fr")
    server.site.deliver(ASCII_HEADER)
    for _ in range(2):
        with server.connect() as client:
            assert client.ask("LANG de-CH") == b"+OK de Sprache gewechselt"
            client.send(b"UTF8\r\nUSER user0\r\nPASS open sesame\r\n")
            assert client.line() == b"+OK UTF-8-Modus"
            client.line()
            assert client.line() == b"+OK Postfach gesperrt und bereit"
            assert client.ask("LIST") == "+OK es folgt die Größenliste".encode()
            assert len(client.lines()) == 1
            assert client.ask("RETR 1").endswith(b" Oktette")
            client.lines()
            assert client.ask("LANG *") == "+OK fr langue modifiée".encode()
            assert client.ask("QUIT") == "+OK à bientôt".encode()
    wait_until(lambda: len(server.events("session_closed")) == 2)
    assert server.faults() == []


def test_refusals_are_in_the_language_whoever_makes_them(make_server):
    """Auth's, the session's before it serves: the client chose before."""
    server = make_server(session__lock_wait_s=0)
    with server.login() as holder, server.connect() as client:
        client.ask("LANG es")
        client.ask("USER user0")
        assert client.ask("PASS wrong") == b"-ERR [AUTH] La autenticacion ha fallado"
        client.ask("USER user0")
        assert client.ask("PASS open sesame") == b"-ERR [IN-USE] Otra sesion esta usando el buzon"
        holder.ask("QUIT")


def test_languages_are_there_in_the_jail(server):
    """A session has nothing to read them from any more: LANG works in it all the same, for each."""
    with server.login() as client:
        assert client.ask("LANG") == b"+OK language list follows"
        for line in client.lines():
            tag = line.partition(b" ")[0].decode()
            assert client.ask(f"LANG {tag}").startswith(f"+OK {tag} ".encode())
        client.ask("QUIT")
    assert server.wait_for_event("session_closed")["close_reason"] == "quit"
