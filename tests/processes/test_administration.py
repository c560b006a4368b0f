"""What an administrator does to single accounts while gpop runs, with the real commands."""

from __future__ import annotations

import datetime
import json
import os
import poplib
import socket
import subprocess
import sys

import pytest

from gpop import programs
from gpop.commands.asking import CommandFailed, ask
from gpop.privsep import channel, messages
from tests.serving import PASSWORD, ROOT, wait_until

needs_root = pytest.mark.skipif(not ROOT, reason="without root there is one account only")


def gpop(server, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of gpop's with the server's config."""
    config = ["--config", str(server.site.config)]
    return subprocess.run(
        [sys.executable, programs.MAIN, command, *config, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def administered(make_server):
    """A server whose control socket can be made, without root too."""

    def make(**settings):
        return make_server(accounts=2, **settings)

    return make


def refusal(server, name: str = "user0") -> bytes:
    with pytest.raises(poplib.error_proto) as refused:
        server.pop(name)
    return refused.value.args[0]


# gpop who, gpop kick


def test_who_lists_the_sessions_that_run(administered) -> None:
    """Whose, from where, since when and in which process; gone when they have ended."""
    server = administered()
    assert gpop(server, "who").stdout.splitlines()[-1] == "0 sessions"
    first = server.login()
    shown = gpop(server, "who", "--json")
    assert shown.returncode == 0, shown.stderr
    (session,) = [json.loads(line) for line in shown.stdout.splitlines()]
    assert (session["account"], session["peer"]) == ("user0", "127.0.0.1")
    assert session["maildir"] == str(server.site.maildir())
    assert session["pid"] in server.pids("session")
    assert 0 <= session["seconds"] < 60
    since = datetime.datetime.fromisoformat(session["since"])
    assert abs((datetime.datetime.now(datetime.UTC) - since).total_seconds()) < 60
    table = gpop(server, "who", "user0").stdout
    assert table.splitlines()[0].split() == ["ACCOUNT", "FROM", "SINCE", "(UTC)", "PID", "MAILDIR"]
    assert table.splitlines()[1].startswith("user0 ")
    assert gpop(server, "who", "nobody").stdout.splitlines()[-1] == "0 sessions"
    first.ask("QUIT")
    first.close()
    server.wait_for_event("session_closed")
    wait_until(lambda: gpop(server, "who").stdout.endswith("0 sessions\n"))


def test_kick_ends_the_sessions_of_one_account_and_removes_nothing(administered) -> None:
    """They end as with a client that vanished: what was marked stays."""
    server = administered()
    server.site.deliver(b"Subject: x\n\nkept\n")
    before = server.site.files()
    session = server.login()
    assert session.ask("DELE 1").startswith(b"+OK")
    done = gpop(server, "kick", "user0")
    assert (done.returncode, done.stdout) == (0, "1 session of user0 told to end\n"), done.stderr
    assert session.rest() == b""
    closed = server.wait_for_event("session_closed")
    assert (closed["close_reason"], closed["marked"], closed["removed"]) == ("kicked", 0, 0)
    assert server.events("sessions_kicked")[0]["account"] == "user0"
    assert server.site.files() == before
    wait_until(lambda: not server.pids("session"))
    again = gpop(server, "kick", "user0")
    assert (again.returncode, again.stderr) == (1, "gpop kick: user0 has no session\n")
    assert not server.faults()


@needs_root
def test_kick_leaves_others_alone(administered) -> None:
    """The account is compared as a whole."""
    server = administered()
    other = server.login("user1")
    assert gpop(server, "kick", "user").returncode == 1
    assert gpop(server, "kick", "user0").returncode == 1
    assert other.ask("NOOP") == b"+OK"
    other.close()


def test_nobody_to_ask(administered) -> None:
    """A gpop that has stopped, or never ran: said in one line."""
    server = administered()
    server.stop()
    for command in (["who"], ["kick", "user0"]):
        done = gpop(server, *command)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "nobody listens" in done.stderr


@needs_root
def test_the_control_socket_is_roots(administered) -> None:
    """A mail user gets nowhere: neither by the socket's mode nor, were that wrong, by his uid."""
    server = administered()
    path = server.site.path / "run" / "control"
    assert path.stat().st_mode & 0o777 == 0o700
    os.seteuid(65534)
    try:
        with pytest.raises(CommandFailed, match="answers root and its own user only"):
            ask(str(server.site.config), messages.LIST_SESSIONS)
    finally:
        os.seteuid(0)
    path.chmod(0o777)
    server.site.path.joinpath("run").chmod(0o755)
    os.seteuid(65534)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            # It may have hung up before we ask.
            with pytest.raises((channel.ChannelClosed, ConnectionError)):
                channel.send(sock, messages.encode(messages.LIST_SESSIONS))
                channel.receive(sock)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("octets", [b"", b"x", b"\x01\x20\x00\x01x", b"\x00" * 5000])
def test_any_request_is_answered_or_ended(administered, octets: bytes) -> None:
    """The broker survives whatever comes, and the next request is answered."""
    server = administered()
    path = str(server.site.path / "run" / "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect(path)
        if octets:
            sock.send(octets)
            assert sock.recv(100) == b""
    idle = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    for sock in idle:
        sock.connect(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(20)
        sock.connect(path)
        channel.send(sock, messages.encode(messages.LIST_SESSIONS))
        frame, fds = channel.receive(sock)
        assert frame.fields == {"sessions": 0}
        channel.close_all(fds)
    for sock in idle:
        sock.close()
    server.pop().quit()


# Settings of single accounts


def test_pop3_is_switched_off_for_an_account(administered) -> None:
    """From its next login on, past the auth cache too; it sounds like a wrong password. And on again."""
    server = administered(accounts_cache__enabled=True, accounts__trusted_networks=["127.0.0.0/8"])
    server.pop().quit()
    assert gpop(server, "user", "set", "user0", "pop3=off").returncode == 0
    assert refusal(server) == refusal_of_wrong_password(server)
    assert server.wait_for_event("login_refused")["reason"] == "pop3_off"
    if ROOT:
        server.pop("user1").quit()
    assert gpop(server, "user", "unset", "user0").returncode == 0
    server.pop().quit()


def refusal_of_wrong_password(server) -> bytes:
    with pytest.raises(poplib.error_proto) as refused:
        server.pop(password="wrong")
    return refused.value.args[0]


def test_a_bad_line_keeps_its_account_out_and_is_logged(administered) -> None:
    """With its number; others are served."""
    server = administered()
    (server.site.path / "user-settings").write_text("\nuser0 pop3=offf\n")
    assert b"[SYS/TEMP]" in refusal(server)
    problem = server.wait_for_event("user_settings_problem")
    assert (problem["line"], "expected on or off" in problem["problem"]) == (2, True)
    if ROOT:
        server.pop("user1").quit()


def test_removed_messages_of_an_account_are_kept(administered) -> None:
    """In the folder that is set for it, with the mail user's rights; others' are gone."""
    server = administered()
    for name in server.site.names:
        server.site.deliver(b"Subject: x\n\nprecious\n", name)
    gpop(server, "user", "set", "user0", "removal=.Trash")
    for name in server.site.names:
        client = server.pop(name)
        client.dele(1)
        client.quit()
    (kept,) = (server.site.maildir() / ".Trash" / "cur").iterdir()
    assert kept.read_bytes() == b"Subject: x\n\nprecious\n"
    assert kept.stat().st_uid == server.site.uid("user0")
    assert [server.site.files(name) for name in server.site.names] == [[] for _ in server.site.names]
    assert not any((server.site.maildir(name) / ".Trash").exists() for name in server.site.names[1:])
    assert server.pop().stat() == (0, 0)


def test_a_setting_for_all_keeps_what_is_removed(administered) -> None:
    """session.removal; an account may have "unlink" all the same."""
    server = administered(session__removal=".Deleted")
    for name in server.site.names:
        server.site.deliver(b"Subject: x\n\nprecious\n", name)
    gpop(server, "user", "set", "user1", "removal=unlink")
    for name in server.site.names:
        client = server.pop(name)
        client.dele(1)
        client.quit()
    assert len(os.listdir(server.site.maildir() / ".Deleted" / "cur")) == 1
    assert not any((server.site.maildir(name) / ".Deleted").exists() for name in server.site.names[1:])


def test_the_dialogue_of_one_account(administered) -> None:
    """From its next login on, of nobody else, and no longer than was said; no password in it."""
    server = administered()
    assert gpop(server, "log", "user0", "--debug", "on").returncode == 0
    for name in server.site.names:
        client = server.pop(name)
        client.stat()
        client.quit()
    server.wait_for_event("session_closed", len(server.site.names))
    commands = [(event["account"], event["detail"]) for event in server.events("command_received")]
    assert commands == [("user0", "STAT"), ("user0", "QUIT")]
    assert PASSWORD not in server.log_text()
    gpop(server, "user", "set", "user0", "dialogue_until=2001-01-01T00:00:00Z")
    server.pop().quit()
    server.wait_for_event("session_closed", len(server.site.names) + 1)
    assert len(server.events("command_received")) == 2


def test_gpop_log_says_where_the_log_is_and_whose_dialogue_is_in_it(administered) -> None:
    """Typed without arguments it is of use; with an account it answers for that one."""
    server = administered()
    assert "standard output" in gpop(server, "log").stdout
    until = gpop(server, "log", "user0", "--debug", "on").stdout.split()[-1]
    assert f"the dialogue of user0 is logged until {until}\n" in gpop(server, "log").stdout
    assert gpop(server, "log", "user0").stdout == f"the dialogue of user0 is logged until {until}\n"
    assert "is not logged" in gpop(server, "log", "user1").stdout
    assert gpop(server, "log", "--debug", "on").returncode == 2
    path = server.site.path / "gpop.log"
    server.site.write_config(log__target="file", log__path=str(path))
    gpop(server, "log", "user0", "--debug", "off")
    said = f'The log is {path} (log.target = "file"):\n  tail -F {path}\n  gpop report {path}\n'
    assert gpop(server, "log").stdout == said
    server.site.write_config(log__level="debug")
    assert "the dialogue of everybody is logged" in gpop(server, "log").stdout


def test_each_removed_message_has_a_line(administered) -> None:
    """log.removals: whose, which, how large and how; without the setting there is none."""
    server = administered(log__removals=True)
    names = [server.site.deliver(b"Subject: x\n\nprecious\n") for _ in range(150)]
    client = server.pop()
    for number in range(1, 151):
        client.dele(number)
    client.quit()
    lines = [server.wait_for_event("message_removed", 150), *server.events("message_removed")]
    assert {line["account"] for line in lines} == {"user0"}
    ids = [line["detail"].split()[0] for line in server.events("message_removed")]
    assert sorted(ids) == sorted(f"unique_id={name}" for name in names)
    assert f"octets=24 how=unlink file={names[-1]}" in lines[0]["detail"]
    server.site.write_config(log__removals=False)
    server.process.send_signal(1)
    server.wait_for_event("reload_finished")
    server.site.deliver(b"Subject: x\n\nprecious\n")
    client = server.pop()
    client.dele(1)
    client.quit()
    server.wait_for_event("session_closed", 2)
    assert len(server.events("message_removed")) == 150
