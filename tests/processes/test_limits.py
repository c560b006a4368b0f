"""Too much of something: a clear -ERR with a code, one line in the log, and everybody else is served."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from gpop.front.connection import MAX_LINES
from tests.serving import PASSWORD, Dialogue, wait_until

# From here on loopback is no better than any other address.
NOBODY_TRUSTED = {"accounts__trusted_networks": []}


def connect(server, peer="127.0.0.1"):
    """A connection from an address of 127.0.0.0/8, greeted or turned away."""
    address = ("127.0.0.1", server.port)
    dialogue = Dialogue(socket.create_connection(address, 20, source_address=(peer, 0)))
    dialogue.greeting = dialogue.line()
    return dialogue


def log_in(dialogue, password=PASSWORD):
    """The answer to PASS."""
    assert dialogue.ask("USER user0").startswith(b"+OK")
    return dialogue.ask(f"PASS {password}")


def assert_served(server, peer):
    with connect(server, peer) as dialogue:
        assert log_in(dialogue).startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")


# Connections


def test_an_address_has_so_many_connections(make_server):
    """More are told so and closed; another address is served; who leaves makes room."""
    server = make_server(server__max_connections_per_address=3, **NOBODY_TRUSTED)
    with ExitStack() as connections:
        first, *_ = [connections.enter_context(connect(server)) for _ in range(3)]
        for _ in range(20):
            with connect(server) as turned_away:
                assert turned_away.greeting.startswith(b"-ERR [SYS/TEMP] Too many connections from your")
                assert turned_away.rest() == b""
        assert_served(server, "127.0.0.2")
        assert first.ask("QUIT").startswith(b"+OK")

        def has_room():
            with connect(server) as dialogue:
                return dialogue.greeting.startswith(b"+OK")

        wait_until(has_room)
    line = server.wait_for_event("limit_reached")
    said = {key: line[key] for key in ("level", "reason", "peer", "limit", "times")}
    assert said == {
        "level": "warning",
        "reason": "too_many_connections",
        "peer": "127.0.0.1",
        "limit": 3,
        "times": 1,
    }
    # However many there were: the next line about this address is due in some seconds.
    assert len(server.events("limit_reached")) == 1
    assert server.faults() == []


def test_a_session_counts_as_a_connection(make_server):
    """After the login the connection is still one of its address, until the session ends."""
    server = make_server(server__max_connections_per_address=1, **NOBODY_TRUSTED)
    with connect(server) as dialogue:
        assert log_in(dialogue).startswith(b"+OK")
        with connect(server) as turned_away:
            assert turned_away.greeting.startswith(b"-ERR [SYS/TEMP]")
        dialogue.ask("QUIT")
        dialogue.rest()
    server.wait_for_event("session_closed", close_reason="quit")
    assert_served(server, "127.0.0.1")


def test_trusted_networks_have_no_limit_per_address(make_server):
    """Loopback is trusted unless it is taken out: a webmail host, a proxy, a test."""
    server = make_server(server__max_connections_per_address=1, accounts__max_logins_per_address=1)
    with ExitStack() as connections:
        several = [connections.enter_context(connect(server)) for _ in range(5)]
        assert all(dialogue.greeting.startswith(b"+OK") for dialogue in several)
    assert server.events("limit_reached") == []


# Commands


@pytest.mark.parametrize("command", ["CAPA", "AUTH", "USER user0"])
def test_commands_without_a_login_end_a_connection(make_server, command):
    """Good ones too, in a loop: all answered up to a bound, then a last -ERR."""
    server = make_server()
    with connect(server) as dialogue:
        dialogue.send(f"{command}\r\n".encode() * 1000)
        answers = dialogue.rest().split(b"\r\n")
        statuses = [line for line in answers if line.startswith((b"+OK", b"-ERR"))]
        assert len(statuses) == MAX_LINES + 1
        assert all(line.startswith(b"+OK") for line in statuses[:-1])
        assert statuses[-1].startswith(b"-ERR [SYS/TEMP] Too many commands")
        assert answers[-2:] == [statuses[-1], b""]
    line = server.wait_for_event("limit_reached", reason="too_many_commands")
    assert (line["peer"], line["limit"]) == ("127.0.0.1", MAX_LINES)
    assert_served(server, "127.0.0.1")


def test_a_line_without_end_has_the_time_of_any_other(make_server):
    """Whoever sends on and on, and never a line end, is silent as far as commands go."""
    server = make_server(server__login_timeout_s=1, log__level="debug")
    with connect(server) as dialogue, pytest.raises(OSError):
        while True:
            dialogue.send(b"x" * 4096)
    server.wait_for_event("connection_closed", close_reason="timeout")


# Logins


def test_an_address_has_so_many_logins_at_once(make_server):
    """Those that wait for an answer count; another address does not notice."""
    server = make_server(accounts__max_logins_per_address=2, accounts__refusal_time_s=4, **NOBODY_TRUSTED)
    with ExitStack() as connections:
        waiting = [connections.enter_context(connect(server)) for _ in range(2)]
        for dialogue in waiting:
            dialogue.ask("USER user0")
            dialogue.send(b"PASS wrong\r\n")
        with connect(server) as dialogue:
            for _ in range(2):
                assert log_in(dialogue) == b"-ERR [SYS/TEMP] Temporary failure, please try again later"
        assert_served(server, "127.0.0.2")
        assert [dialogue.line()[:11] for dialogue in waiting] == [b"-ERR [AUTH]"] * 2
    line = server.wait_for_event("login_refused", code="SYS/TEMP")
    assert (line["reason"], line["peer"]) == ("too_many_logins_of_address", "127.0.0.1")
    assert (line["user"], line["times"]) == ("user0", 1)
    assert len(server.events("login_refused")) == 3  # the second [SYS/TEMP] is in a line to come
    assert_served(server, "127.0.0.1")  # after the penalty


def test_so_many_logins_a_second_in_all(make_server):
    """More are told to come again, whoever they are; no one's password is called wrong."""
    server = make_server(accounts__max_logins_per_second=1, session__lock=False)
    answers = set()
    with ExitStack() as connections:
        for number in range(20):
            answers.add(log_in(connections.enter_context(connect(server, f"127.0.0.{number + 1}")))[:15])
    assert b"-ERR [SYS/TEMP]" in answers and any(answer.startswith(b"+OK") for answer in answers)
    assert len(answers) == 2
    line = server.wait_for_event("login_refused", reason="too_many_logins_per_second")
    assert (line["code"], line["times"]) == ("SYS/TEMP", 1)
    assert server.faults() == []


