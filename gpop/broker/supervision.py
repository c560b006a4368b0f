"""
EDGE: starting gpop's other processes and keeping them: log, front, auth and metrics, in generations.

A generation is one auth and its fronts, all started from one state of the config, a log process that
writes for those without rights, and a metrics process if there is to be one, without which it works as
well. The broker holds one that serves, at most one that is starting, and any number that drain.
Executed by the broker as root; it sees settings and descriptors, never a login.
"""

from __future__ import annotations

import _socket
import errno
import os

from gpop import signals
from gpop.broker.log_pipes import WITHOUT_RIGHTS, LogPipes, give_pipes, new_pipe
from gpop.events import Log
from gpop.privsep import channel, messages
from gpop.programs import settings_file, start_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from gpop.broker.listening import Listening
    from gpop.broker.tallies import Lent, Tallies

STARTING, SERVING, DRAINING = range(3)
NAMES = ("front", "auth", "metrics", "log")

# A process that ends is started again after this long, doubled each time up to the last.
FIRST_BACK_OFF_S = 0.2
LAST_BACK_OFF_S = 30.0
# One that lived this long has shown that it can: the next back-off is the first again.
SETTLED_S = 60.0


class Process:
    """
    A log, front, auth or metrics process: its control channel, its tally, and whether it is at work.

    Attributes:
        holds_log: it writes the log itself.
        log_pipe: if not, the end from which its lines are read; -1: there is none, or none any more.
        ready: it has said that it is warmed and waits.
        lost: what could not be sent, or it had no descriptor for, and is to be sent again: the kind of the
            frame, and the process id in it (0 where there is none), of DRAIN whether at once.
        asked, missed: how many answers to ALIVE are due, and at how many looks there was none.
    """

    __slots__ = (
        *("asked", "control", "generation", "holds_log", "log_pipe", "lost", "missed", "name", "pid"),
        *("ready", "started", "tally"),
    )

    def __init__(
        self, name: str, pid: int, control: _socket.socket, generation: Generation, now: float
    ) -> None:
        self.name = name
        self.pid = pid
        self.control = control
        self.generation = generation
        self.ready = False
        self.started = now
        self.asked = self.missed = 0
        self.lost: set[tuple[int, int]] = set()
        self.tally: Lent | None = None
        self.holds_log = True
        self.log_pipe = -1

    @property
    def is_needed(self) -> bool:
        """Whether a generation does not serve before it is there."""
        return self.name != "metrics"

    def close_log_pipe(self) -> None:
        """What it has written and nobody has read is lost."""
        if self.log_pipe >= 0:
            os.close(self.log_pipe)
            self.log_pipe = -1

    def ask(self) -> None:
        """Have it say that it is at work; who can't be asked has missed it."""
        if self.tell(messages.encode(messages.ALIVE)):
            self.missed += 1
        else:
            self.asked += 1

    def answered(self) -> None:
        """It has said so."""
        self.asked -= 1
        self.missed = 0

    def tell(self, octets: bytes, fds: Sequence[int] = ()) -> OSError | None:
        """
        Send it a frame; returns why that can't be, None if it is done.

        It does not read, the kernel has no memory for it, or it has ended: then it is started again anyway.
        """
        try:
            channel.send(self.control, octets, fds)
        except OSError as error:
            return error
        return None

    def drain(self, at_once: bool) -> None:
        """Let it finish what it has, and end; if it can't be told now, it is told again."""
        if self.tell(messages.encode(messages.DRAIN, at_once=int(at_once))):
            self.lost.add((messages.DRAIN, int(at_once)))


