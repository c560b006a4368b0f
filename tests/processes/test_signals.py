"""Signals at awkward moments: to a session, during a start, a reload or a stop; and reloads that fail."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.serving import PASSWORD, ROOT, Dialogue, Server, gpop_command, socket_of, wait_until

MESSAGE = b"Subject: one\n\nbody\n"
A_REAL_TIME_SIGNAL = 40


# To a session


def test_a_mail_user_may_send_a_session_any_signal(server):
    """It ends, removing nothing, or it does not; the broker names the signal, and goes on."""
    name = server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        dialogue.ask("DELE 1")
        (session,) = server.pids("session")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1):
            os.kill(session, number)
        assert dialogue.ask("NOOP").startswith(b"+OK")
        os.kill(session, A_REAL_TIME_SIGNAL)
        assert dialogue.rest() == b""
    assert server.wait_for_event("session_died")["signal"] == f"SIG{A_REAL_TIME_SIGNAL}"
    server.pop().quit()
    assert server.site.files() == [name]


def test_a_session_that_is_ended_before_it_serves_is_answered(make_server):
    """SIGTERM while it waits for the lock: PASS gets its -ERR, as it gets one whatever happens."""
    server = make_server(session__lock_wait_s=30)
    with server.login(), server.connect() as waiting:
        before = server.pids("session")
        waiting.ask("USER user0")
        waiting.send(f"PASS {PASSWORD}\r\n".encode())
        wait_until(lambda: len(server.pids("session")) == 2)
        (session,) = set(server.pids("session")) - set(before)
        wait_until(lambda: _waits_in(session, "nanosleep"))
        os.kill(session, signal.SIGTERM)
        assert waiting.line().startswith(b"-ERR [SYS/TEMP]")
        assert waiting.rest() == b""
    refused = server.wait_for_event("login_refused")
    assert (refused["reason"], refused["user"]) == ("shutdown", "user0")


# During a start


def test_a_reload_that_is_asked_for_during_the_start_comes_after_it(make_site):
    """SIGHUP from the first moment of the broker on: gpop comes up, and reloads once it is up."""
    server = Server(make_site(), ready=False)
    with server:
        command = Path(f"/proc/{server.process.pid}/cmdline")
        wait_until(lambda: b"\0broker\0" in command.read_bytes())

        def is_up() -> bool:
            server.process.send_signal(signal.SIGHUP)
            return bool(server.events("broker_started"))

        wait_until(is_up)
        server.wait_for_event("reload_finished")


# During a reload


def test_a_reload_that_is_asked_for_during_another_comes_after_it(server):
    """The file may have changed after it was read: what holds in the end is what it says now."""
    server.site.deliver(MESSAGE)
    server.site.deliver(MESSAGE)
    server.process.send_signal(signal.SIGHUP)
    new_auth = _wait_for_another(server, "auth")
    server.site.write_config(session__max_messages=1)
    for _ in range(3):
        server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished", 2)
    with server.login() as dialogue:
        assert dialogue.ask("STAT").startswith(b"+OK 1 ")
    wait_until(lambda: new_auth not in server.pids("auth"))
    assert not server.events("reload_failed", "process_ended")


def test_a_reload_that_fails_loses_no_connection(server):
    """New processes that do not all come up have taken nobody's connection; the old settings hold."""
    server.site.deliver(MESSAGE)
    server.site.deliver(MESSAGE)
    old_front = server.pids("front")
    server.site.write_config(session__max_messages=1)
    server.process.send_signal(signal.SIGHUP)
    new_auth = _wait_for_another(server, "auth", signal.SIGSTOP)
    new_front = _wait_for_another(server, "front", known=old_front)
    wait_until(lambda: _waits_in(new_front, "poll"))
    peers = [server.connect() for _ in range(20)]
    os.kill(new_auth, signal.SIGKILL)
    failed = server.wait_for_event("reload_failed")
    assert failed["kept_old"] and "auth" in failed["problem"]
    for peer in peers:
        with peer:
            peer.ask("USER user0")
            assert peer.ask(f"PASS {PASSWORD}").startswith(b"+OK")
            assert peer.ask("STAT").startswith(b"+OK 2 ")
            peer.ask("QUIT")
    assert server.pids("front") == old_front
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished")
    with server.login() as dialogue:
        assert dialogue.ask("STAT").startswith(b"+OK 1 ")


