"""
What gpop has to do with systemd, as far as that can be tried without it as process 1.

Readiness and watchdog go to a socket of the test's, sockets come from systemd-socket-activate, the units are
checked by systemd-analyze; that the units work in a system which was booted by systemd is untested.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Dialogue, Server, gpop_command, wait_until

CONF = Path(__file__).parent.parent.parent / "conf"
UNITS = ("gpop.service", "gpop.socket", "gpop-tls.socket")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or shutil.which("systemd-socket-activate") is None,
    reason="systemd-analyze and systemd-socket-activate are not installed",
)


class Manager:
    """A service manager's end of NOTIFY_SOCKET: it keeps what it is told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path.replace("@", "\0"))
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def told(self) -> list[str]:
        """All that it was told so far."""
        try:
            while octets := self.socket.recv(4096):
                self.lines += octets.decode().splitlines()
        except BlockingIOError:
            return self.lines

    def wait_for(self, line: str, count: int = 1) -> None:
        """Wait until it was told this so often."""
        wait_until(lambda: self.told().count(line) >= count, what=lambda: f"{count} of {line}: {self.lines}")


@pytest.fixture
def managed(make_site):
    """A function that starts gpop under a manager; returns both."""
    servers = []

    def start(watchdog_s: float = 0, name: str = "", **settings) -> tuple[Server, Manager]:
        site = make_site(**settings)
        manager = Manager(name or str(site.path / "notify"))
        environment = {"NOTIFY_SOCKET": manager.path}
        if watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        servers.append(Server(site, environment=environment))
        return servers[-1], manager

    yield start
    for server in servers:
        server.stop()


def test_the_service_manager_is_told_when_gpop_is_ready_and_when_it_stops(managed):
    """READY after the fronts accept, RELOADING around reloads and upgrades, STOPPING with its time."""
    server, manager = managed(server__answer_timeout_s=3, server__grace_time_s=7)
    manager.wait_for("READY=1")
    assert server.events("front_started"), "the fronts answer after they have begun to accept"
    with server.login():
        manager.wait_for("STATUS=1 sessions; fronts: 1")
    server.process.send_signal(signal.SIGHUP)
    manager.wait_for("READY=1", 2)
    server.process.send_signal(signal.SIGUSR2)
    manager.wait_for("READY=1", 3)
    server.site.write_config(server__fronts=0)
    server.process.send_signal(signal.SIGHUP)
    manager.wait_for("READY=1", 4)
    assert server.stop() == 0
    told = [line for line in manager.told() if not line.startswith(("STATUS", "MONOTONIC"))]
    # On a busy machine an answer comes late, and READY is said once more for it.
    told = [line for line, _ in itertools.groupby(told)]
    assert told == ["READY=1", *["RELOADING=1", "READY=1"] * 3, "STOPPING=1", "EXTEND_TIMEOUT_USEC=17000000"]


def test_the_watchdog_is_fed_while_fronts_and_auth_answer(managed):
    """Not while the front hangs; again when another has taken its place. In the abstract namespace, too."""
    server, manager = managed(watchdog_s=0.6, server__answer_timeout_s=3, name=f"@gpop-test-{os.getpid()}")
    manager.wait_for("WATCHDOG=1", 3)
    (front,) = server.pids("front")
    os.kill(front, signal.SIGSTOP)
    before = len(manager.told())
    server.wait_for_event("process_stuck")
    # What was under way when it was stopped may have been answered; in this time it would be told 15 times.
    assert manager.told()[before:].count("WATCHDOG=1") <= 3
    fed = manager.told().count("WATCHDOG=1")
    manager.wait_for("WATCHDOG=1", fed + 2)
    assert server.pids("front") not in ([], [front])


@pytest.mark.skipif(not ROOT, reason="needs root: it looks at the environment of a session's process")
def test_nothing_of_the_service_manager_reaches_a_session(managed):
    """Neither the name of its socket nor a descriptor: what runs as a mail user can tell it nothing."""
    server, manager = managed(watchdog_s=20)
    with server.login():
        for pid in [server.process.pid, *server.children()]:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert not re.search(rb"NOTIFY|WATCHDOG|LISTEN", environment), environment
    manager.wait_for("READY=1")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture
