"""SIGUSR2: the installed version takes over, in the same process, and nobody loses a connection."""

from __future__ import annotations

import os
import poplib
import signal
import subprocess
import threading
import time
import urllib.request

import pytest

import gpop
from loadtest import installation
from tests.serving import FAULTS, PASSWORD, ROOT, Server, Site, gpop_command, wait_until

MESSAGE = b"Subject: one\n\nbody\n"
UPGRADES = int(os.environ.get("GPOP_TEST_UPGRADES", "4"))
# What can be wrong with a version: a module, what stands there, what it is by mistake, what is said of it.
BROKEN = [
    ("broker/broker.py", "class Broker:", "class Broker", "SyntaxError"),
    ("broker/broker.py", "def take_over(self, state", "def take_over_not(self, state", "AttributeError"),
    ("broker/upgrade.py", "FORMAT = 1", "FORMAT = 2", "this upgrade needs a restart"),
    # It said "gpop.privsep.channel.ChannelClosed".
    (
        "session/session.py",
        "status, _, _ = _session(",
        "os.close(channel_fd) or (",
        "a session that was played",
    ),
    ("front/front.py", "import gevent\n", "import gevent_that_is_missing\n", "front ended"),
]


class Installation(installation.Installation):
    """One whose versions are told apart by more than their number."""

    def update(self, version: str) -> None:
        """Install a version which is known also by how its sessions say goodbye."""
        old = "bye" if self.version == gpop.__version__ else f"bye from {self.version}"
        super().update(version)
        self.change("session/conversation.py", f'ok("{old}")', f'ok("bye from {version}")')


@pytest.fixture
def installed(make_site):
    """A function that starts gpop from an installation of its own; returns both."""
    servers = []

    def start(site: Site | None = None, **settings) -> tuple[Server, Installation]:
        site = site or make_site(**settings)
        installation = Installation(site.path)
        servers.append(Server(site, program=installation.program))
        return servers[-1], installation

    yield start
    for server in servers:
        server.stop()


def upgrade(server: Server, count: int = 1) -> dict:
    """Have the broker take over what is installed, for the `count`th time."""
    server.process.send_signal(signal.SIGUSR2)
    return server.wait_for_event("upgrade_finished", count)


def test_old_sessions_end_in_the_old_code_and_new_ones_start_in_the_new(installed):
    """The same process and the same sockets; the old session's limit, lock and end are still known."""
    server, installation = installed(session__max_per_account=2, session__lock_wait_s=0.1)
    server.site.deliver(MESSAGE)
    broker = server.process.pid
    with server.login() as old, server.connect() as undecided:
        assert old.ask("DELE 1").startswith(b"+OK")
        before = server.children()
        installation.update("0.2.0")
        finished = upgrade(server)
        assert (finished["pid"], finished["version"]) == (broker, "0.2.0")
        assert finished["before"] == gpop.__version__
        server.wait_for_event("reload_finished")
        assert set(server.pids("session")) == {pid for pid, kind in before.items() if kind == "session"}
        # The lock is the old session's, and it counts among those of the account.
        with server.connect() as waiting:
            waiting.ask("USER user0")
            waiting.send(f"PASS {PASSWORD}\r\n".encode())
            assert waiting.line().startswith(b"-ERR [IN-USE]")
        assert old.ask("QUIT") == b"+OK bye"
        assert server.site.files() == []
        wait_until(lambda: not server.pids("session"))
        # It was greeted by an old front, and its login is decided by an old auth: served all the same.
        undecided.ask("USER user0")
        assert undecided.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        assert undecided.ask("QUIT") == b"+OK bye from 0.2.0"
    wait_until(lambda: len(server.children()) == 3, what=server.children)
    assert not server.events("session_died", "process_ended", "frame_rejected", "session_unreported")
    assert server.stop() == 0
    assert server.events()[-1]["event"] == "broker_stopped"


