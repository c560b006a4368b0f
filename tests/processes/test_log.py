"""Where the log goes: a file that logrotate renames, a syslog daemon that is slow, gone, or started again."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.serving import ROOT, Server, Site, wait_until

OPS = Path(__file__).parent.parent.parent / "ops"
# What stands before a message in the form of RFC 3164: priority, time, who it is.
SYSLOG_HEAD = re.compile(rb"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d gpop\[(\d+)\]: ")
MAIL = 2
# How many datagrams the kernel keeps for a daemon that does not read, at most.
QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


@pytest.fixture
def folder(make_site) -> Path:
    """A folder that only we can write to, for logs and sockets."""
    site = make_site()
    folder = site.path / "log.d"
    folder.mkdir(mode=0o700)
    return folder


def serve(folder: Path, log_path: Path | None = None, **settings: object) -> Server:
    site = Site(**settings)
    return Server(site, log_path=log_path)


def refuse_a_login(server: Server, name: str) -> None:
    with server.connect() as client:
        client.ask(f"USER {name}")
        assert client.ask("PASS wrong").startswith(b"-ERR")


def poll(server: Server) -> None:
    with server.login() as client:
        assert client.ask("QUIT").startswith(b"+OK")


def test_a_file_has_the_lines_of_every_process(folder: Path) -> None:
    """With log.target = "file" nothing is on standard output, and the file is nobody else's to read."""
    path = folder / "gpop.log"
    with serve(folder, path, log__target="file", log__path=str(path)) as server:
        poll(server)
        server.wait_for_event("session_closed")
        assert {event["process"] for event in server.events()} == {"broker", "auth", "front"}
        assert server.output_path.read_bytes() == b""
        assert path.stat().st_mode & 0o077 == 0
        server.site.remove()


def test_a_file_that_was_renamed_is_left_at_usr1(folder: Path) -> None:
    """Broker, auth and fronts all write to the new file, each whole lines, and nothing is lost in between."""
    path, old = folder / "gpop.log", folder / "gpop.log.1"
    with serve(folder, path, log__target="file", log__path=str(path), server__fronts=2) as server:
        refuse_a_login(server, "before")
        server.wait_for_event("login_refused")
        path.rename(old)
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for_event("log_reopened")
        written = old.stat().st_size
        with server.login() as client:
            for number in range(6):
                refuse_a_login(server, f"after{number}")
            client.ask("QUIT")
        server.wait_for_event("session_closed")
        assert old.stat().st_size == written, "a process still writes to the old file"
        if ROOT:  # nobody else may look into auth, which has written nothing here that could be seen
            auth = server.pids("auth")[0]
            links = {os.readlink(f"/proc/{auth}/fd/{fd}") for fd in os.listdir(f"/proc/{auth}/fd")}
            assert str(path) in links and str(old) not in links
        events = [json.loads(line) for line in (old.read_text() + path.read_text()).splitlines()]
        assert not [event for event in events if event["event"] == "log_lines_dropped"]
        names = [event["user"] for event in events if event["event"] == "login_refused"]
        assert sorted(names) == ["after0", "after1", "after2", "after3", "after4", "after5", "before"]
        server.site.remove()


def test_a_file_that_cannot_be_opened_again_is_kept(folder: Path) -> None:
    """A link where the log was, for one: root writes to no file of somebody else's choice."""
    path, old = folder / "gpop.log", folder / "gpop.log.1"
    with serve(folder, path, log__target="file", log__path=str(path)) as server:
        path.rename(old)
        path.symlink_to(folder / "elsewhere")
        server.log_path = old
        server.process.send_signal(signal.SIGUSR1)
        failed = server.wait_for_event("log_reopen_failed")
        assert failed["path"] == str(path)
        poll(server)
        server.wait_for_event("session_closed")
        assert not (folder / "elsewhere").exists()
        server.site.remove()


