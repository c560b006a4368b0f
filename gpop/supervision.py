"""
EDGE: starting gpop's other processes and keeping them: front and auth, in generations.

A generation is one auth and its fronts, all started from one state of the config. The
broker holds one that serves, at most one that is starting, and any number that drain.
Executed by the broker as root; it sees settings and descriptors, never a login.
"""

from __future__ import annotations

import _socket
import os

from gpop.events import Log
from gpop.privsep import channel, messages
from gpop.programs import settings_file, start_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

STARTING, SERVING, DRAINING = range(3)

# A process that ends is started again after this long, doubled each time up to the last.
FIRST_BACK_OFF_S = 0.2
LAST_BACK_OFF_S = 30.0
# One that lived this long has shown that it can: the next back-off is the first again.
SETTLED_S = 60.0

class Process:
    """A front or an auth: its control channel, and whether it is at work."""

    __slots__ = ("control", "generation", "name", "pid", "ready", "started")

    def __init__(
        self, name: str, pid: int, control: _socket.socket, generation: Generation, now: float
    ) -> None:
        self.name = name
        self.pid = pid
        self.control = control
        self.generation = generation
        self.ready = False
        self.started = now

    def tell(self, octets: bytes, fds: Sequence[int] = ()) -> None:
        """Send it a frame; a process that can't take it is ending or stuck, and its end is seen elsewhere."""
        try:
            channel.send(self.control, octets, fds)
        except OSError:
            return


class Generation:
    """One auth and N fronts from one state of the config."""

    __slots__ = ("auth", "back_off", "fronts", "listening", "log", "missing", "settings", "started", "state")

    def __init__(
        self, settings: dict[str, Any], listening: dict[str, _socket.socket], log: Log, now: float
    ) -> None:
        self.settings = settings
        self.listening = listening
        self.log = log
        self.started = now
        self.state = STARTING
        self.auth: Process | None = None
        self.fronts: list[Process] = []
        # When processes that ended are to be started again: (monotonic seconds, name).
        self.missing: list[tuple[float, str]] = []
        self.back_off = {"front": FIRST_BACK_OFF_S, "auth": FIRST_BACK_OFF_S}

    def processes(self) -> list[Process]:
        """Its processes that run."""
        return ([self.auth] if self.auth else []) + self.fronts

    def start(self, now: float) -> list[Process]:
        """Start auth and all fronts; returns them."""
        count = self.settings["broker"]["fronts"]
        return [self.start_process(name, now) for name in ("auth", *["front"] * count)]

    def start_process(self, name: str, now: float) -> Process:
        """Start one process and connect it to the others of the generation."""
        ours, theirs = channel.pair()
        ours.setblocking(False)
        settings_fd = settings_file(self.settings[name])
        listening = [str(sock.fileno()) for sock in self.listening.values()] if name == "front" else []
        keep = [theirs.fileno(), settings_fd, self.log.fd, *map(int, listening)]
        arguments = [
            f"{name}-process",
            f"--control-fd={theirs.fileno()}",
            f"--settings-fd={settings_fd}",
            f"--log-fd={self.log.fd}",
            *(["--console"] if self.log.console else []),
            *(["--debug"] if self.settings["broker"]["log_level"] == "debug" else []),
        ]
        pid = start_program(arguments + listening, keep)
        theirs.close()
        os.close(settings_fd)
        process = Process(name, pid, ours, self, now)
        if name == "auth":
            self.auth = process
            for front in self.fronts:
                self._connect(front)
        else:
            self.fronts.append(process)
            self._connect(process)
        return process

    def _connect(self, front: Process) -> None:
        """Give a front and auth the two ends of a new login socket."""
        if self.auth is None:
            return
        fronts_end, auths_end = channel.pair()
        octets = messages.encode(messages.ATTACH)
        self.auth.tell(octets, [auths_end.fileno()])
        front.tell(octets, [fronts_end.fileno()])
        fronts_end.close()
        auths_end.close()

    def ended(self, process: Process, now: float) -> float | None:
        """Forget a process that ended; returns the seconds until it is started again, None if never."""
        process.control.close()
        if process is self.auth:
            self.auth = None
        else:
            self.fronts.remove(process)
        if self.state != SERVING:
            return None
        name = process.name
        if now - process.started >= SETTLED_S:
            self.back_off[name] = FIRST_BACK_OFF_S
        delay = self.back_off[name]
        self.back_off[name] = min(2 * delay, LAST_BACK_OFF_S)
        self.missing.append((now + delay, name))
        return delay

    def start_missing(self, now: float) -> list[Process]:
        """Start again what ended and has waited long enough; returns what was started."""
        due = [name for when, name in self.missing if when <= now]
        self.missing = [(when, name) for when, name in self.missing if when > now]
        return [self.start_process(name, now) for name in due]

    def all_ready(self) -> bool:
        """Whether every process of it has said that it is at work."""
        wanted = 1 + self.settings["broker"]["fronts"]
        running = self.processes()
        return len(running) == wanted and all(process.ready for process in running)

    def drain(self, at_once: bool) -> None:
        """Let every process finish what it has and end; `at_once`: peers before login are closed."""
        self.state = DRAINING
        self.missing = []
        octets = messages.encode(messages.DRAIN, at_once=int(at_once))
        for process in self.processes():
            process.tell(octets)

    def end(self, number: int) -> None:
        """Signal every process of it."""
        for process in self.processes():
            os.kill(process.pid, number)