def test_an_upgrade_after_the_other_leaves_nothing_behind(installed):
    """`GPOP_TEST_UPGRADES` of them, with a session from before each: descriptors and processes as before."""
    server, installation = installed(accounts=2, accounts_cache__enabled=True)
    last = server.site.names[-1]
    server.site.deliver(MESSAGE, last)

    def held() -> tuple[int, list[str]]:
        return len(os.listdir(f"/proc/{server.process.pid}/fd")), sorted(server.children().values())

    with server.login(last) as dialogue:
        assert dialogue.ask("QUIT") == b"+OK bye"
    wait_until(lambda: not server.pids("session"))
    before, bye = held(), b"+OK bye"
    for count in range(1, UPGRADES + 1):
        with server.login(last) as old:
            installation.update(f"0.2.{count}")
            assert upgrade(server, count)["version"] == installation.version
            server.wait_for_event("reload_finished", count)
            assert old.ask("STAT") == f"+OK 1 {len(MESSAGE) + 3}".encode()
            assert old.ask("QUIT") == bye
        bye = f"+OK bye from {installation.version}".encode()
        with server.login() as new:
            assert new.ask("QUIT") == bye
        wait_until(lambda: held() == before, 30, what=lambda: f"{before}; {held()}")
    assert not server.faults()
    assert not server.events("upgrade_failed", "reload_failed", "process_stuck")
    assert server.stop() == 0


def test_limits_count_what_was_started_before(installed):
    """A session of before is one of its account's; when it dies the new broker says whose it was."""
    server, installation = installed(session__max_per_account=1)
    with server.login():
        (session,) = server.pids("session")
        installation.update("0.2.0")
        upgrade(server)
        with server.connect() as other:
            other.ask("USER user0")
            assert other.ask(f"PASS {PASSWORD}").startswith(b"-ERR [IN-USE]")
        assert server.wait_for_event("login_refused")["reason"] == "too_many_sessions"
        if ROOT:  # without root there is no folder for the control socket
            command = gpop_command("who", "--config", str(server.site.config))
            assert "user0" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        os.kill(session, signal.SIGKILL)
    died = server.wait_for_event("session_died")
    assert (died["pid"], died["account"], died["signal"]) == (session, "user0", "SIGKILL")
    assert died["peer"] == "127.0.0.1"
    server.pop().quit()


def test_a_version_that_does_not_start_leaves_the_old_one_serving(installed):
    """Of its broker, too, there is a trial; what is wrong is in the log; once mended, all goes well."""
    server, installation = installed()
    installation.update("0.2.0")
    with server.login() as dialogue:
        before = server.children()
        for count, (module, old, new, said) in enumerate(BROKEN, 1):
            installation.change(module, old, new)
            server.process.send_signal(signal.SIGUSR2)
            failed = server.wait_for_event("upgrade_failed", count)
            assert failed["kept_old"] and said in failed["problem"]
            wait_until(lambda: server.children() == before)
            installation.change(module, new, old)
        assert dialogue.ask("QUIT") == b"+OK bye"
    with server.login() as dialogue:
        assert dialogue.ask("QUIT") == b"+OK bye"
    upgrade(server)
    with server.login() as dialogue:
        assert dialogue.ask("QUIT") == b"+OK bye from 0.2.0"


def test_a_trial_leaves_the_brokers_numbers_as_they_are(installed):
    """A version that counts other things made them 0 while it was tried, and did not even take over."""
    server, installation = installed(metrics__listen=["127.0.0.1:0"])
    installation.update("0.2.0")
    old = 'RESTARTED = ("front", "auth", "metrics", "log")'
    installation.change("tally.py", old, old.replace(")", ', "another")'))
    trial = "    if trial:\n        try:\n"
    installation.change("broker/broker.py", trial, trial + '            raise RuntimeError("not yet")\n')
    server.process.send_signal(signal.SIGUSR2)
    assert "not yet" in server.wait_for_event("upgrade_failed")["problem"]
    url = "http://" + server.wait_for_event("metrics_started")["listen"][0] + "/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = answer.read().decode().splitlines()
    for event in ("broker_started", "upgrade_started", "upgrade_failed"):
        assert f'gpop_events_total{{event="{event}"}} 1.0' in found, found


