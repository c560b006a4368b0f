"""gpop for one connection, started by inetd, tcpserver or systemd: the same processes, which end with it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Dialogue, gpop_command, wait_until

MESSAGE = b"Subject: one\n\nbody\n"


class SuperServer:
    """What listens, and starts `gpop inetd` for each connection."""

    def __init__(self, site, command: list[str], port: int, tls_context=None) -> None:
        self.site, self.port, self.tls_context = site, port, tls_context
        self.output = site.path / "output"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._listens)

    def _listens(self) -> bool:
        """Whether somebody listens on the port; not by connecting, which would start a gpop."""
        assert self.process.poll() is None, self.output.read_text()
        local = f":{self.port:04X} "
        return any(
            local in line.split(maxsplit=2)[1] + " " and " 0A " in line
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        )

    def connect(self) -> Dialogue:
        sock = socket.create_connection(("127.0.0.1", self.port), 40)
        if self.tls_context:
            sock = self.tls_context.wrap_socket(sock, server_hostname="localhost")
        dialogue = Dialogue(sock)
        dialogue.greeting = dialogue.line()
        return dialogue

    def gpop_processes(self) -> list[int]:
        """Processes that were started for this site's config, or by these."""
        parents, found = {}, []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"broker" in words and str(self.site.config).encode() in words:
                found.append(int(path.name))
        return [pid for pid in parents if pid in found or parents[pid] in found]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        wait_until(lambda: not self.gpop_processes(), what="every gpop to end")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def with_inetd(site, port: int, command: list[str]) -> list[str]:
    """Debian's inetd: 0, 1 and 2 are the client's connection."""
    config = site.path / "inetd.conf"
    # It knows services by name only if /etc/services does, and ports by number; blanks part arguments.
    config.write_text(f"127.0.0.1:{port} stream tcp nowait.1000 root {command[0]} {shlex.join(command)}\n")
    return ["inetd", "-i", str(config)]


def with_tcpserver(site, port: int, command: list[str]) -> list[str]:
    """ucspi-tcp: 0 and 1 are the connection, 2 is tcpserver's own log."""
    return ["tcpserver", "-H", "-R", "-l", "localhost", "-c", "20", "127.0.0.1", str(port), *command]


def with_systemd(site, port: int, command: list[str]) -> list[str]:
    """A socket unit with Accept=yes, and a service with StandardInput=socket."""
    return ["systemd-socket-activate", "--accept", "--inetd", f"--listen=127.0.0.1:{port}", *command]


@pytest.fixture
def super_server(make_site):
    """A function that has one of them listen; skips where it is not installed, or can't be used."""
    servers = []

    def start(kind, *arguments: str, log: bool = True, tls_context=None, **settings) -> SuperServer:
        program = kind(make_site(), 0, ["true"])[0]
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        if program == "inetd" and not ROOT:
            pytest.skip("needs root: inetd starts what it starts as a user that it becomes")
        site = make_site(**settings)
        where = ["--log", str(site.path / "log")] if log else []
        command = gpop_command("inetd", "--config", str(site.config), *arguments, *where)
        # `-m gpop` would look for the package in the current directory, which is the super-server's.
        command[1:3] = [str(Path(__file__).parent.parent.parent / "gpop" / "__main__.py")]
        port = free_port()
        servers.append(SuperServer(site, kind(site, port, command), port, tls_context))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def log_of(server: SuperServer) -> str:
    return (server.site.path / "log").read_text()


@pytest.mark.parametrize("kind", [with_inetd, with_tcpserver, with_systemd])
def test_a_connection_is_served_and_everything_ends_with_it(super_server, kind):
    """Login, retrieval, removal; two at once; and what it logs is in the log, with the client's address."""
    server = super_server(kind)
    name = server.site.deliver(MESSAGE)
    with server.connect() as dialogue, server.connect() as refused:
        assert dialogue.greeting.startswith(b"+OK") and refused.greeting.startswith(b"+OK")
        refused.ask("USER user0")
        assert refused.ask("PASS wrong").startswith(b"-ERR [AUTH]")
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        assert dialogue.ask("RETR 1").startswith(b"+OK")
        assert dialogue.lines() == [b"Subject: one", b"", b"body"]
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        assert server.site.files(folder="new") == [name]
        assert dialogue.ask("QUIT").startswith(b"+OK")
        assert dialogue.rest() == b""
    wait_until(lambda: not server.gpop_processes())
    assert server.site.files() == []
    assert log_of(server).count('"broker_stopped"') == 2
    assert '"login_refused"' in log_of(server) and '"peer": "127.0.0.1"' in log_of(server)


