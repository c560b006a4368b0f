"""From connect to a mail read and removed, through all four processes."""

from __future__ import annotations

import poplib
import time

import pytest

from tests.serving import PASSWORD, wait_until

MESSAGE = b"Subject: one\n\nbody\n.dot\n"
ON_THE_WIRE = [b"Subject: one", b"", b"body", b"..dot"]


def test_a_message_is_listed_fetched_and_removed(server):
    """The whole path: what was delivered is read octet for octet, and gone after DELE and QUIT."""
    server.site.deliver(MESSAGE)
    client = server.pop()
    assert client.stat() == (1, 28)
    assert client.list()[1] == [b"1 28"]
    assert client.retr(1)[1] == [b"Subject: one", b"", b"body", b".dot"]
    client.dele(1)
    assert client.quit().startswith(b"+OK")
    wait_until(lambda: server.site.files() == [])
    closed = server.wait_for_event("session_closed")
    assert (closed["close_reason"], closed["removed"], closed["retr"]) == ("quit", 1, 1)
    assert closed["user"] == "user0" and closed["auth_source"] == "passwd-file"


def test_the_second_poll_is_a_hit(server):
    """Nothing new: the second poll finds its answers in the statcache, and the log says so."""
    base = server.site.deliver(MESSAGE)
    for _ in range(2):
        client = server.pop()
        assert client.uidl()[1] == [b"1 " + base.encode()]
        client.quit()
    server.wait_for_event("session_closed", 2)
    first, second = server.events("session_closed")
    assert first["cache"] == "rebuild"
    assert second["cache"] == "hit"


def test_a_whole_session_in_one_packet(server):
    """Pipelining across the hand-over: USER, PASS, STAT, RETR, QUIT in one write (RFC 2449 §6.6)."""
    server.site.deliver(MESSAGE)
    with server.connect() as dialogue:
        dialogue.send(f"USER user0\r\nPASS {PASSWORD}\r\nSTAT\r\nRETR 1\r\nQUIT\r\n".encode())
        assert dialogue.line().startswith(b"+OK")
        assert dialogue.line().startswith(b"+OK")
        assert dialogue.line() == b"+OK 1 28"
        assert dialogue.line().startswith(b"+OK")
        assert dialogue.lines() == ON_THE_WIRE
        assert dialogue.line().startswith(b"+OK")
        assert dialogue.rest() == b""


def test_a_whole_session_octet_by_octet(server):
    """The same in packets of one octet."""
    server.site.deliver(MESSAGE)
    with server.connect() as dialogue:
        for octet in f"USER user0\r\nPASS {PASSWORD}\r\nSTAT\r\nRETR 1\r\nQUIT\r\n".encode():
            dialogue.send(bytes([octet]))
        replies = dialogue.rest().split(b"\r\n")
        assert replies[2] == b"+OK 1 28"
        assert replies[4:8] == ON_THE_WIRE


def test_what_follows_a_refused_login_is_answered_too(server):
    """Octets behind a refused PASS are not lost: they are the next commands of AUTHORIZATION."""
    with server.connect() as dialogue:
        dialogue.send(b"USER user0\r\nPASS wrong\r\nSTAT\r\nUSER user0\r\n")
        assert dialogue.line().startswith(b"+OK")
        assert dialogue.line().startswith(b"-ERR [AUTH]")
        assert dialogue.line().startswith(b"-ERR")
        assert dialogue.line().startswith(b"+OK")
        dialogue.send(f"PASS {PASSWORD}\r\n".encode())
        assert dialogue.line().startswith(b"+OK")


def test_unknown_user_and_wrong_password_look_the_same(server):
    """Same words, and neither before the fixed time after PASS."""
    replies = []
    for name in ("user0", "nobody-has-this-name"):
        with server.connect() as dialogue:
            dialogue.ask(f"USER {name}")
            before = time.monotonic()
            replies.append(dialogue.ask("PASS wrong"))
            assert time.monotonic() - before >= 0.2
    assert replies[0] == replies[1] and replies[0].startswith(b"-ERR [AUTH] ")
    refused = server.wait_for_event("login_refused", 2)
    assert refused["peer"] == "127.0.0.1" and refused["code"] == "AUTH"
    assert "wrong" not in server.log_text().replace("wrong_password", "")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_sasl_logs_in(server, mechanism):
    """AUTH PLAIN with an initial response, AUTH LOGIN with two challenges (RFC 5034)."""
    from base64 import b64encode

    with server.connect() as dialogue:
        if mechanism == "PLAIN":
            answer = dialogue.ask("AUTH PLAIN " + b64encode(f"\0user0\0{PASSWORD}".encode()).decode())
        else:
            assert dialogue.ask("AUTH LOGIN").startswith(b"+ ")
            assert dialogue.ask(b64encode(b"user0").decode()).startswith(b"+ ")
            answer = dialogue.ask(b64encode(PASSWORD.encode()).decode())
        assert answer.startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert server.wait_for_event("session_closed")["mechanism"] == mechanism


