"""The log process: what processes without rights write reaches the log, and nothing else does."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpop import programs
from gpop.privsep import channel, messages
from loadtest.installation import Installation
from tests.serving import ROOT, Server, wait_until

PID = 4711
PATIENCE_S = 60


def line(event: str = "session_closed", process: str = "front", **fields: object) -> bytes:
    ts = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    head = {"ts": ts, "level": "info", "event": event, "process": process}
    return json.dumps(head | fields).encode() + b"\n"


class PlayedBroker:
    """The broker, and the writers, of a real log process."""

    def __init__(self, path: Path, log_fd: int = -1) -> None:
        self.path = path
        self.log_fd = log_fd if log_fd >= 0 else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.pipes: list[tuple[int, int]] = []
        self.start()

    def start(self) -> None:
        self.control, theirs = channel.pair()
        settings = programs.settings_file(
            {"log_calls": b"", "user": "nobody", "run_dir": str(self.path.parent)}
        )
        (self.path.parent / "empty").mkdir(mode=0o755, exist_ok=True)
        keep = [theirs.fileno(), settings, self.log_fd]
        names = ("control", "settings", "log")
        arguments = [f"--{name}-fd={fd}" for name, fd in zip(names, keep, strict=True)]
        self.pid = programs.start_program(["log-process", *arguments, "--log-facility=-1"], keep, lean=True)
        theirs.close()
        os.close(settings)
        self.control.settimeout(PATIENCE_S)
        assert channel.receive(self.control)[0].kind == messages.READY
        for number, (reading, _) in enumerate(self.pipes):
            self._hand_over(number, reading)

    def _hand_over(self, number: int, reading: int) -> None:
        octets = messages.encode(messages.WRITER, name="front", pid=PID + number)
        channel.send(self.control, octets, [reading])

    def writer(self) -> int:
        """The end of a new log pipe that is written."""
        self.pipes.append(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self._hand_over(len(self.pipes) - 1, self.pipes[-1][0])
        return self.pipes[-1][1]

    def events(self) -> list[dict]:
        text = self.path.read_bytes()
        return [json.loads(each) for each in text.splitlines(keepends=True) if each.endswith(b"\n")]

    def wait_for(self, count: int) -> list[dict]:
        wait_until(
            lambda: len(self.events()) >= count, PATIENCE_S, lambda: f"{count}: {self.path.read_text()}"
        )
        return self.events()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.control.close()

    def is_over(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid

    def close(self) -> None:
        for fd in (fd for pipe in self.pipes for fd in pipe):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.pipes = []


@pytest.fixture
def broker(tmp_path) -> Iterator[PlayedBroker]:
    """Its log is a file."""
    tmp_path.chmod(0o755)
    played = PlayedBroker(tmp_path / "log")
    yield played
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        played.kill()
    played.close()
    os.close(played.log_fd)


REFUSED = {
    "another's name": line(process="auth"),
    "the broker's event": line("broker_stopped"),
    "auth's event": line("auth_started"),
    "another front's line": line(pid=1),
    "a name twice": line()[:-2] + b', "process": "front"}\n',
    "no JSON": b"broker_stopped\n",
    "half a line": line()[:-1],
    "no end": b"x" * 8000,
    "NUL": b"\0\n",
}


def test_a_log_process_without_a_free_descriptor_asks_for_the_pipe_again(broker):
    """It goes on with those it has, says what is short, and reads the other one when it gets it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    broker.kill()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[0]), limits[1]))
    broker.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    first, (idle, others) = broker.writer(), os.pipe()
    for number in range(300):
        channel.send(broker.control, messages.encode(messages.WRITER, name="front", pid=number), [idle])
    os.close(idle)
    second = broker.writer()
    os.write(second, line(user="waiting"))
    lost = []
    while PID + 1 not in lost:
        frame, _ = channel.receive(broker.control)
        assert (frame.kind, frame.fields["frame_kind"]) == (messages.LOST, messages.WRITER)
        lost.append(frame.fields["pid"])
    os.write(first, line(user="at once"))
    short, at_once = broker.wait_for(2)
    assert (short["event"], short["sender"], short["times"]) == ("descriptors_exhausted", "broker", 1)
    assert at_once["user"] == "at once"
    os.close(others)
    wait_until(lambda: len(os.listdir(f"/proc/{broker.pid}/fd")) < 100, PATIENCE_S, "it to have room again")
    broker._hand_over(1, broker.pipes[1][0])
    assert broker.wait_for(3)[2]["user"] == "waiting"