def test_a_start_without_its_log_is_refused_in_words(folder: Path) -> None:
    """A folder that is missing, or that everybody can write to, is named before anything is served."""
    everybodys = folder / "open"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    for path, words in ((folder / "no" / "log", "make it"), (everybodys / "log", "nobody else can write")):
        site = Site(log__target="file", log__path=str(path))
        server = Server(site, ready=False)
        assert server.process.wait(20) == 2
        assert words in server.output_path.read_text()
        site.remove()


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
@pytest.mark.skipif(not ROOT, reason="needs root: the pid file, and logrotate's `create root adm`")
def test_logrotate_rotates_with_the_file_in_ops(folder: Path) -> None:
    """The shipped ops/logrotate.d/gpop, with other paths and nothing else: twice, no line lost or cut."""
    path = folder / "gpop.log"
    with serve(folder, path, log__target="file", log__path=str(path)) as server:
        rules = (OPS / "logrotate.d" / "gpop").read_text()
        config = folder / "logrotate.conf"
        rules = rules.replace("/var/log/gpop/gpop.log", str(path))
        config.write_text(rules.replace("/run/gpop", str(server.site.path / "run")))
        config.chmod(0o600)
        names = []
        for turn in range(2):
            refuse_a_login(server, f"turn{turn}")
            names.append(f"turn{turn}")
            server.wait_for_event("login_refused", user=f"turn{turn}")
            command = ["logrotate", "--force", "--state", str(folder / "state"), str(config)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stderr
            server.wait_for_event("log_reopened")
        assert path.stat().st_mode & 0o777 == 0o640
        packed = subprocess.run(["zcat", f"{path}.2.gz"], capture_output=True, text=True, check=True).stdout
        lines = packed + Path(f"{path}.1").read_text() + path.read_text()
        events = [json.loads(line) for line in lines.splitlines()]
        assert [event["user"] for event in events if event["event"] == "login_refused"] == names
        server.site.remove()


class Daemon:
    """What a syslog daemon is to gpop: a datagram socket that is read, or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()

    def messages(self, until: str, timeout_s: float = 20) -> list[tuple[int, int, dict]]:
        """(priority, pid, event) of each datagram, up to the first event of that name."""
        found: list[tuple[int, int, dict]] = []
        while not found or found[-1][2]["event"] != until:
            assert select.select([self.socket], [], [], timeout_s)[0], f"no {until}: {found}"
            octets = self.socket.recv(8192)
            head = SYSLOG_HEAD.match(octets)
            assert head, octets
            assert b"\n" not in octets
            found.append((int(head[1]), int(head[2]), json.loads(octets[head.end() :])))
        return found

    def waiting(self) -> list[dict]:
        """The events that wait to be read, and no more than these."""
        found = []
        while select.select([self.socket], [], [], 0)[0]:
            found.append(json.loads(SYSLOG_HEAD.sub(b"", self.socket.recv(8192))))
        return found


def start_with(daemon: Daemon, **settings: object) -> tuple[Server, list[tuple[int, int, dict]]]:
    site = Site(log__target="syslog", log__syslog_socket=str(daemon.path), **settings)
    server = Server(site, ready=False)
    messages = daemon.messages("broker_started")
    server.port = int(messages[-1][2]["listen"][0].rpartition(":")[2])
    return server, messages


def test_syslog_gets_a_datagram_for_each_line(folder: Path) -> None:
    """Facility and severity are in it, and the pid of the process whose line it is."""
    daemon = Daemon(folder / "socket")
    server, messages = start_with(daemon)
    with server:
        assert messages[-1][:2] == (MAIL * 8 + 6, server.process.pid)
        refuse_a_login(server, "nobody\x01<0>evil")
        refused = daemon.messages("login_refused")[-1]
        assert refused[:2] == (MAIL * 8 + 4, server.pids("front")[0])
        assert refused[2]["peer"] == "127.0.0.1"
    server.site.remove()


def test_a_syslog_daemon_that_stalls_costs_lines_and_nothing_else(folder: Path) -> None:
    """The service goes on as before; what is missing is counted, and reported as soon as somebody reads."""
    daemon = Daemon(folder / "socket")
    server, _ = start_with(daemon, log__level="debug")
    with server:
        talk(server, QUEUE // 40 + 2)  # two lines for a command and for its reply
        poll(server)
        told: list[dict] = []

        def is_reported() -> bool:
            # The log process waits for a slow reader, for a moment: this one is slower and slower.
            told.extend(daemon.waiting())
            talk(server, 1)
            return bool([event for event in told if event["event"] == "log_lines_dropped"])

        wait_until(is_reported, 60, lambda: f"a report of lines left out: {told}")
        poll(server)
    server.site.remove()


def talk(server: Server, connections: int) -> None:
    """Say things that all have a line in a log of level "debug"."""
    for _ in range(connections):
        with server.connect() as client:
            client.send(b"CAPA\r\n" * 24 + b"QUIT\r\n")
            client.rest()


def test_a_syslog_daemon_that_is_started_again_is_found(folder: Path) -> None:
    """Its socket is another one then; jailed processes are handed a new connection to it."""
    daemon = Daemon(folder / "socket")
    server, _ = start_with(daemon)
    with server:
        daemon.close()
        refuse_a_login(server, "lost")
        daemon = Daemon(folder / "socket")
        daemon.messages("log_reopened")
        refuse_a_login(server, "found")
        after = [message for _, _, message in daemon.messages("login_refused")]
        assert [event["lines"] > 0 for event in after if event["event"] == "log_lines_dropped"]
        assert after[-1]["user"] == "found"
    server.site.remove()


@pytest.mark.skipif(not shutil.which("rsyslogd"), reason="rsyslog is not installed")
def test_rsyslog_files_the_lines_whole(folder: Path) -> None:
    """The real daemon understands what we send: program, severity, and the JSON as it was."""
    config, path = folder / "rsyslog.conf", folder / "out"
    template = 'template(name="t" type="string" string="%programname% %syslogseverity-text% %msg%\\n")'
    config.write_text(
        f'module(load="imuxsock" SysSock.Use="off")\ninput(type="imuxsock" Socket="{folder}/socket")\n'
        f'{template}\naction(type="omfile" file="{path}" template="t")\n'
    )
    daemon = subprocess.Popen(["rsyslogd", "-n", "-f", str(config), "-i", str(folder / "pid")])
    try:
        wait_until((folder / "socket").exists, what="rsyslogd")
        site = Site(log__target="syslog", log__syslog_socket=str(folder / "socket"))
        server = Server(site, ready=False)
        try:
            wait_until(lambda: path.exists() and "broker_started" in path.read_text(), what="the log")
        finally:
            server.stop()
        wait_until(lambda: "broker_stopped" in path.read_text(), what="the last line")
        for line in path.read_text().splitlines():
            program, severity, text = line.split(maxsplit=2)
            assert (program, severity) == ("gpop", "info"), line
            json.loads(text)
        site.remove()
    finally:
        daemon.terminate()
        daemon.wait(20)