class Generation:
    """
    One auth and N fronts from one state of the config.

    Attributes:
        log: that of the broker.
        log_pipes: by which fronts and metrics write to it.
    """

    __slots__ = (
        "auth",
        "back_off",
        "for_upgrade",
        "fronts",
        "listening",
        "log",
        "log_pipes",
        "metrics",
        "missing",
        "settings",
        "started",
        "state",
        "tallies",
    )

    def __init__(
        self, settings: dict[str, Any], listening: Listening, log: Log, tallies: Tallies | None, now: float
    ) -> None:
        """`tallies`: what its processes count in, None if nothing is counted."""
        self.settings = settings
        self.listening = listening
        self.log = log
        self.tallies = tallies
        self.started = now
        self.state = STARTING
        self.for_upgrade = False  # it is to serve under the next version's broker
        self.auth: Process | None = None
        self.fronts: list[Process] = []
        self.metrics: Process | None = None
        self.log_pipes = LogPipes()
        # When processes that ended are to be started again: (monotonic seconds, name).
        self.missing: list[tuple[float, str]] = []
        self.back_off = dict.fromkeys(NAMES, FIRST_BACK_OFF_S)

    @property
    def log_process(self) -> Process | None:
        """Who writes the log for fronts and metrics."""
        return self.log_pipes.reader

    @property
    def has_log_process(self) -> bool:
        """Whether there is to be one; the last version had none, and one connection is not worth it."""
        return bool(self.settings.get("log"))

    def processes(self) -> list[Process]:
        """Its processes that run."""
        return [each for each in (self.log_process, self.auth, *self.fronts, self.metrics) if each]

    def wanted(self) -> list[str]:
        """The names of the processes that it consists of, in the order in which they are started."""
        log = ["log"] if self.has_log_process else []
        metrics = ["metrics"] if self.settings["broker"]["metrics_listen"] else []
        return [*log, "auth", *["front"] * self.settings["broker"]["fronts"], *metrics]

    def start_process(self, name: str, now: float) -> Process:
        """
        Start one process; in a generation that serves it is connected to the others at once.

        Raises:
            OSError: it can't be started now.
        """
        self.log_pipes.forget_what_is_read()
        lent = self.tallies.lend(name) if self.tallies and name != "metrics" else None
        try:
            process = self._start_process(name, lent, now)
        except OSError:
            if self.tallies and lent:
                self.tallies.take_back(lent)
            raise
        if name == "log":
            self.log_pipes.read_by(process, self.processes())
            if self.state == DRAINING:
                process.drain(at_once=False)
        elif name == "auth":
            self.auth = process
        elif name == "front":
            self.fronts.append(process)
        else:
            self.metrics = process
            if self.tallies:
                self.tallies.add_reader(process)
        self.log_pipes.add(process)
        if self.state == SERVING and name in ("auth", "front"):
            self._connect(self.fronts if name == "auth" else [process], again=name == "auth")
        return process

    def _start_process(self, name: str, lent: Lent | None, now: float) -> Process:
        log_pipe, log_fd = -1, self.log.fd
        by_pipe = self.has_log_process and name in WITHOUT_RIGHTS
        if by_pipe:
            log_pipe, log_fd = new_pipe()
        settings_fd = -1
        try:
            settings_fd = settings_file(self.settings[name])
            ours, theirs = channel.pair()
            try:
                pid = self._start_program(name, theirs.fileno(), settings_fd, log_fd, lent)
            finally:
                theirs.close()
        except OSError:
            if by_pipe:
                os.close(log_pipe)
            raise
        finally:
            if settings_fd >= 0:
                os.close(settings_fd)
            if by_pipe:
                os.close(log_fd)
        ours.setblocking(False)
        process = Process(name, pid, ours, self, now)
        process.holds_log, process.log_pipe = not by_pipe, log_pipe
        if lent:
            process.tally = lent
            lent.belongs_to(pid)
        return process

    def _start_program(
        self, name: str, control_fd: int, settings_fd: int, log_fd: int, lent: Lent | None
    ) -> int:
        listening = self.listening if name == "front" else {}
        keep = [control_fd, settings_fd, log_fd, *(sock.fileno() for sock in listening.values())]
        # In a pipe lines have one form, whatever the log process makes of them.
        itself = log_fd == self.log.fd
        if lent:
            keep.append(lent.fd)
        arguments = [
            f"{name}-process",
            f"--control-fd={control_fd}",
            f"--settings-fd={settings_fd}",
            f"--log-fd={log_fd}",
            f"--log-facility={self.log.facility if itself else -1}",
            *([f"--tally-fd={lent.fd}"] if lent else []),
            *(["--console"] if self.log.console and itself else []),
            *(["--debug"] if self.settings["broker"]["log_level"] == "debug" else []),
        ]
        # Under the addresses that the config has for them: what else it says of these the front looks up.
        for (address, tls), sock in listening.items():
            arguments.append(f"{'tls' if tls else 'plain'}:{address}={sock.fileno()}")
        return start_program(arguments, keep, lean=name == "log", returns_memory=name == "front")

    def take_log_away(self, now: float) -> None:
        """
        An older broker has started it, with a log for everybody: from here on it is as one of ours.

        Raises:
            OSError: one can't be told, or there are no pipes to be had.
        """
        if not self.has_log_process or self.log_process:
            return
        self.missing.append((now, "log"))
        give_pipes(self.processes())

    def serve(self) -> None:
        """
        All of it is ready: the fronts get their ways to auth, and begin to accept.

        Not before: a generation that does not come up must not have taken anybody's connection.
        """
        self.state = SERVING
        self._connect(self.fronts)

    def _connect(self, fronts: Sequence[Process], again: bool = False) -> None:
        """Give each front and auth the two ends of a new login socket; `again`: the fronts had one before."""
        if self.auth is None:
            return
        for front in fronts:
            octets = messages.encode(messages.ATTACH, front=front.pid)
            try:
                fronts_end, auths_end = channel.pair()
            except OSError as error:
                self._not_connected(front, error, again)
                continue
            problem = self.auth.tell(octets, [auths_end.fileno()]) or front.tell(
                octets, [fronts_end.fileno()]
            )
            if problem:
                self._not_connected(front, problem, again)
            fronts_end.close()
            auths_end.close()

    def _not_connected(self, front: Process, error: OSError, again: bool) -> None:
        """There can be no way between a front and auth now: no descriptor, no memory, or one has ended."""
        if not again:
            # Useless as it is, and it has taken nobody's connection: another one is started in a moment.
            os.kill(front.pid, signals.KILL)
            return
        # Until the next look its logins are refused; its sessions inside TLS are not ended for that.
        front.lost.add((messages.ATTACH, front.pid))
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):  # that one has ended has a line of its own
            problem = f"front {front.pid} has no way to auth, it will be tried again: {error.strerror}"
            self.log.write("process_fault", "error", problem=problem)

    def has_sent(self, process: Process, kind: int, pid: int) -> bool:
        """Whether such a frame is sent to that process: no other's way, and no log that it does not hold."""
        if kind == messages.ATTACH:
            return pid in [front.pid for front in self.fronts if process in (front, self.auth)]
        if kind == messages.WRITER:
            return process is self.log_process
        return kind == messages.LOG and process.holds_log

    def send_again(self, process: Process) -> None:
        """Send a process what was lost."""
        lost, process.lost = process.lost, set()
        for kind, pid in lost:
            if kind == messages.DRAIN:
                process.drain(at_once=bool(pid))
            elif kind == messages.ATTACH:
                self._connect([front for front in self.fronts if front.pid == pid], again=True)
            elif kind == messages.WRITER:
                self.log_pipes.hand_over_again(pid, self.processes())
            elif process.tell(messages.encode(messages.LOG), [self.log.fd]):
                process.lost.add((kind, pid))

    def ended(self, process: Process, now: float) -> float | None:
        """Forget a process that ended; returns the seconds until it is started again, None if never."""
        channel.close_all([process.control.detach()])
        was_log = process is self.log_process
        self.log_pipes.ended(process)
        if process is self.auth:
            self.auth = None
        elif process is self.metrics:
            self.metrics = None
            if self.tallies:
                self.tallies.readers.remove(process)
        elif not was_log:
            self.fronts.remove(process)
        if self.tallies and process.tally:
            self.tallies.take_back(process.tally)
        self.log_pipes.forget_what_is_read()
        name = process.name
        if self.state == STARTING and process.is_needed:
            return None
        is_needed = name == "log" and self.log_pipes.has_unread_lines(self.processes())
        if self.state == DRAINING and not is_needed:
            return None
        if now - process.started >= SETTLED_S:
            self.back_off[name] = FIRST_BACK_OFF_S
        return self.postpone(name, now)

    def postpone(self, name: str, now: float) -> float:
        """Have a process started later; returns in how many seconds."""
        delay = self.back_off[name]
        self.back_off[name] = min(2 * delay, LAST_BACK_OFF_S)
        self.missing.append((now + delay, name))
        return delay

    def due(self, now: float) -> list[str]:
        """The names of processes that have waited long enough to be started again, and wait no more."""
        names = [name for when, name in self.missing if when <= now]
        self.missing = [(when, name) for when, name in self.missing if when > now]
        return names

    def all_ready(self) -> bool:
        """Whether every process of it that has to be there has said that it is at work."""
        running = [process for process in self.processes() if process.is_needed]
        most = len([name for name in self.wanted() if name != "metrics"])
        return len(running) == most and all(each.ready for each in running)

    def is_over(self) -> bool:
        """Whether nothing of it runs, or will."""
        return not self.processes() and not self.missing

    def answers(self) -> bool:
        """Whether logins can be served: auth and a front have answered what they were asked last."""
        at_work = [process for process in self.processes() if process.ready and not process.asked]
        return self.auth in at_work and any(front in at_work for front in self.fronts)

    def drain(self, at_once: bool) -> None:
        """Let every process finish what it has and end; `at_once`: peers before login are closed."""
        self._end_starting()
        for process in self.processes():
            if process.is_needed:
                process.drain(at_once)
            else:
                # It may hang, and holds nothing of anybody's: no stop waits for it, nor does its successor.
                os.kill(process.pid, signals.KILL)

    def _end_starting(self) -> None:
        """From here on nothing is started again but a log process, which has to write what is left."""
        self.state = DRAINING
        self.missing = [(when, name) for when, name in self.missing if name == "log"]

    def end(self) -> None:
        """Kill every process of it but the log process: what the others have said last is to be read."""
        self._end_starting()
        for process in self.processes():
            if process is self.log_process:
                process.drain(at_once=True)
            else:
                os.kill(process.pid, signals.KILL)
