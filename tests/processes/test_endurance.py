"""Processes that die, stop and are replaced; peers that are slow, silent or many."""

from __future__ import annotations

import ctypes
import json
import os
import poplib
import pty
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.serving import PASSWORD, ROOT, Server, wait_until

MESSAGE = b"Subject: one\n\nbody\n"
SO_ATTACH_FILTER = 26  # asm-generic/socket.h


@pytest.mark.parametrize("kind", ["auth", "front"])
def test_a_killed_process_is_started_again(server, kind):
    """kill -9 of auth or a front: an open session goes on, and the next login is served."""
    server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        (victim,) = server.pids(kind)
        os.kill(victim, signal.SIGKILL)
        ended = server.wait_for_event("process_ended", ended=kind)
        assert ended["signal"] == "SIGKILL"
        wait_until(lambda: server.pids(kind) not in ([], [victim]))
        assert dialogue.ask("STAT") == b"+OK 1 22"
        assert dialogue.ask("QUIT").startswith(b"+OK")

    def served():
        try:
            server.pop().quit()
        except (OSError, poplib.error_proto):
            return False
        return True

    wait_until(served)


def test_a_killed_session_removes_nothing_and_is_logged(server):
    """kill -9 of a session: one fault line with login id and signal, nothing removed, lock gone."""
    name = server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        dialogue.ask("DELE 1")
        (victim,) = server.pids("session")
        os.kill(victim, signal.SIGKILL)
        died = server.wait_for_event("session_died")
        assert died["signal"] == "SIGKILL"
        assert server.wait_for_event("session_closed")["login_id"] == died["login_id"]
        assert dialogue.rest() == b""
    assert server.site.files() == [name]
    server.pop().quit()


def test_sessions_outlive_a_killed_broker(make_server):
    """kill -9 of the broker: fronts and auth end, a session goes on to its QUIT."""
    server = make_server()
    server.site.deliver(MESSAGE)
    with server.login() as dialogue:
        others = [pid for kind in ("auth", "front") for pid in server.pids(kind)]
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        dialogue.ask("DELE 1")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert server.site.files() == []
    wait_until(lambda: not any(_runs(pid) for pid in others))


def test_a_reload_ends_no_session_and_loses_no_connection(server):
    """SIGHUP: a session and a peer before login carry on, new logins get the new settings."""
    server.site.deliver(MESSAGE)
    with server.login() as session, server.connect() as waiting:
        server.site.write_config(session__max_messages=1)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_event("reload_finished")
        server.site.deliver(MESSAGE)
        assert session.ask("STAT") == b"+OK 1 22"
        session.ask("QUIT")
        waiting.ask("USER user0")
        assert waiting.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        waiting.ask("QUIT")
        with server.login() as new:
            assert new.ask("STAT").startswith(b"+OK 1 ")
    wait_until(lambda: len(server.pids("front")) == 1 and len(server.pids("auth")) == 1)


def test_logins_all_through_a_reload(server):
    """While gpop reloads again and again, every connection is accepted and served."""
    for reload in range(1, 4):
        server.process.send_signal(signal.SIGHUP)
        while len(server.events("reload_finished")) < reload:
            server.pop().quit()
    assert not server.events("process_ended", "login_refused", "session_died")


def test_a_broken_config_changes_nothing_and_says_why(server):
    """SIGHUP with a broken file: the old settings stay in force; the log names each problem."""
    server.site.write_config(session__autologout_s="soon", session__jial="home")
    server.process.send_signal(signal.SIGHUP)
    rejected = server.wait_for_event("config_rejected")
    text = " ".join(rejected["problems"])
    assert "session.autologout_s" in text and "session.jial" in text
    server.pop().quit()


def test_sigterm_gives_sessions_the_grace_time(make_server):
    """SIGTERM: no new connections; a session may finish; one that does not is ended, removing nothing."""
    server = make_server(server__grace_time_s=2)
    name = server.site.deliver(MESSAGE)
    with server.connect() as idle, server.login() as dialogue:
        dialogue.ask("DELE 1")
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_event("shutdown_started")
        assert idle.rest() == b""
        with pytest.raises(OSError):
            server.connect()
        assert dialogue.ask("STAT") == b"+OK 0 0"
        assert dialogue.rest() == b""
    assert server.process.wait(20) == 0
    assert server.events("session_closed")[-1]["close_reason"] == "shutdown"
    assert server.site.files() == [name]


def test_closing_the_terminal_stops_a_server_that_was_started_on_it(make_site):
    """On a terminal SIGHUP also means that the terminal is gone: nobody could stop it any more."""
    site = make_site(log__format="auto")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "gpop", "serve", "--config", str(site.config)])
    shown = b""
    while b"broker_started" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    ended: list[int] = []

    def has_ended():
        if not ended and os.waitpid(pid, os.WNOHANG)[0]:
            ended.append(pid)
        return bool(ended)

    wait_until(has_ended)


