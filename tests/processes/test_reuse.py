"""Session processes that serve one login after another (`session.reuse_below`)."""

from __future__ import annotations

import contextlib
import os
import poplib
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from gpop import events
from gpop.broker import reuse
from gpop.config import SessionSettings
from gpop.privsep import channel, messages
from gpop.privsep.confinement import Confinement
from gpop.session import session
from tests import frames
from tests.serving import PASSWORD, ROOT, Server, Site, wait_until

MESSAGE = b"Subject: one\n\nbody\n"


@pytest.fixture
def store(make_site):
    """A function that makes a site whose mail all belongs to one uid, and has its processes reused."""

    def make(accounts: int = 3, **settings: object) -> Site:
        site = make_site(accounts=accounts, one_uid=True, **settings)
        site.write_config(session__reuse_below=str(site.path / "home"))
        return site

    return make


@pytest.fixture
def server(store, make_server):
    """gpop on such a site."""
    return make_server(store())


def free_process(server: Server) -> int:
    """Wait until every session has ended and one process is left; returns its pid."""
    wait_until(lambda: len(server.pids("session")) == 1, what="one session process to be left")
    (pid,) = server.pids("session")
    wait_until(lambda: sockets_of(pid) == 1, what="its session to be over")
    return pid


def sockets_of(pid: int) -> int:
    """How many sockets a process has: the broker's channel, and those of a session."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += os.readlink(link).startswith("socket:")
        except OSError:
            continue
    return found


def poll(server: Server, name: str = "user0") -> list[bytes]:
    """One whole session; returns the unique-id listings."""
    client = server.pop(name)
    listings = client.uidl()[1]
    client.quit()
    return listings


def test_accounts_share_a_process(server):
    """One process serves account after account, each with its own mail."""
    names = server.site.names
    bases = {name: server.site.deliver(MESSAGE, name) for name in names}
    pids = set()
    for name in [*names, *names]:
        assert poll(server, name) == [f"1 {bases[name]}".encode()]
        pids.add(free_process(server))
    assert len(pids) == 1
    server.wait_for_event("session_closed", 2 * len(names))
    outcomes = [event["cache"] for event in server.events("session_closed")]
    assert outcomes == ["rebuild"] * len(names) + ["hit"] * len(names)
    assert server.faults() == []


@pytest.mark.skipif(not ROOT, reason="needs root: without it there is no other user and no jail")
def test_the_process_is_the_mail_user_jailed_in_the_store(server):
    """It can't get out of the store, nor root back, and holds nothing of the session before."""
    poll(server)
    pid = free_process(server)
    uid = server.site.uid("user0")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(uid)] * 4
    assert set(status["CapEff"] + status["CapPrm"]) == {"0"}
    assert os.readlink(f"/proc/{pid}/root") == str(server.site.path / "home")
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 4  # 0-2, the broker's channel


@pytest.mark.skipif(not ROOT, reason="needs root: without it there is one user only")
def test_other_users_and_other_places_share_nothing(store, make_server):
    """A login of another uid, or of a Maildir elsewhere, is never given to the process of the store."""
    site = store()
    elsewhere = site.path / "elsewhere"
    shutil.move(site.home("user1"), elsewhere)
    text = site.passwd.read_text().replace(str(site.home("user1")), str(elsewhere))
    lines = text.splitlines()
    other = site.uid("user2") + 1
    lines[2] = f"user2:{{PLAIN}}{PASSWORD}:{other}:{other}::{site.home('user2')}::"
    site.passwd.write_text("\n".join(lines) + "\n")
    for path in (site.home("user2"), *site.home("user2").rglob("*")):
        os.chown(path, other, other)
    server = make_server(site)
    poll(server, "user0")
    first = free_process(server)
    poll(server, "user1")
    wait_until(lambda: server.pids("session") == [first], what="the process of user1 to end")
    poll(server, "user2")
    assert len(set(server.pids("session")) - {first}) == 1
    poll(server, "user0")
    wait_until(lambda: sockets_of(first) == 1)
    assert server.faults() == []