@pytest.mark.skipif(not ROOT, reason="needs root: without it there is no jail")
def test_a_front_that_can_not_be_jailed_says_why(server):
    """Of a directory for it that is not root's own: said in the log; the old processes serve on."""
    os.chown(server.site.path / "run" / "empty", 61000, 61000)
    server.process.send_signal(signal.SIGHUP)
    assert server.wait_for_event("reload_failed")["kept_old"]
    assert "jail_not_roots_own" in server.wait_for_event("process_fault")["problem"]
    server.pop().quit()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_reload_does_not_move_the_run_directory(server, number):
    """Control socket and claim stayed in the old one, so that `gpop who` with this config found nobody."""
    before, after = str(server.site.path / "run"), str(server.site.path / "another")
    server.site.write_config(server__run_dir=after)
    server.process.send_signal(number)
    (problem,) = server.wait_for_event("config_rejected")["problems"]
    expected = f'expected "{before}": it changes with a restart only'
    assert problem == f'server.run_dir = "{after}": {expected}'
    assert not os.path.exists(after)
    server.pop().quit()


def test_what_is_accepted_while_a_front_drains_is_served(server):
    """A connection and the order to drain that reach a front in the same turn of its loop."""
    (old,) = server.pids("front")
    os.kill(old, signal.SIGSTOP)
    server.process.send_signal(signal.SIGHUP)
    new = _wait_for_another(server, "front", known=[old])
    server.wait_for_event("reload_finished")
    server.pop().quit()
    os.kill(new, signal.SIGSTOP)
    sockets = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(3)]
    os.kill(old, signal.SIGCONT)
    wait_until(lambda: server.events("front_draining"))
    os.kill(new, signal.SIGCONT)
    for sock in sockets:
        with Dialogue(sock) as dialogue:
            assert dialogue.line().startswith(b"+OK")
            dialogue.ask("USER user0")
            assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
            dialogue.ask("QUIT")


def longest_queues(server) -> dict[int, int]:
    """How many clients may wait at each socket that the broker listens on, by port."""
    broker, queues = server.process.pid, {}
    for link in Path(f"/proc/{broker}/fd").iterdir():
        with contextlib.suppress(OSError):  # of an old generation one may just be closed
            if not os.readlink(link).startswith("socket:"):
                continue
            with socket_of(broker, int(link.name)) as sock:
                if sock.family == socket.AF_INET and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
                    # tcpi_sacked of struct tcp_info: of a socket that listens, the most that may wait.
                    queues[sock.getsockname()[1]] = struct.unpack_from("I", info, 28)[0]
    return queues


@pytest.mark.skipif(not ROOT, reason="needs root: it takes descriptors from another process")
def test_a_short_queue_turns_clients_away_in_a_rush(make_server):
    """As many may wait to be accepted as the kernel lets; a reload and an upgrade keep such sockets."""
    longest = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    server = make_server(server__listen=["127.0.0.1:0", "127.0.0.2:0"])
    queues = longest_queues(server)
    assert list(queues.values()) == [longest] * 2
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished")
    assert longest_queues(server) == queues
    server.process.send_signal(signal.SIGUSR2)
    server.wait_for_event("upgrade_finished")
    assert longest_queues(server) == queues


def test_where_nothing_more_can_be_started_gpop_serves_on(server):
    """No descriptors (or no processes, no memory) for a new one: logged, tried again, and nobody ends."""
    server.pop().quit()
    wait_until(lambda: not server.pids("session"))
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    descriptors = {int(fd) for fd in os.listdir(f"/proc/{server.process.pid}/fd")}
    few = min(set(range(len(descriptors) + 1)) - descriptors)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (few, limits[1]))
    server.process.send_signal(signal.SIGHUP)
    assert server.wait_for_event("reload_failed")["kept_old"]
    (front,) = server.pids("front")
    # It gives back one descriptor, and more are needed.
    os.kill(front, signal.SIGKILL)
    assert "front" in server.wait_for_event("process_fault")["problem"]
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: server.pids("front") not in ([], [front]))
    server.pop().quit()


# A stop


@pytest.mark.parametrize("process", ["read-config", "auth-process"])
def test_a_stop_during_a_reload(make_server, process):
    """SIGTERM while the config is read, or while new processes start: none is waited for, none is started."""
    server = make_server(server__grace_time_s=30)
    known = _children(server, process)
    with server.login() as dialogue:
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: _children(server, process) - known)
        (stopped,) = _children(server, process) - known
        os.kill(stopped, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_event("shutdown_started")
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: not _children(server, process))
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert server.process.wait(20) == 0
    order = [event["event"] for event in server.events()]
    assert "reload_finished" not in order and "sessions_ended" not in order
    assert "front_started" not in order[order.index("shutdown_started") :]