def test_an_upgrade_with_a_config_that_is_refused_changes_nothing(installed):
    """The new version reads it first, and says what it does not like."""
    server, installation = installed()
    before = server.children()
    server.site.write_config(server__fronts=0)
    installation.update("0.2.0")
    server.process.send_signal(signal.SIGUSR2)
    assert "server.fronts" in server.wait_for_event("config_rejected")["problems"][0]
    assert server.children() == before
    with server.login() as dialogue:
        assert dialogue.ask("QUIT") == b"+OK bye"


def test_signals_during_an_upgrade_come_after_it(installed):
    """Reloads and upgrades that are asked for all at once, from the first moment on; and then a stop."""
    server, installation = installed()
    installation.update("0.2.0")
    server.process.send_signal(signal.SIGUSR2)
    server.wait_for_event("upgrade_started")
    # What the old broker could not act upon any more the new one does: the config may have changed since.
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("upgrade_finished")
    server.wait_for_event("reload_finished", 2)
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2):
        server.process.send_signal(number)
    while len(server.events("upgrade_finished")) < 2:
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)  # a signal in every moment of the upgrade, not a wait
    server.wait_for_event("reload_finished", 4)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert server.events()[-1]["event"] == "broker_stopped"
    assert not server.events("upgrade_failed", "reload_failed", "process_ended")


def test_processes_that_are_reused_end_with_their_login(make_site, installed):
    """They are old code: free ones end at once, the others after the login that they serve."""
    site = make_site()
    site.write_config(session__reuse_below=str(site.path / "home"))
    server, installation = installed(site)
    with server.login() as old:
        installation.update("0.2.0")
        upgrade(server)
        assert old.ask("QUIT") == b"+OK bye"
        wait_until(lambda: not server.pids("session"))
    with server.login() as new:
        assert new.ask("QUIT") == b"+OK bye from 0.2.0"
    assert not server.faults()


class Load(threading.Thread):
    """A client that polls, again and again, and counts what went wrong."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.port, self.account = port, name
        self.done, self.stopped, self.problems = 0, False, []

    def run(self) -> None:
        while not self.stopped:
            try:
                client = poplib.POP3("127.0.0.1", self.port, timeout=30)
                client.user(self.account)
                client.pass_(PASSWORD)
                assert client.stat()[0] == 1 and len(client.retr(1)[1]) == 3
                client.quit()
                self.done += 1
            except (OSError, poplib.error_proto, AssertionError) as error:
                self.problems.append(repr(error))


def test_reloads_and_upgrades_under_load_fail_nobody(installed):
    """Reloads and upgrades by turns, to another version each: no connection, login or reply is lost."""
    server, installation = installed(accounts=2)
    for name in server.site.names:
        server.site.deliver(MESSAGE, name)
    clients = [Load(server.port, name) for name in server.site.names]
    for client in clients:
        client.start()
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
        if number == signal.SIGUSR2:
            installation.update(f"{installation.version}.1")
        finished = len(server.events("reload_finished"))
        server.process.send_signal(number)
        server.wait_for_event("reload_finished", finished + 1)
        served = sum(client.done for client in clients)
        wait_until(lambda served=served: sum(client.done for client in clients) > served + 5)
    for client in clients:
        client.stopped = True
    for client in clients:
        client.join(30)
    problems = [problem for client in clients for problem in client.problems]
    assert problems == [], server.events("login_refused", *FAULTS)
    assert not server.faults()
    assert [event["version"] for event in server.events("upgrade_finished")] == ["0.1.0.1", "0.1.0.1.1"]
    assert server.stop() == 0