def test_whatever_the_sessions_were_the_process_is_as_before(server):
    """Commands of all kinds, marks without QUIT, broken lines: no descriptor, no lock, no mark is left."""
    for _ in range(4):
        server.site.deliver(MESSAGE)
    poll(server)
    pid = free_process(server)
    for turn in range(10):
        name = server.site.names[turn % len(server.site.names)]
        with server.login(name) as dialogue:
            for command in ("LIST", "RETR 1", "TOP 1 0", "DELE 1", "XYZZY", "UIDL 9"):
                dialogue.send(command.encode() + b"\r\n")
        free_process(server)
    assert free_process(server) == pid
    assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 4
    assert len(server.site.files()) == 4
    client = server.pop()
    client.dele(1)
    client.quit()
    assert len(server.site.files()) == 3
    assert server.faults() == []


def test_a_killed_process_is_replaced(server):
    """kill -9 of a process that serves: logged, nothing removed; the next login has another one."""
    server.site.deliver(MESSAGE)
    poll(server)
    pid = free_process(server)
    with server.login() as dialogue:
        dialogue.ask("DELE 1")
        os.kill(pid, signal.SIGKILL)
        died = server.wait_for_event("session_died")
        assert server.wait_for_event("session_closed", 2)["login_id"] == died["login_id"]
    assert len(poll(server)) == 1
    second = free_process(server)
    assert second != pid
    os.kill(second, signal.SIGKILL)  # and one that waits
    wait_until(lambda: not Path(f"/proc/{second}").exists() or server.pids("session") == [])
    assert len(poll(server)) == 1


def test_what_went_wrong_goes_wrong_once(server):
    """A maildrop that can't be used ends the process: the next login has a new one."""
    poll(server)
    pid = free_process(server)
    (server.site.maildir() / "cur").rmdir()
    with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
        server.pop()
    wait_until(lambda: pid not in server.pids("session"))
    (server.site.maildir() / "cur").mkdir()
    server.site.own(server.site.maildir() / "cur", "user0")
    assert poll(server) == []


def test_a_replaced_maildir_is_seen(server):
    """Every login opens its Maildir anew: another one in its place is what the client gets."""
    server.site.deliver(MESSAGE)
    assert len(poll(server)) == 1
    pid = free_process(server)
    server.site.maildir().rename(server.site.home() / "old")
    server.site.make_home("user0")
    assert poll(server) == []
    shutil.rmtree(server.site.maildir())
    assert poll(server) == []
    assert server.wait_for_event("session_closed", 3)["cache_reason"] == "maildir_absent"
    shutil.rmtree(server.site.home())
    assert free_process(server) == pid
    # A home that is missing may be one that is not mounted: no empty maildrop.
    with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
        server.pop()


def test_signals_between_two_sessions_are_ignored(server):
    """One that was meant for a session that has just ended harms neither the process nor the next login."""
    poll(server)
    pid = free_process(server)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    poll(server)
    assert free_process(server) == pid


def test_a_process_that_ends_last_does_not_keep_gpop_from_stopping(server):
    """Fronts and auth have ended and no session runs: what waits for a login is reaped all the same."""
    poll(server)
    os.kill(free_process(server), signal.SIGSTOP)
    assert server.stop(timeout_s=20) == 0


def test_a_newer_login_takes_over(store, make_server):
    """The signal for a silent session reaches the process that has it, and the newer login is served."""
    server = make_server(store(session__takeover_after_s=0))
    server.site.deliver(MESSAGE)
    with server.login() as older:
        older.ask("DELE 1")
        assert len(poll(server)) == 1
        assert older.rest() == b""
    assert server.wait_for_event("session_closed", close_reason="takeover")
    assert len(server.site.files()) == 1


def test_the_limit_per_account_counts_sessions_not_processes(store, make_server):
    """A process that waits for a login is nobody's session."""
    server = make_server(store(session__max_per_account=1, session__lock=False))
    for _ in range(5):
        poll(server)
        free_process(server)
    with server.login(), pytest.raises(poplib.error_proto, match="IN-USE"):
        server.pop()


def test_a_reload_ends_what_waits(server):
    """After SIGHUP logins have processes with the new settings; a session under way goes on with its own."""
    for _ in range(2):
        server.site.deliver(MESSAGE)
    poll(server)
    old = free_process(server)
    with server.login() as dialogue:
        server.site.write_config(session__max_messages=1)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_event("reload_finished")
        assert dialogue.ask("STAT").startswith(b"+OK 2 ")
    wait_until(lambda: old not in server.pids("session"))
    assert len(poll(server)) == 1