def test_a_peer_whose_login_is_refused_during_a_stop_is_left(make_server):
    """It is answered, and does not keep its front for the rest of the grace time."""
    server = make_server(server__grace_time_s=30, accounts__refusal_time_s=1)
    with server.connect() as dialogue:
        dialogue.send(b"USER user0\r\nPASS wrong\r\n")
        dialogue.line()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_event("front_draining")
        assert dialogue.rest().startswith(b"-ERR [")
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR2])
def test_fronts_and_auth_leave_signals_to_the_broker(server, number):
    """What reaches all processes of a terminal or a service is heeded once, by the broker."""
    with server.connect() as dialogue:
        for pid in server.pids("front") + server.pids("auth"):
            os.kill(pid, number)
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        dialogue.ask("QUIT")
    assert not server.events("process_ended")


# The log


def test_what_may_be_a_password_is_not_in_the_dialogue(make_server):
    """Typed too early, with a letter missing, as a SASL response that nobody asked for; after login, too."""
    server = make_server(log__level="debug")
    with server.connect() as dialogue:
        dialogue.send(b"PAS hush-1\r\nhush-2\r\nAUTH CRAM-MD5 hush-3\r\n pass hush-4\r\n")
        dialogue.send(f"USER user0\r\nPASS {PASSWORD}\r\n".encode())
        dialogue.send(b"PASS hush-5\r\nAUTH PLAIN hush-6\r\nhush-7\r\nSTAT\r\nQUIT\r\n")
        dialogue.rest()
    server.wait_for_event("session_closed")
    log = server.log_text()
    assert "hush" not in log and PASSWORD not in log
    details = [event["detail"] for event in server.events("command_received")]
    assert details[0] == "(unknown command of 10 octets)"
    assert details[-2:] == ["STAT", "QUIT"]


def test_the_log_of_a_stopped_server_is_whole(server):
    """Every line is JSON with a known shape, from the first to broker_stopped."""
    server.pop().quit()
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
    assert lines[-1]["event"] == "broker_stopped"
    assert all({"ts", "level", "event", "process"} <= line.keys() for line in lines)


def _children(server: Server, argument: str) -> set[int]:
    """The processes under the broker that were started with this argument."""
    found = set()
    for pid in server.children():
        try:
            if argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    return found


def _wait_for_another(server: Server, kind: str, number: int = 0, known: list[int] | None = None) -> int:
    """Wait for a process of that kind beside the ones there are, and send it a signal at once."""
    before = _children(server, f"{kind}-process") if known is None else set(known)
    deadline = time.monotonic() + 30
    while not (found := _children(server, f"{kind}-process") - before):  # no pause: it is ready in a moment
        assert time.monotonic() < deadline, f"no other {kind} was started"
    (another,) = found
    os.kill(another, number)
    return another


def _waits_in(pid: int, call: str) -> bool:
    """Whether a process waits in a system call with this in its name; sleeps, where the kernel won't say."""
    try:
        where = Path(f"/proc/{pid}/wchan").read_text()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return call in where or (where == "0" and state == "S")


@pytest.mark.skipif(not ROOT, reason="needs root: without it there is no broker.pid")
def test_a_second_gpop_with_the_same_run_directory_does_not_start(make_server):
    """It says why; broker.pid and the control socket stay the first one's. When that one stops, it may."""
    server = make_server(server__grace_time_s=30)
    run_dir, config = server.site.path / "run", str(server.site.config)
    said = run_and_read("serve", "--config", config)
    text = f"{run_dir}: another gpop (process {server.process.pid}) has it; each needs one of its own"
    assert (said.returncode, said.stderr) == (1, f"gpop: server.run_dir: {text}\n")
    assert (run_dir / "broker.pid").read_text() == f"{server.process.pid}\n"
    assert run_and_read("who", "--config", config).returncode == 0
    with server.login() as dialogue:
        # Its session has the grace time, and the next gpop need not wait for that.
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_event("shutdown_started")
        with Server(server.site) as after:
            dialogue.ask("QUIT")
            server.stop()
            assert (run_dir / "broker.pid").read_text() == f"{after.process.pid}\n"
            assert run_and_read("who", "--config", config).returncode == 0


def run_and_read(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run gpop to its end."""
    return subprocess.run(gpop_command(*arguments), capture_output=True, text=True, check=False, timeout=60)