def test_serve_refuses_a_broken_config(make_site):
    """Every problem at once, with its key and what would be right; exit status 2, nothing started."""
    site = make_site(server__fronts=0, session__jail="cellar")
    server = Server(site, ready=False)
    assert server.process.wait(30) == 2
    text = server.log_text()
    assert "server.fronts" in text and "session.jail" in text and "maildir" in text


def test_an_address_in_use_is_said_plainly(server, make_site):
    """A second server on the same port ends with the address in its message."""
    other = Server(make_site(server__listen=[f"127.0.0.1:{server.port}"]), ready=False)
    assert other.process.wait(30) == 1
    assert f"127.0.0.1:{server.port}" in other.log_path.read_text()


def test_a_second_login_is_told_in_use(make_server):
    """While a session holds the maildrop, another gets [IN-USE]; after QUIT it is free at once."""
    server = make_server(session__lock_wait_s=0.2)
    with server.login() as first:
        with server.connect() as second:
            second.ask("USER user0")
            assert second.ask(f"PASS {PASSWORD}").startswith(b"-ERR [IN-USE]")
        assert first.ask("QUIT").startswith(b"+OK")
        server.pop().quit()


def test_a_newer_login_takes_over_from_a_silent_peer(make_server):
    """A half-dead connection does not keep its user out: silent for takeover_after_s, it ends."""
    server = make_server(session__takeover_after_s=0, session__lock_wait_s=10)
    name = server.site.deliver(MESSAGE)
    with server.login() as silent:
        silent.ask("DELE 1")
        server.pop().quit()
        assert silent.rest() == b""
    assert server.wait_for_event("session_closed", close_reason="takeover")
    assert server.site.files() == [name]


def test_autologout_is_silent_and_removes_nothing(make_server):
    """After the time-out the server closes without a reply (RFC 1939 §3), before login and after."""
    server = make_server(session__autologout_s=0.5, server__login_timeout_s=0.5)
    name = server.site.deliver(MESSAGE)
    with server.connect() as idle, server.login() as dialogue:
        dialogue.ask("DELE 1")
        assert idle.rest() == b""
        assert dialogue.rest() == b""
    assert server.wait_for_event("session_closed")["close_reason"] == "autologout"
    assert server.site.files() == [name]


def test_a_slow_reader_is_not_logged_out(make_server):
    """A client that drains a RETR slowly is at work: the timer does not fire, every octet arrives."""
    server = make_server(session__autologout_s=2)
    line = b"x" * 98 + b"\n"
    server.site.deliver(line * 80_000)  # 8 MB: more than the kernel's buffers take
    with server.login() as dialogue:
        dialogue.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        dialogue.send(b"RETR 1\r\n")
        received = bytearray()
        started = time.monotonic()
        while not received.endswith(b"\r\n.\r\n"):
            octets = dialogue.socket.recv(65536)
            assert octets, f"cut off after {len(received)} octets"
            received += octets
            if time.monotonic() - started < 4:
                threading.Event().wait(0.05)
        assert received.count(b"\r\n") == 80_000 + 2
        dialogue.send(b"QUIT\r\n")
        assert dialogue.socket.recv(100).startswith(b"+OK")


def test_a_very_slow_reader_is_not_logged_out_either(make_server):
    """The kernel wakes a writer when a third of its buffer is free, maybe long after the time-out."""
    server = make_server(session__autologout_s=2)
    server.site.deliver(b"x" * 12_000_000 + b"\n")
    with server.login() as dialogue:
        dialogue.send(b"RETR 1\r\n")
        received, started = 0, time.monotonic()
        while received < 12_000_000:
            octets = dialogue.socket.recv(65536)
            assert octets, f"cut off after {received} octets"
            received += len(octets)
            if time.monotonic() - started < 8:
                threading.Event().wait(0.3)
        # The message ends with its line end and the terminator, which may have come already.
        dialogue.send(b"NOOP\r\n")
        tail = b""
        while not tail.endswith(b"+OK\r\n"):
            octets = dialogue.socket.recv(65536)
            assert octets, "cut off before the reply to NOOP"
            tail += octets
        assert dialogue.ask("QUIT").startswith(b"+OK")