def test_an_over_long_line_gets_one_error(server):
    """Before and after login: one -ERR for the whole line, then the next command is answered."""
    with server.connect() as dialogue:
        for login in (False, True):
            if login:
                dialogue.ask("USER user0")
                dialogue.ask(f"PASS {PASSWORD}")
            dialogue.send(b"X" * 100_000 + b"\r\n" + b"NOOP\r\nCAPA\r\n")
            assert dialogue.line().startswith(b"-ERR")
            assert dialogue.line().startswith(b"+OK" if login else b"-ERR")
            assert dialogue.line().startswith(b"+OK")
            assert b"PIPELINING" in dialogue.lines()


def test_a_missing_folder_is_a_fault_not_an_empty_maildrop(server):
    """A Maildir without new/ answers [SYS/TEMP]: a client that sees no mail forgets its unique-ids."""
    server.site.deliver(MESSAGE)
    (server.site.maildir() / "new").rename(server.site.home() / "elsewhere")
    with pytest.raises(poplib.error_proto, match=r"SYS/TEMP"):
        server.pop()
    closed = server.wait_for_event("session_closed")
    assert closed["close_reason"] == "unavailable" and closed["level"] == "error"
    where = server.site.maildir()
    assert closed["fault"] == f"MaildropUnavailable: new/ can't be read: No such file or directory ({where})"


def test_an_absent_maildir_is_empty(server):
    """A new user whose first message has not come yet has an empty maildrop."""
    maildir = server.site.maildir()
    for folder in ("new", "cur", "tmp", ""):
        (maildir / folder).rmdir()
    client = server.pop()
    assert client.stat() == (0, 0)
    assert client.uidl()[1] == []
    client.quit()


def test_a_maildir_behind_a_dangling_link_is_a_fault(server):
    """A Maildir that links to a file system that is not mounted is not an empty maildrop."""
    maildir = server.site.maildir()
    maildir.rename(server.site.home() / "elsewhere")
    maildir.symlink_to(server.site.home() / "not-mounted")
    with pytest.raises(poplib.error_proto, match=r"SYS/TEMP"):
        server.pop()
    assert "maildir_dangling" in server.wait_for_event("session_closed")["fault"]


def test_removed_without_quit_is_not_removed(server):
    """DELE and then a broken connection: the message stays (RFC 1939 §6)."""
    name = server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        assert dialogue.ask("DELE 1").startswith(b"+OK")
    assert server.wait_for_event("session_closed")["close_reason"] == "disconnect"
    assert server.site.files() == [name]


def test_a_quit_counts_though_its_reply_can_not_be_sent(server):
    """Outlook closes right after sending QUIT: the QUIT was received, so it is carried out."""
    server.site.deliver(MESSAGE)
    dialogue = server.login()
    dialogue.send(b"DELE 1\r\nQUIT\r\n")
    dialogue.close()
    wait_until(lambda: server.site.files() == [])
    assert server.wait_for_event("session_closed")["close_reason"] == "quit"


def test_the_set_of_messages_is_frozen_at_login(server):
    """Mail that comes during a session is invisible in it, and numbers never shift."""
    server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        server.site.deliver(MESSAGE)
        assert dialogue.ask("STAT") == b"+OK 1 28"
        dialogue.ask("DELE 1")
        assert dialogue.ask("STAT") == b"+OK 0 0"
        assert dialogue.ask("RETR 1").startswith(b"-ERR")
        assert dialogue.ask("RSET").startswith(b"+OK")
        assert dialogue.ask("STAT") == b"+OK 1 28"


def test_retrieved_messages_move_to_cur(server):
    """At QUIT what was retrieved moves from new/ to cur/ with S; what was only polled stays."""
    first, second = server.site.deliver(MESSAGE), server.site.deliver(MESSAGE)
    client = server.pop()
    client.retr(1)
    client.top(2, 0)
    client.quit()
    assert server.site.files(folder="cur") == [first + ":2,S"]
    assert server.site.files(folder="new") == [second]


def test_dialogue_is_logged_with_passwords_hidden(make_server):
    """At debug level the whole dialogue is in the log, and no password."""
    server = make_server(log__level="debug")
    server.site.deliver(MESSAGE)
    client = server.pop()
    client.stat()
    client.quit()
    server.wait_for_event("session_closed")
    details = [event["detail"] for event in server.events("command_received")]
    assert details == ["USER user0", "PASS (hidden)", "STAT", "QUIT"]
    assert PASSWORD not in server.log_text()