@pytest.mark.skipif(not ROOT, reason="needs root: without it all is one user")
def test_nobody_with_rights_reads_what_the_client_says(super_server):
    """The processes are those of gpop serve: the connection is the front's, then the mail user's."""
    server = super_server(with_tcpserver)
    with server.connect() as dialogue:
        wait_until(lambda: len(server.gpop_processes()) == 3)
        wait_until(lambda: '"front_started"' in log_of(server))
        holders = [pid for pid in server.gpop_processes() if _holds_connection(pid, server.port)]
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in holders}
        assert len(owners) == 1 and 0 not in owners
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        assert server.site.uid("user0") in {
            Path(f"/proc/{pid}").stat().st_uid for pid in server.gpop_processes()
        }
        dialogue.ask("QUIT")


def _holds_connection(pid: int, port: int) -> bool:
    """Whether a process has a descriptor of an established connection to our port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    return any(os.readlink(fd) in sockets for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_tls_from_the_start(super_server, tmp_path):
    """As on port 995."""
    authority = Authority(tmp_path)
    pair = list(authority.issue("localhost"))
    server = super_server(
        with_tcpserver, "--tls", tls_context=authority.client_context(), tls__certificates=[pair]
    )
    with server.connect() as dialogue:
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")


def test_the_log_is_standard_error_where_that_is_not_the_client(super_server):
    """tcpserver's own, which goes to multilog as a rule."""
    server = super_server(with_tcpserver, log=False)
    with server.connect() as dialogue:
        assert dialogue.ask("QUIT").startswith(b"+OK")
        assert dialogue.rest() == b""
    wait_until(lambda: '"broker_stopped"' in server.output.read_text())


@pytest.mark.parametrize("target", ["file", "syslog"])
def test_inetd_needs_no_log_of_its_own_where_the_config_has_one(super_server, target):
    """log.target says where the log goes, and so do the broker's last words; the client reads none of it."""
    server = super_server(with_inetd, log=False)
    path = server.site.path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(20)
        if target == "syslog":
            daemon.bind(str(path))
            server.site.write_config(log__target="syslog", log__syslog_socket=str(path))
        else:
            server.site.write_config(log__target="file", log__path=str(path))
        with server.connect() as dialogue:
            assert dialogue.greeting.startswith(b"+OK")
            assert dialogue.ask("QUIT").startswith(b"+OK")
            assert dialogue.rest() == b""
        if target == "syslog":
            while b"broker_stopped" not in daemon.recv(65536):
                pass
        else:
            wait_until(lambda: '"broker_stopped"' in log_of(server))
            server.site.write_config(log__target="file", log__path=str(path), server__run_dir="/proc/gpop")
            with server.connect() as dialogue:
                assert dialogue.greeting + dialogue.rest() == b""
            wait_until(lambda: "server.run_dir" in log_of(server))


@pytest.mark.parametrize("wrong", ["log", "config", "folder", "target"])
def test_the_client_never_reads_what_is_for_the_administrator(super_server, wrong):
    """Under inetd all three standard files are the connection: it is closed without a word."""
    server = super_server(
        with_inetd, *(["--log", "/nowhere/log"] if wrong == "folder" else []), log=wrong == "config"
    )
    if wrong == "config":
        server.site.write_config(server__fronts=0)
    if wrong == "target":
        server.site.write_config(log__target="file", log__path="/nowhere/log")
    with server.connect() as dialogue:
        assert dialogue.greeting + dialogue.rest() == b""
    if wrong == "config":
        assert "server.fronts" in log_of(server)


def test_a_client_that_leaves_before_gpop_is_there(super_server):
    """Nobody is greeted, nothing stays."""
    server = super_server(with_tcpserver)
    for _ in range(2):
        socket.create_connection(("127.0.0.1", server.port), 20).close()
    wait_until(
        lambda: server.site.path.joinpath("log").exists() and log_of(server).count('"broker_stopped"') == 2
    )
    wait_until(lambda: not server.gpop_processes())


def test_what_is_no_connection_is_refused(make_site):
    """Somebody tries it on the command line: said on standard error."""
    command = gpop_command("inetd", "--config", str(make_site().config))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "descriptor 0 is no socket" in done.stderr and done.stdout == ""


def test_a_signal_for_all_of_gpop_ends_one_connection_in_order(super_server):
    """SIGTERM to its broker: the session has its grace time; SIGHUP and SIGUSR2 change nothing."""
    server = super_server(with_tcpserver, server__grace_time_s=30)
    name = server.site.deliver(MESSAGE)
    with server.connect() as dialogue:
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        (broker,) = [pid for pid in server.gpop_processes() if _is_broker(pid)]
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM):
            os.kill(broker, number)
        wait_until(lambda: '"shutdown_started"' in log_of(server))
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        assert dialogue.ask("RSET").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    wait_until(lambda: not server.gpop_processes())
    assert server.site.files() == [name]
    assert "reload" not in log_of(server) and "upgrade" not in log_of(server)


def _is_broker(pid: int) -> bool:
    """Whether it is that and not a session, which has its command line: those have a broker as parent."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"broker" in words and b"broker" not in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