def activated(make_site):
    """A function that has systemd listen on ports with these names, and start gpop when somebody connects."""
    servers = []

    def start(names: str, site=None, **settings) -> tuple[Server, list[int]]:
        ports = free_ports(names.count(":") + 1)
        listen = [f"--listen=127.0.0.1:{port}" for port in ports]
        activate = [shutil.which("systemd-socket-activate"), f"--fdname={names}", *listen]
        servers.append(Server(site or make_site(**settings), ready=False, started_by=activate))
        wait_until(lambda: "Listening on" in servers[-1].log_path.read_text())
        return servers[-1], ports

    yield start
    for server in servers:
        server.stop()


@needs_systemd
@pytest.mark.skipif(not ROOT, reason="needs root: it looks at the environment of a session's process")
def test_sockets_of_systemd_are_served_in_clear_and_with_tls(activated, tmp_path):
    """Who connected before there was a gpop is served; a reload and an upgrade keep the sockets."""
    authority = Authority(tmp_path)
    pair = list(authority.issue("localhost"))
    server, (plain, tls) = activated("plain:tls", tls__certificates=[pair])
    with Dialogue(socket.create_connection(("127.0.0.1", plain), 20)) as first:
        assert first.line().startswith(b"+OK")
        started = server.wait_for_event("broker_started")
        assert (started["listen"], started["listen_tls"]) == ([f"127.0.0.1:{plain}"], [f"127.0.0.1:{tls}"])
        for number, event in ((0, "front_started"), (signal.SIGHUP, "reload_finished"),
                              (signal.SIGUSR2, "upgrade_finished")):  # fmt: skip
            server.process.send_signal(number)
            server.wait_for_event(event)
            sock = socket.create_connection(("127.0.0.1", tls), 20)
            sock = authority.client_context().wrap_socket(sock, server_hostname="localhost")
            with (
                Dialogue(sock) as encrypted,
                Dialogue(socket.create_connection(("127.0.0.1", plain), 20)) as clear,
            ):
                assert encrypted.line().startswith(b"+OK") and clear.line().startswith(b"+OK")
        first.ask("USER user0")
        assert first.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        for pid in [server.process.pid, *server.children()]:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it drained, and ended
                assert not re.search(rb"NOTIFY|LISTEN", Path(f"/proc/{pid}/environ").read_bytes())
        assert first.ask("QUIT").startswith(b"+OK")
    assert server.stop() == 0


@needs_systemd
@pytest.mark.parametrize(
    ("names", "problem"),
    [("gpop.socket", 'is called "gpop.socket"'), ("tls", "set tls.certificates")],
)
def test_a_socket_that_says_not_what_it_is_for_is_refused(activated, names, problem):
    """A socket unit without FileDescriptorName, or TLS without a certificate: said, and nothing served."""
    server, (port,) = activated(names)
    with socket.create_connection(("127.0.0.1", port), 20):
        assert server.process.wait(20) == 2
    assert problem in server.log_path.read_text()


@pytest.fixture
def units(tmp_path) -> list[str]:
    """Copies of the units, with the path of this gpop in them."""
    program = Path(sys.executable).with_name("gpop")
    for name in UNITS:
        text = (CONF / name).read_text().replace("/usr/local/bin/gpop", str(program))
        (tmp_path / name).write_text(text)
    return [str(tmp_path / name) for name in UNITS]


@needs_systemd
def test_the_units_are_right(units):
    """systemd knows every directive in them, and finds what they start."""
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_systemd
def test_the_service_is_as_little_exposed_as_when_it_was_written(units):
    """systemd's own figure, 3.2 of 10: root with few capabilities that serves the network and reads homes."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=32", units[0]]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout[-200:]


def test_the_unit_gives_gpop_the_time_that_it_needs():
    """Stopping may last as long as the grace time; the watchdog waits until what hangs is replaced."""
    from gpop.broker.broker import END_TIMEOUT_S
    from gpop.config.settings import SETTINGS

    default = {setting.key: setting.default for setting in SETTINGS}
    directives = dict(re.findall(r"^(\w+)=(.*)$", (CONF / "gpop.service").read_text(), re.MULTILINE))
    assert float(directives["TimeoutStopSec"]) >= default["server.grace_time_s"] + 2 * END_TIMEOUT_S
    assert float(directives["WatchdogSec"]) > 2 * default["server.answer_timeout_s"]
    assert float(directives["LimitNOFILE"]) > 2 * default["server.max_connections"]
    assert gpop_command("serve")[-1] in directives["ExecStart"]