@pytest.mark.parametrize("octets", REFUSED.values(), ids=REFUSED)
def test_a_forged_line_is_the_last_of_its_writer(broker, octets):
    """It is reported and not written, nothing after it is read, and the broker is told; others go on."""
    writer, other = broker.writer(), broker.writer()
    os.write(writer, line(user="before"))
    broker.wait_for(1)
    os.write(writer, octets)
    frame, _ = channel.receive(broker.control)
    assert (frame.kind, frame.fields["front"]) == (messages.CUT_OFF, PID)
    os.write(writer, line(user="after"))
    os.write(other, line(user="other"))
    first, rejected, last = broker.wait_for(3)
    assert (first["user"], first["pid"]) == ("before", PID)
    assert (rejected["event"], rejected["process"]) == ("log_line_rejected", "log")
    assert (rejected["sender"], rejected["pid"]) == ("front", PID)
    assert (last["user"], last["pid"]) == ("other", PID + 1)


def test_a_killed_log_process_loses_nothing(broker):
    """Killed amid the work, again and again: what was in its pipes the next one writes, in order."""
    writer, written = broker.writer(), 0
    for _ in range(12):
        for _ in range(60):
            select.select([], [writer], [], PATIENCE_S)
            os.write(writer, line(number=written, user="x" * 300))
            written += 1
        wait_until(lambda: broker.path.read_bytes() or True)
        broker.kill()
        broker.start()
    wait_until(lambda: broker.events()[-1:] and broker.events()[-1]["number"] == written - 1, PATIENCE_S)
    numbers = [event["number"] for event in broker.events()]
    # Between two calls of the kernel lies a moment in which a line is written and still in the pipe.
    assert list(dict.fromkeys(numbers)) == sorted(set(numbers)) == list(range(written))


def test_without_a_broker_all_that_was_written_is_written_first(broker):
    """It ends when the last writer has, and not before."""
    writer = broker.writer()
    broker.control.close()
    for number in range(100):
        os.write(writer, line(number=number))
    broker.wait_for(100)
    assert not broker.is_over()
    os.write(writer, line(number=100))
    broker.close()
    wait_until(broker.is_over, PATIENCE_S)
    assert [event["number"] for event in broker.events()] == list(range(101))


def test_a_flood_of_one_keeps_no_other_waiting(broker):
    """Its pipe is full and its lines are its own loss; another's line is there as quickly as ever."""
    flooding, other = broker.writer(), broker.writer()
    flood = line("login_refused", user="x" * 300)
    refused = 0
    for number in range(5):
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            try:
                os.write(flooding, flood)
            except BlockingIOError:
                refused += 1
        os.write(other, line(number=number))
        wait_until(
            lambda number=number: b'"number": %d,' % number in broker.path.read_bytes(),
            PATIENCE_S,
            "the line",
        )
    assert refused