@pytest.mark.skipif(not ROOT, reason="needs root: it takes the client's packets away")
def test_a_client_that_left_the_network_in_the_middle_is_taken_over_from(make_server):
    """With octets on their way that nobody acknowledges, it is silent: its user is not kept out."""
    server = make_server(session__takeover_after_s=1, session__lock_wait_s=2)
    name = server.site.deliver(b"x" * 30_000_000)
    with server.login() as lost:
        lost.ask("DELE 1")
        lost.ask("RSET")
        lost.ask("RETR 1")
        # From here on its kernel throws away what comes, as if the network were gone.
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(nothing))
        lost.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        (session,) = server.pids("session")
        wait_until(lambda: _blocked(session))

        def served() -> bool:
            try:
                server.pop().quit()
            except poplib.error_proto:
                return False
            return True

        wait_until(served)
    assert server.wait_for_event("session_closed", close_reason="takeover")
    assert server.site.files() == [name]


def test_a_client_that_stops_reading_costs_no_memory(make_server):
    """A RETR that nobody reads: the session holds one chunk, however large the message is."""
    server = make_server()
    private_kib = []
    for size in (5_000_000, 50_000_000):
        server.site.deliver(b"x" * size + b"\n")
        with server.login() as dialogue:
            (session,) = server.pids("session")
            dialogue.send(b"RETR 1\r\n")
            wait_until(lambda pid=session: _blocked(pid))
            private_kib.append(_private_kib(session))
            (front,) = server.pids("front")
            assert _private_kib(front) < 60_000
            assert server.connect().ask("CAPA").startswith(b"+OK")
        wait_until(lambda: not server.pids("session"))
        for name in server.site.files():
            (server.site.maildir() / "new" / name).unlink()
    assert abs(private_kib[1] - private_kib[0]) < 512


def test_a_message_larger_than_a_session_may_be_is_sent(make_server):
    """session.memory_limit_mib bounds what a session takes, and a message takes a piece of it at a time."""
    server = make_server(session__memory_limit_mib=96)
    name, size = server.site.deliver(b"Subject: large\n\n"), 110 << 20
    os.truncate(server.site.maildir() / "new" / name, size)
    with server.login() as dialogue:
        (octets,) = [int(line.split()[1]) for line in dialogue.ask("LIST 1").split(b"OK ")[1:]]
        assert octets > size
        assert dialogue.ask("TOP 1 0").startswith(b"+OK")
        assert dialogue.lines() == [b"Subject: large", b""]
        assert dialogue.ask("RETR 1").startswith(b"+OK")
        left = octets + len(b".\r\n")
        while left:
            left -= len(dialogue.file.read(min(left, 1 << 20)))
        assert dialogue.ask("QUIT").startswith(b"+OK")


def test_a_message_truncated_while_it_is_sent_ends_that_session(server):
    """SIGBUS, or a fault between two windows: nothing removed, the server goes on."""
    name = server.site.deliver(b"x" * 30_000_000)
    with server.login() as dialogue:
        dialogue.ask("RETR 1")
        path = server.site.maildir() / "new" / name
        os.truncate(path, 1000)
        dialogue.rest()
    assert server.wait_for_event("session_closed")["close_reason"] == "fault"
    assert all(died["signal"] == "SIGBUS" for died in server.events("session_died"))
    assert server.site.files() == [name]
    server.pop().quit()


def test_thousands_of_replies_leave_in_one_batch(server):
    """As many as one writev would not take; each line is answered."""
    with server.login() as dialogue:
        dialogue.send(b"\n" * 4096 * 3 + b"QUIT\r\n")
        replies = dialogue.rest().splitlines()
    assert replies == [b"-ERR Unknown command"] * 4096 * 3 + [b"+OK bye"]


def test_idle_and_slow_peers_delay_nobody(server):
    """1,000 idle connections and 50 that send an octet now and then: a login beside them is answered."""
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(1000)]
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    try:
        for sock in slow:
            sock.sendall(b"U")
        before = time.monotonic()
        server.pop().quit()
        assert time.monotonic() - before < 5
    finally:
        for sock in idle + slow:
            sock.close()
    server.pop().quit()


def test_a_log_reader_that_stalls_never_stalls_the_service(make_site):
    """With its log pipe full gpop serves on; what was lost is counted once there is room again."""
    site = make_site(accounts__refusal_time_s=0.01, log__level="debug")
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpop", "serve", "--config", str(site.config)], stdout=writing
    )
    os.close(writing)
    log = os.fdopen(reading, "rb")
    try:
        events = iter(json.loads(line) for line in log)
        started = next(event for event in events if event["event"] == "broker_started")
        port = int(started["listen"][0].rpartition(":")[2])
        for _ in range(60):
            for _ in range(2):
                client = poplib.POP3("127.0.0.1", port, timeout=20)
                client.user("user0")
                client.pass_(PASSWORD)
                client.quit()
        # The pipe holds 64 KiB; by now more was written. Let it run empty, and have one more line.
        dropped: list[dict] = []
        reader = threading.Thread(
            target=lambda: dropped.extend(event for event in events if event["event"] == "log_lines_dropped")
        )
        reader.start()
        client = poplib.POP3("127.0.0.1", port, timeout=20)
        client.quit()
        wait_until(lambda: bool(dropped))
    finally:
        process.terminate()
        process.wait(40)
    reader.join(20)
    log.close()
    assert dropped[0]["lines"] > 0