def test_a_stop_waits_for_sessions_and_leaves_nobody(server):
    """SIGTERM: a process that waits ends at once, one that serves after the grace time, removing nothing."""
    server.site.deliver(MESSAGE)
    poll(server)
    free_process(server)
    with server.login() as dialogue:
        dialogue.ask("DELE 1")
        pids = server.pids("session")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert dialogue.rest() == b""
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(server.site.files()) == 1


# The broker's side by itself


class Waiting:
    """The broker's loop, as far as `Reuse` sees it, and its log."""

    def __init__(self, tmp_path: Path) -> None:
        self.handlers = {}
        self.freed: list[int] = []
        self.log_path = tmp_path / "log"
        self.log_path.touch()
        self.log = events.Log(os.open(self.log_path, os.O_WRONLY), "broker", False)
        watch, unwatch = self.handlers.__setitem__, self.handlers.__delitem__
        self.reuse = reuse.Reuse(self.log, watch, unwatch, self.freed.append)
        values = dict.fromkeys(SessionSettings.__dataclass_fields__, None)
        self.reuse.adopt(SessionSettings(**values | {"reuse_below": "/store"}), None, Confinement(b""))

    def serve(self) -> int:
        """Have a login served that nobody waits for; returns the pid."""
        login = frames.serve(maildir=b"/store/a", home=b"/store")
        assert self.reuse.is_for(messages.maildrop_key(login))
        ours, theirs = channel.pair()
        with contextlib.closing(ours), contextlib.closing(theirs):
            return self.reuse.serve(login, [ours.fileno(), theirs.fileno()])


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """It, with processes that say what `says` holds and then wait for their end."""

    def run_again(_login, _client, _channel_fd, control_fd, *_):
        try:
            os.closerange(3, control_fd)
            os.closerange(control_fd + 1, 1 << 16)
            control = socket.socket(fileno=control_fd)
            for octets in waiting.says:
                channel.send(control, octets)
            while True:
                channel.receive_octets(control, messages.MAX_SERVE_OCTETS)
        finally:
            os._exit(0)

    monkeypatch.setattr(session, "run_again", run_again)
    waiting = Waiting(tmp_path)
    waiting.says = [session.FREE]
    yield waiting
    for pid in list(waiting.reuse.pids()):
        waiting.reuse.ended(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_a_process_may_say_is_one_word(waiting):
    """A process that was taken over has no other frame, and no second one: it is killed and logged."""
    for says in ([b"?" * 200], [messages.encode(messages.DRAIN, at_once=0)], [session.FREE, session.FREE]):
        waiting.says = says
        pid = waiting.serve()

        def killed(pid: int = pid) -> bool:
            waiting.reuse.look(pid)
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

        wait_until(killed)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert waiting.reuse.ended(pid)
        assert not waiting.handlers
    assert waiting.log_path.read_text().count("frame_rejected") == 3


def test_a_channel_that_can_not_be_read_ends_a_process_and_not_gpop(waiting):
    """An error of the kernel's, no memory for a second say, was one of the broker's own."""
    pid = waiting.serve()
    process = waiting.reuse._processes[pid]
    unconnected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.dup2(unconnected.fileno(), process.control.fileno())
    unconnected.close()
    waiting.reuse.look(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)
    assert waiting.reuse.ended(pid)
    assert "frame_rejected" in waiting.log_path.read_text()


def test_processes_that_wait_too_long_or_served_enough_end(waiting, monkeypatch):
    """The last one busy is the first taken; idle ones are let go, and so is one with enough logins."""
    pid = waiting.serve()
    wait_until(lambda: (waiting.reuse.look(pid), waiting.freed == [pid])[1])
    assert waiting.serve() == pid
    assert waiting.serve() != pid
    waiting.reuse.end_idle(time.monotonic() + reuse.IDLE_S + 1)
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None  # it serves
    monkeypatch.setattr(reuse, "MOST_LOGINS", 1)
    waiting.reuse.end()
    waiting.reuse._is_free(waiting.reuse._processes[pid])
    assert os.waitpid(pid, 0) == (pid, 0)
    assert waiting.reuse.ended(pid)


def test_is_for_the_store_alone(waiting):
    """A path that only begins with the same letters is another place."""

    def key(maildir: bytes) -> bytes:
        return messages.maildrop_key(frames.serve(maildir=maildir))

    assert waiting.reuse.is_for(key(b"/store/a/Maildir"))
    assert not waiting.reuse.is_for(key(b"/store2/a"))
    assert not waiting.reuse.is_for(key(b"/store"))