def test_a_reader_that_stalls_costs_lines_that_are_counted(tmp_path):
    """The log is a pipe that nobody reads: the process stays at work, and says later how many are missing."""
    tmp_path.chmod(0o755)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    played = PlayedBroker(tmp_path / "log", writing)
    try:
        writer, written, found = played.writer(), 0, []
        for _ in range(40):
            for _ in range(10):
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, line(user="x" * 300))
                    written += 1
            channel.send(played.control, messages.encode(messages.ALIVE))
            assert channel.receive(played.control)[0].kind == messages.ALIVE
        octets = b""
        os.close(played.pipes[0][1])
        channel.send(played.control, messages.encode(messages.DRAIN, at_once=0))
        os.close(played.pipes.pop()[0])
        while not played.is_over() or select.select([reading], [], [], 0)[0]:
            with contextlib.suppress(BlockingIOError):
                octets += os.read(reading, 1 << 16)
        found = [json.loads(each) for each in octets.splitlines()]
        missing = sum(event["lines"] for event in found if event["event"] == "log_lines_dropped")
        there = sum(event["event"] == "session_closed" for event in found)
        # What was left out at the very end no later line could tell of.
        assert there and there + missing <= written
    finally:
        os.close(reading)
        os.close(writing)


# A whole gpop


def refuse_a_login(server: Server, name: str) -> None:
    with server.connect() as client:
        client.ask(f"USER {name}")
        assert client.ask("PASS wrong").startswith(b"-ERR")


def test_a_front_holds_a_pipe_in_place_of_the_log(make_server):
    """Nobody without rights but the log process has the file; each line says which process wrote it."""
    server = make_server(server__fronts=2)
    refuse_a_login(server, "nobody")
    refused = server.wait_for_event("login_refused")
    assert refused["pid"] in server.pids("front")
    if ROOT:
        path = str(server.log_path)
        holders = {
            kind
            for pid, kind in server.children().items()
            if path in {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if int(fd.name) > 2}
        }
        assert holders == {"auth", "log"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_log_process_is_replaced_and_no_line_is_lost(make_server, number):
    """Whether it ends or hangs: logins go on, and their lines are there as soon as the next one is."""
    server = make_server(server__answer_timeout_s=2)
    (pid,) = server.pids("log")
    os.kill(pid, number)
    for each in range(5):
        refuse_a_login(server, f"user-{each}")
    server.wait_for_event("login_refused", 5, timeout_s=PATIENCE_S)
    names = collections.Counter(event["user"] for event in server.events("login_refused"))
    assert list(names) == [f"user-{each}" for each in range(5)]
    assert server.wait_for_event("process_ended", ended="log")["pid"] == pid
    assert server.stop() == 0
    assert server.events()[-1]["event"] == "broker_stopped"


def test_a_killed_broker_loses_no_line_of_a_front(make_server):
    """What a front says at its end is in the log, although nobody is there any more who could ask for it."""
    server = make_server()
    with server.connect():
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(PATIENCE_S)
        wait_until(lambda: server.events("front_draining"), PATIENCE_S)


def test_lines_through_reloads_are_all_there(make_server):
    """Old fronts have their log process until they end; the last line is the broker's."""
    server = make_server()
    with server.login() as old:
        for count in (1, 2):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_event("reload_finished", count)
            refuse_a_login(server, f"after-{count}")
            server.wait_for_event("login_refused", user=f"after-{count}")
        assert old.ask("QUIT").startswith(b"+OK")
    assert server.wait_for_event("session_closed")["close_reason"] == "quit"
    wait_until(lambda: len(server.pids("log")) == 1, PATIENCE_S, server.children)
    assert not server.faults()
    assert server.stop() == 0
    assert server.events()[-1]["event"] == "broker_stopped"


def test_after_an_upgrade_fronts_hold_a_pipe(make_site):
    """Whoever has started them: a version that knows of no log process has handed them the log."""
    site = make_site()
    installation = Installation(site.path)
    # What the version before the log process has done.
    old = ('return bool(self.settings.get("log"))', "return False")
    installation.change("broker/supervision.py", *old)
    with Server(site, program=installation.program) as server:
        assert not server.pids("log")
        installation.change("broker/supervision.py", *reversed(old))
        installation.update("0.2.0")
        server.process.send_signal(signal.SIGUSR2)
        server.wait_for_event("reload_finished", timeout_s=PATIENCE_S)
        refuse_a_login(server, "nobody")
        assert server.wait_for_event("login_refused")["pid"] in server.pids("front")
        assert len(server.pids("log")) == 1
        assert not server.faults()