@pytest.mark.skipif(not ROOT, reason="needs several accounts, and so root")
def test_random_kills_under_load(make_server):
    """Kills of fronts, auth and sessions while clients poll and drain: nothing lost, doubled or left over."""
    kills = int(os.environ.get("GPOP_TEST_KILLS", "40"))
    server = make_server(accounts=4, session__lock_wait_s=10, session__takeover_after_s=0)
    names = server.site.names
    delivered = {name: set() for name in names}
    received: dict[str, list[bytes]] = {name: [] for name in names}
    # Fetched whole and marked, but the session broke off at its QUIT: it may have been carried out.
    unsure: dict[str, set[bytes]] = {name: set() for name in names}
    stop = threading.Event()
    before = {pid: _descriptors(pid) for pid in [server.process.pid]}

    def drain(name: str) -> None:
        """Fetch and remove; only what was removed by an answered QUIT counts as received."""
        while not stop.is_set():
            fetched: list[bytes] = []
            try:
                client = server.pop(name)
                for number in range(1, client.stat()[0] + 1):
                    fetched.append(client.retr(number)[1][0])
                    client.dele(number)
                client.quit()
            except (OSError, EOFError, poplib.error_proto):
                unsure[name].update(fetched)
            else:
                received[name].extend(fetched)

    def deliver() -> None:
        number = 0
        while not stop.is_set():
            name = names[number % len(names)]
            number += 1
            line = f"Subject: {name} {number}".encode()
            delivered[name].add(line)
            server.site.deliver(line + b"\n\nbody\n", name)
            stop.wait(0.01)

    threads = [threading.Thread(target=drain, args=(name,)) for name in names]
    threads.append(threading.Thread(target=deliver))
    for thread in threads:
        thread.start()
    chance = random.Random(1939)
    try:
        for _ in range(kills):
            victims = server.children()
            kind = chance.choice(["front", "auth", "session", "session", "session"])
            candidates = [pid for pid, name in victims.items() if name == kind]
            if candidates:
                try:
                    os.kill(chance.choice(candidates), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            stop.wait(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    wait_until(lambda: not server.pids("session"), 60)
    for name in names:
        left = {_first_line(server.site.maildir(name), file) for file in server.site.files(name)}
        got = received[name]
        assert len(got) == len(set(got)), "a message was received and removed twice"
        assert not left & set(got), "a message was removed and is still there"
        assert left | set(got) <= delivered[name]
        assert delivered[name] - left - set(got) <= unsure[name], "a message is lost"
    wait_until(lambda: len(server.pids("front")) == 1 and len(server.pids("auth")) == 1, 60)
    assert not [pid for pid in server.children() if _state(pid) == "Z"]
    assert not server.events("process_fault", "frame_rejected")
    wait_until(lambda: _descriptors(server.process.pid) <= before[server.process.pid] + 2)
    _assert_nothing_grows(server)


def _assert_nothing_grows(server: Server) -> None:
    """Descriptors and memory of broker, auth and front after 300 polls are what they were after 30."""
    lasting = [server.process.pid, *server.pids("front"), *server.pids("auth")]

    def poll(times: int) -> dict[int, tuple[int, int]]:
        for number in range(times):
            server.pop(server.site.names[number % len(server.site.names)]).quit()
        wait_until(lambda: not server.pids("session"))
        return {pid: (_descriptors(pid), _private_kib(pid)) for pid in lasting}

    first, last = poll(30), poll(300)
    for pid in lasting:
        assert last[pid][0] <= first[pid][0] + 2
        assert last[pid][1] <= first[pid][1] + 1024


def _first_line(maildir: Path, file: str) -> bytes:
    for folder in ("new", "cur"):
        path = maildir / folder / file
        if path.exists():
            return path.read_bytes().partition(b"\n")[0]
    raise AssertionError(f"{file} is in neither folder")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state(pid) != "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _private_kib(pid: int) -> int:
    # Clean pages are a file's: they are private or shared as another gpop of the same files comes and goes.
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))


def _blocked(pid: int) -> bool:
    """Whether a process waits in a system call and has used no time for a while."""

    def ticks() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = ticks()
    time.sleep(0.3)
    return ticks() == before