def test_an_account_has_so_many_sessions(make_server):
    """[IN-USE] after the right password, one line, and the older session goes on."""
    server = make_server(session__max_per_account=1, session__lock=False)
    with connect(server) as older, connect(server) as newer:
        assert log_in(older).startswith(b"+OK")
        assert log_in(newer) == b"-ERR [IN-USE] Too many sessions of this account"
        assert newer.rest() == b""
        assert older.ask("NOOP") == b"+OK"
    line = server.wait_for_event("login_refused")
    assert (line["code"], line["reason"], line["user"]) == ("IN-USE", "too_many_sessions", "user0")


# LOGIN-DELAY


def quit_after_login(server, password=PASSWORD):
    """The answer to PASS, in a session that ends at once."""
    with connect(server) as dialogue:
        answer = log_in(dialogue, password)
        dialogue.ask("QUIT")
        dialogue.rest()
        return answer


TOO_SOON = b"-ERR [LOGIN-DELAY] Too soon after the last login, please try again later"


def test_a_login_too_soon_is_refused(make_server):
    """Two logins, as Outlook does, then [LOGIN-DELAY]."""
    server = make_server(accounts__login_delay_s=3600, **NOBODY_TRUSTED)
    assert [quit_after_login(server)[:3] for _ in range(2)] == [b"+OK", b"+OK"]
    for _ in range(3):
        assert quit_after_login(server) == TOO_SOON
    line = server.wait_for_event("login_refused", count=3)
    assert (line["code"], line["reason"], line["user"]) == ("LOGIN-DELAY", "login_delay", "user0")
    assert line["peer"] == "127.0.0.1"
    # The password was right: nobody is slowed down for it.
    assert server.events("penalty_raised") == []


def test_a_delay_is_told_to_nobody_without_the_password(make_server):
    """USER is answered as ever, a wrong password as ever, and an unknown name as that."""
    server = make_server(accounts__login_delay_s=3600, accounts__login_delay_burst=1)
    assert quit_after_login(server).startswith(b"+OK")
    with connect(server) as dialogue:
        known = [dialogue.ask("USER user0"), dialogue.ask("PASS wrong")]
        unknown = [dialogue.ask("USER nobody0"), dialogue.ask("PASS wrong")]
        assert known == unknown
        assert known[1].startswith(b"-ERR [AUTH]")
        # It goes on with the same connection, and a refusal for the delay is none of the password.
        assert log_in(dialogue) == TOO_SOON
        assert log_in(dialogue) == TOO_SOON


def test_the_delay_is_by_account(make_server):
    """Where one user has to wait another need not, from the same address."""
    server = make_server(accounts=2, accounts__login_delay_s=3600, accounts__login_delay_burst=1)
    if len(server.site.names) < 2:
        pytest.skip("several accounts need root")
    assert quit_after_login(server).startswith(b"+OK")
    assert quit_after_login(server) == TOO_SOON
    with server.login("user1") as dialogue:
        assert dialogue.ask("NOOP") == b"+OK"


@pytest.mark.parametrize("delay_s", [0, 300])
def test_capa_announces_the_delay_that_holds(make_server, delay_s):
    """Before and after the login the same line; without a delay none (RFC 2449 section 6.5)."""
    server = make_server(accounts__login_delay_s=delay_s)
    with connect(server) as dialogue:
        dialogue.ask("CAPA")
        before = dialogue.lines()
        assert log_in(dialogue).startswith(b"+OK")
        dialogue.ask("CAPA")
        assert dialogue.lines() == before
    delays = [line for line in before if line.startswith(b"LOGIN-DELAY")]
    assert delays == ([b"LOGIN-DELAY 300"] if delay_s else [])
