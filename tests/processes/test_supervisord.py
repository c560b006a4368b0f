"""conf/supervisord.conf under the real supervisord: start, every kind of death, back-off, reload, stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving import PASSWORD, ROOT, Dialogue, Site, wait_until

CONF = Path(__file__).parent.parent.parent / "conf" / "supervisord.conf"
MESSAGE = b"Subject: one\n\nbody\n"

pytestmark = pytest.mark.skipif(
    shutil.which("supervisord") is None or shutil.which("supervisorctl") is None,
    reason="supervisord is not installed",
)


class Supervisor:
    """A supervisord of the test's own, with gpop as conf/supervisord.conf has it, but for paths."""

    def __init__(self, site: Site, **changes: str) -> None:
        self.site = site
        self.folder = site.path / "supervisor"
        self.folder.mkdir()
        self.config = self.folder / "supervisord.conf"
        self.log = self.folder / "stdout.log"
        program = CONF.read_text()
        # The one that is installed with Python, as an administrator has it, on a config of ours.
        command = f"{Path(sys.executable).with_name('gpop')} serve --config {site.config}"
        changes = {"command": command, "user": str(os.geteuid())} | changes
        program = program.replace("/var/log/gpop", str(self.folder))
        for name, value in changes.items():
            program, count = re.subn(rf"^{name}=.*$", f"{name}={value}", program, flags=re.MULTILINE)
            assert count == 1, name
        sock = self.folder / "supervisor.sock"
        self.config.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile={self.folder}/supervisord.log\npidfile={self.folder}/pid\n"
            f"childlogdir={self.folder}\nuser={os.geteuid()}\n"
            f"[unix_http_server]\nfile={sock}\n[supervisorctl]\nserverurl=unix://{sock}\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n" + program
        )
        self.process = subprocess.Popen(
            ["supervisord", "-c", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(sock.exists)

    def ctl(self, *arguments: str) -> str:
        """What `supervisorctl` says."""
        command = ["supervisorctl", "-c", str(self.config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout

    def state(self) -> str:
        return self.ctl("status", "gpop").split()[1]

    def pid(self) -> int:
        """The broker's."""
        return int(self.ctl("pid", "gpop"))

    def events(self, name: str) -> list[dict]:
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
        return [event for event in found if event["event"] == name]

    def wait_for_event(self, name: str, count: int = 1) -> dict:
        wait_until(lambda: len(self.events(name)) >= count, 60, lambda: f"{count} of {name}:\n{self.said()}")
        return self.events(name)[count - 1]

    def said(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.*") if path.is_file())

    def children(self, kind: str) -> list[int]:
        """The processes under the broker: "front-process", "auth-process", "broker" (sessions)."""
        broker, found = self.pid(), []
        for word in Path(f"/proc/{broker}/task/{broker}/children").read_text().split():
            try:
                if kind.encode() in Path(f"/proc/{word}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(word))
            except OSError:
                continue
        return found

    def login(self, name: str = "user0") -> Dialogue:
        port = int(self.events("broker_started")[-1]["listen"][0].rpartition(":")[2])
        dialogue = Dialogue(socket.create_connection(("127.0.0.1", port), 60))
        dialogue.line()
        dialogue.ask(f"USER {name}")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        return dialogue

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture
def supervised(make_site):
    """A function that has supervisord start gpop on a site with these settings."""
    supervisors = []

    def start(changes=None, accounts: int = 1, **settings) -> Supervisor:
        site = make_site(accounts=accounts, **settings)
        supervisors.append(Supervisor(site, **(changes or {})))
        return supervisors[-1]

    yield start
    for supervisor in supervisors:
        supervisor.stop()


def test_every_process_that_is_killed_is_there_again(supervised):
    """Front, auth, session and broker; what was marked is not removed by any of these deaths."""
    supervisor = supervised(changes={"startsecs": "0"})
    name = supervisor.site.deliver(MESSAGE)
    supervisor.wait_for_event("front_started")
    for number, kind in enumerate(("auth-process", "front-process"), 1):
        (victim,) = supervisor.children(kind)
        os.kill(victim, signal.SIGKILL)
        assert supervisor.wait_for_event("process_ended", number)["pid"] == victim
        supervisor.wait_for_event({"auth-process": "auth_started", "front-process": "front_started"}[kind], 2)
    with supervisor.login() as dialogue:
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        (session,) = supervisor.children("broker")
        os.kill(session, signal.SIGKILL)
        assert dialogue.rest() == b""
    assert supervisor.wait_for_event("session_died")["pid"] == session
    with supervisor.login() as dialogue:
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        broker = supervisor.pid()
        os.kill(broker, signal.SIGKILL)
        supervisor.wait_for_event("front_started", 3)
        assert supervisor.pid() != broker
        # A session needs no broker to come to its end; its maildrop is locked until then.
        assert dialogue.ask("RSET").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    with supervisor.login() as dialogue:
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert supervisor.site.files() == [name]
    assert supervisor.state() == "RUNNING"


def test_a_gpop_that_does_not_start_is_tried_again_with_pauses(supervised):
    """A wrong config: back-off, then FATAL, and the reason in gpop.err; mended, it starts."""
    supervisor = supervised(changes={"startretries": "1"}, server__fronts=0)
    wait_until(lambda: supervisor.state() == "FATAL", 60, supervisor.said)
    log = (supervisor.folder / "supervisord.log").read_text()
    tries = [line for line in log.splitlines() if "exited: gpop (exit status 2; not expected)" in line]
    assert len(tries) == 2
    assert "server.fronts" in (supervisor.folder / "gpop.err").read_text()
    supervisor.site.write_config(server__fronts=1)
    assert "started" in supervisor.ctl("start", "gpop")
    supervisor.wait_for_event("front_started")


def test_supervisorctl_reloads_and_upgrades(supervised):
    """`supervisorctl signal HUP` and `USR2`: the same broker to supervisord, and sessions go on."""
    supervisor = supervised(changes={"startsecs": "0"})
    supervisor.wait_for_event("front_started")
    broker = supervisor.pid()
    with supervisor.login() as dialogue:
        assert "signalled" in supervisor.ctl("signal", "HUP", "gpop")
        supervisor.wait_for_event("reload_finished")
        assert "signalled" in supervisor.ctl("signal", "USR2", "gpop")
        assert supervisor.wait_for_event("upgrade_finished")["pid"] == broker
        supervisor.wait_for_event("reload_finished", 2)
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert (supervisor.pid(), supervisor.state()) == (broker, "RUNNING")


@pytest.mark.skipif(not ROOT, reason="needs root: without it there is one account, and so one session")
def test_a_stop_leaves_sessions_their_time_and_removes_nothing_without_quit(supervised):
    """50 sessions: some quit within the grace time, the others are ended; theirs is not removed."""
    supervisor = supervised(changes={"startsecs": "0"}, accounts=50, server__grace_time_s=3)
    for name in supervisor.site.names:
        supervisor.site.deliver(MESSAGE, name)
    supervisor.wait_for_event("front_started")
    broker = supervisor.pid()
    with ThreadPoolExecutor(10) as pool:
        sessions = list(pool.map(supervisor.login, supervisor.site.names))
    for dialogue in sessions:
        assert dialogue.ask("DELE 1").startswith(b"+OK")
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(supervisor.ctl, "stop", "gpop")
        supervisor.wait_for_event("shutdown_started")
        for dialogue in sessions[:25]:
            assert dialogue.ask("QUIT").startswith(b"+OK")
        ends = [dialogue.rest() for dialogue in sessions]
        assert "stopped" in stopping.result(60)
    assert time.monotonic() - began < 45
    for dialogue in sessions:
        dialogue.close()
    assert all(not end or end.startswith(b"-ERR") for end in ends)
    left = [len(supervisor.site.files(name)) for name in supervisor.site.names]
    assert left == [0] * 25 + [1] * 25
    assert [event["sessions"] for event in supervisor.events("sessions_ended")] == [25]
    assert not os.path.exists(f"/proc/{broker}") and supervisor.state() == "STOPPED"


def test_the_time_for_a_stop_fits_the_grace_time():
    """supervisord kills no gpop that is still giving its sessions the time that the config says."""
    from gpop.broker.broker import END_TIMEOUT_S
    from gpop.config.settings import SETTINGS

    (grace_s,) = [setting.default for setting in SETTINGS if setting.key == "server.grace_time_s"]
    (waits_s,) = re.findall(r"^stopwaitsecs=(\d+)$", CONF.read_text(), re.MULTILINE)
    assert int(waits_s) >= grace_s + 2 * END_TIMEOUT_S
