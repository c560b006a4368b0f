"""
EDGE: whether fronts, auth and log are at work, and not only there: they are asked, again and again.

A process that ends is noticed by its end. One that hangs (a loop, a library that waits for ever, a
stopped process) is noticed by nothing else than that it does not answer. `Liveness` says who that is,
`Health` what follows: who hangs is ended, and its end starts another one; systemd hears how things are.

Executed by the broker, as root.
"""

from __future__ import annotations

import os

from gpop import signals
from gpop.broker.supervision import SERVING
from gpop.privsep import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from gpop.broker.service_manager import ServiceManager
    from gpop.broker.sessions import Sessions
    from gpop.broker.supervision import Generation, Process
    from gpop.broker.tallies import Tallies
    from gpop.events import Log

    class Supervisor(Protocol):
        """What is seen of the broker from here; `reject` ends a process that can't be believed."""

        log: Log
        manager: ServiceManager
        generations: list[Generation]
        processes: dict[int, Process]
        sessions: Sessions
        tallies: Tallies | None

        def reject(self, process: Process, problem: str) -> None: ...


# So often in the time that a process has for its answer.
LOOKS = 3
# Loading gevent, PAM and certificates takes about a second on a busy machine.
START_TIMEOUT_S = 60.0


class Liveness:
    """
    When the next look is due, and which processes are stuck.

    It counts looks, not seconds: after a machine, or the broker, has slept for a while everybody
    is late, and nobody is stuck.

    Attributes:
        look_s: how often is looked.
    """

    __slots__ = ("_looked", "_most_missed", "look_s")

    def __init__(self) -> None:
        self._looked = 0.0
        self.adopt(30.0, 0.0)

    def adopt(self, answer_timeout_s: float, watchdog_s: float) -> None:
        """Take over how long an answer may take; `watchdog_s`: the service manager's patience, 0: no end."""
        self.look_s = answer_timeout_s / LOOKS
        if watchdog_s:
            self.look_s = min(self.look_s, watchdog_s / LOOKS)
        self._most_missed = round(answer_timeout_s / self.look_s)

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again."""
        return now - self._looked >= self.look_s

    def look(self, processes: Iterable[Process], now: float) -> list[Process]:
        """Ask all that have answered; return those that have not, or are not ready, for too long."""
        self._looked = now
        stuck = []
        for process in processes:
            if not process.ready:
                if now - process.started > START_TIMEOUT_S:
                    stuck.append(process)
            elif process.missed >= self._most_missed:
                stuck.append(process)
            elif process.asked:
                process.missed += 1
            else:
                process.ask()
        return stuck


class Health:
    """Asks all processes now and then, acts upon what they answer, or do not, and repeats what was lost."""

    __slots__ = ("_liveness", "_server")

    def __init__(self, server: Supervisor) -> None:
        self._server = server
        self._liveness = Liveness()

    @property
    def look_s(self) -> float:
        """How often they are asked."""
        return self._liveness.look_s

    def adopt(self, answer_timeout_s: float, watchdog_s: float) -> None:
        """See `Liveness.adopt`."""
        self._liveness.adopt(answer_timeout_s, watchdog_s)

    def keep_time(self, now: float) -> None:
        """If a look is due: ask whether they are at work, and end those that do not answer."""
        if not self._liveness.is_due(now):
            return
        server = self._server
        serving = [generation for generation in server.generations if generation.state == SERVING]
        if any(generation.answers() for generation in serving):
            server.manager.well()
        for generation in server.generations:
            generation.log_pipes.forget_what_is_read()
        for process in server.processes.values():
            if process.lost:
                process.generation.send_again(process)
        for process in self._liveness.look(server.processes.values(), now):
            problem = "it does not answer" if process.ready else "it did not become ready"
            server.log.write("process_stuck", "error", stuck=process.name, pid=process.pid, problem=problem)
            os.kill(process.pid, signals.KILL)
        fronts = sum(len(generation.fronts) for generation in serving)
        server.manager.status(f"{len(server.sessions.running)} sessions; fronts: {fronts}")

    def answered(self, process: Process) -> None:
        """A process is at work. Fronts say so after they have begun to accept: then the service is ready."""
        process.answered()
        generation = process.generation
        if generation.state == SERVING and not any(each.asked for each in generation.processes()):
            self._server.manager.ready()

    def cut_off(self, by: Process, octets: bytes) -> None:
        """
        Auth listens to a front no more, so that can serve nobody: its end starts another one.

        Or the log process does, to whom of its writers it is: what else that has written is not read.
        """
        try:
            pid = messages.fields_of(octets, messages.CUT_OFF)["front"]
        except messages.BadFrame as error:
            self._server.reject(by, str(error))
            return
        generation = by.generation
        for process in generation.fronts if by is generation.auth else generation.processes():
            if process.pid == pid and process is not by and process is not generation.auth:
                if by is generation.log_process:
                    process.close_log_pipe()
                self._server.reject(process, f"{by.name} has ended the conversation with it")

    def lost(self, process: Process, octets: bytes) -> None:
        """It had no descriptor free for what it was sent. At the next look that is sent again."""
        try:
            fields = messages.fields_of(octets, messages.LOST)
        except messages.BadFrame as error:
            self._server.reject(process, str(error))
            return
        kind, pid = fields["frame_kind"], fields["pid"]
        if process.generation.has_sent(process, kind, pid):
            process.lost.add((kind, pid))
        else:
            self._server.reject(process, f"it was sent no frame of kind {kind} about process {pid}")

    def look_for_metrics(self, now: float) -> None:
        """Somebody asks whether all is well: each process says so for itself, if it can."""
        server = self._server
        if server.tallies is None or server.log.tally is None or not server.tallies.may_look(now):
            return
        server.log.tally.answer(now)
        for process in server.processes.values():
            if process.is_needed and not process.asked:
                process.ask()
