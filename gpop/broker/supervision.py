"""
EDGE: starting gpop's other processes and keeping them: front, auth and metrics, in generations.

A generation is one auth and its fronts, all started from one state of the config, and a metrics
process if there is to be one, without which it works as well. The broker holds one that serves, at
most one that is starting, and any number that drain.
Executed by the broker as root; it sees settings and descriptors, never a login.
"""

from __future__ import annotations

import _socket
import os

from gpop import signals
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

# A process that ends is started again after this long, doubled each time up to the last.
FIRST_BACK_OFF_S = 0.2
LAST_BACK_OFF_S = 30.0
# One that lived this long has shown that it can: the next back-off is the first again.
SETTLED_S = 60.0


class Process:
    """
    A front, an auth or a metrics process: its control channel, its tally, and whether it is at work.

    Attributes:
        ready: it has said that it is warmed and waits.
        asked, missed: whether an answer to ALIVE is due, and at how many looks it has not been there.
    """

    __slots__ = ("asked", "control", "generation", "missed", "name", "pid", "ready", "started", "tally")

    def __init__(
        self, name: str, pid: int, control: _socket.socket, generation: Generation, now: float
    ) -> None:
        self.name = name
        self.pid = pid
        self.control = control
        self.generation = generation
        self.ready = False
        self.started = now
        self.asked = False
        self.missed = 0
        self.tally: Lent | None = None

    @property
    def is_needed(self) -> bool:
        """Whether logins need it."""
        return self.name != "metrics"

    def ask(self) -> None:
        """Have it say that it is at work."""
        self.asked = True
        self.tell(messages.encode(messages.ALIVE))

    def answered(self) -> None:
        """It has said so."""
        self.asked = False
        self.missed = 0

    def tell(self, octets: bytes, fds: Sequence[int] = ()) -> None:
        """Send it a frame; a process that can't take it is ending or stuck, and its end is seen elsewhere."""
        try:
            channel.send(self.control, octets, fds)
        except OSError:
            return


class Generation:
    """One auth and N fronts from one state of the config."""

    __slots__ = (
        "auth",
        "back_off",
        "for_upgrade",
        "fronts",
        "listening",
        "log",
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
        # When processes that ended are to be started again: (monotonic seconds, name).
        self.missing: list[tuple[float, str]] = []
        self.back_off = dict.fromkeys(("front", "auth", "metrics"), FIRST_BACK_OFF_S)

    def processes(self) -> list[Process]:
        """Its processes that run."""
        return [each for each in (self.auth, *self.fronts, self.metrics) if each]

    def wanted(self) -> list[str]:
        """The names of the processes that it consists of."""
        settings = self.settings["broker"]
        return ["auth", *["front"] * settings["fronts"], *(["metrics"] if settings["metrics_listen"] else [])]

    def start_process(self, name: str, now: float) -> Process:
        """
        Start one process; in a generation that serves it is connected to the others at once.

        Raises:
            OSError: it can't be started now.
        """
        lent = self.tallies.lend(name) if self.tallies and name != "metrics" else None
        try:
            process = self._start_process(name, lent, now)
        except OSError:
            if self.tallies and lent:
                self.tallies.take_back(lent)
            raise
        if name == "auth":
            self.auth = process
        elif name == "front":
            self.fronts.append(process)
        else:
            self.metrics = process
            if self.tallies:
                self.tallies.add_reader(process)
        if self.state == SERVING and process.is_needed:
            self._connect(self.fronts if name == "auth" else [process])
        return process

    def _start_process(self, name: str, lent: Lent | None, now: float) -> Process:
        settings_fd = settings_file(self.settings[name])
        try:
            ours, theirs = channel.pair()
            try:
                pid = self._start_program(name, theirs.fileno(), settings_fd, lent)
            finally:
                theirs.close()
        finally:
            os.close(settings_fd)
        ours.setblocking(False)
        process = Process(name, pid, ours, self, now)
        if lent:
            process.tally = lent
            lent.belongs_to(pid)
        return process

    def _start_program(self, name: str, control_fd: int, settings_fd: int, lent: Lent | None) -> int:
        listening = self.listening if name == "front" else {}
        keep = [control_fd, settings_fd, self.log.fd, *(sock.fileno() for sock in listening.values())]
        if lent:
            keep.append(lent.fd)
        arguments = [
            f"{name}-process",
            f"--control-fd={control_fd}",
            f"--settings-fd={settings_fd}",
            f"--log-fd={self.log.fd}",
            f"--log-facility={self.log.facility}",
            *([f"--tally-fd={lent.fd}"] if lent else []),
            *(["--console"] if self.log.console else []),
            *(["--debug"] if self.settings["broker"]["log_level"] == "debug" else []),
        ]
        # Under the addresses that the config has for them: what else it says of these the front looks up.
        for (address, tls), sock in listening.items():
            arguments.append(f"{'tls' if tls else 'plain'}:{address}={sock.fileno()}")
        return start_program(arguments, keep)

    def serve(self) -> None:
        """
        All of it is ready: the fronts get their ways to auth, and begin to accept.

        Not before: a generation that does not come up must not have taken anybody's connection.
        """
        self.state = SERVING
        self._connect(self.fronts)

    def _connect(self, fronts: Sequence[Process]) -> None:
        """Give each front and auth the two ends of a new login socket."""
        if self.auth is None:
            return
        for front in fronts:
            octets = messages.encode(messages.ATTACH, front=front.pid)
            try:
                fronts_end, auths_end = channel.pair()
            except OSError:
                # Useless as it is. When it is started again there may be descriptors to be had.
                os.kill(front.pid, signals.KILL)
                continue
            self.auth.tell(octets, [auths_end.fileno()])
            front.tell(octets, [fronts_end.fileno()])
            fronts_end.close()
            auths_end.close()

    def ended(self, process: Process, now: float) -> float | None:
        """Forget a process that ended; returns the seconds until it is started again, None if never."""
        process.control.close()
        if process is self.auth:
            self.auth = None
        elif process is self.metrics:
            self.metrics = None
            if self.tallies:
                self.tallies.readers.remove(process)
        else:
            self.fronts.remove(process)
        if self.tallies and process.tally:
            self.tallies.take_back(process.tally)
        if self.state == DRAINING or (self.state == STARTING and process.is_needed):
            return None
        name = process.name
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
        """Whether every process of it that logins need has said that it is at work."""
        running = [process for process in self.processes() if process.is_needed]
        return len(running) == 1 + self.settings["broker"]["fronts"] and all(each.ready for each in running)

    def answers(self) -> bool:
        """Whether logins can be served: auth and a front have answered what they were asked last."""
        at_work = [process for process in self.processes() if process.ready and not process.asked]
        return self.auth in at_work and any(front in at_work for front in self.fronts)

    def drain(self, at_once: bool) -> None:
        """Let every process finish what it has and end; `at_once`: peers before login are closed."""
        self.state = DRAINING
        self.missing = []
        octets = messages.encode(messages.DRAIN, at_once=int(at_once))
        for process in self.processes():
            if process.is_needed:
                process.tell(octets)
            else:
                # It may hang, and holds nothing of anybody's: no stop waits for it, nor does its successor.
                os.kill(process.pid, signals.KILL)

    def end(self, number: int) -> None:
        """Signal every process of it."""
        for process in self.processes():
            os.kill(process.pid, number)
