"""
PROCESS: the broker. Root; supervises, and forks a session for each login that auth accepted.

May run as root in this process: broker.*, `programs`, `signals`, `events`, `log_target`, `json_text`,
`tally`, `privsep.*`, and of the session `session.run` and `privsep.credentials.become_user` in the forked
child, until it is the mail user. Loaded here but run only there: session.*, `pop3.*`, `maildrop.*`.

It sees no password and parses nothing that a client sent. It imports as little as can be,
because a fork copies what it has: every module here is paid for in every session.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import time

from gpop import __version__, log_target, signals
from gpop.broker import rehearsal, starting, upgrade
from gpop.broker.control import Control
from gpop.broker.listening import Listening, inherited_sockets, listen_on, spelled
from gpop.broker.liveness import START_TIMEOUT_S, Health
from gpop.broker.service_manager import ServiceManager
from gpop.broker.sessions import Sessions, exit_fields
from gpop.broker.succession import Succession
from gpop.broker.supervision import SERVING, STARTING, Generation, Process
from gpop.broker.tallies import Lent, Tallies
from gpop.broker.watching import LOOK_S, FileWatch
from gpop.events import Log, place
from gpop.privsep import channel, messages
from gpop.privsep.shortage import Shortage
from gpop.programs import read_settings
from gpop.tally import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gpop.config import BrokerSettings

# After the grace time sessions are told to end; what is left after this long is killed.
END_TIMEOUT_S = 5.0
# Of what is ready so many are looked at in a turn of the loop; the kernel has the others take theirs.
MOST_READY = 16
# How late a session's death, or a process's, may be noticed while nobody logs in.
POLL_MS = 100
# How often session processes that wait for another login are looked after.
IDLE_POLL_MS = 10_000


class Values:
    """Settings, as attributes: the broker loads no dataclasses."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class Broker:
    """The supervisor's state, and one method per thing that can happen to it."""

    def __init__(self, config_path: str, log: Log, log_settings: BrokerSettings) -> None:
        self.config_path = config_path
        self.log = log
        self.log_settings = log_settings  # those of the start: where the log goes, no reload changes
        self.poller = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.listening: Listening = {}
        self.generations: list[Generation] = []
        self.processes: dict[int, Process] = {}
        self.tallies: Tallies | None = None  # what processes count in, if there are to be metrics
        self.sessions = Sessions(log, self.watch, self.unwatch)
        self.administration = Control(log, self.sessions.running, self.watch, self.unwatch, self._reap)
        self.signals: set[int] = set()
        self.ending = 0  # processes whose channel has closed and whose exit status is to come
        self.succession = Succession(self)
        self.manager = ServiceManager("", 0)
        self.health = Health(self)
        self.shortage = Shortage(log)
        # Sockets that we were given: then the config has no say in what is listened on.
        self.inherited: Listening = {}
        self.one_connection = False  # they are one connection, as from inetd, and we end with it
        self.syslog: FileWatch | None = None
        if log_settings.log_target == "syslog":
            self.syslog = FileWatch([log_settings.log_syslog_socket], time.monotonic())
        self.stop_at: float | None = None  # when the grace time is over
        self.kill_at: float | None = None
        self.failed = False
        self.pid_file = ""
        self.claim = -1  # on the run directory
        self.on_terminal = os.isatty(log.fd)
        self.boot_id = starting.read_boot_id()
        self.settings: BrokerSettings

    # Starting

    def start(self, plain: dict[str, Any], surroundings: dict[str, Any]) -> None:
        """
        Bind, start the first generation, and wait for nothing: `run` sees it become ready.

        Raises:
            StartFailed: an address can't be listened on, or the run directory can't be made.
        """
        self.manager = ServiceManager(surroundings["notify_socket"], surroundings["watchdog_s"])
        self.inherited = inherited_sockets(surroundings["sockets"])
        self.one_connection = surroundings["one_connection"]
        self._adopt(plain)
        if self.one_connection:
            plain["broker"]["metrics_listen"] = []  # there are as many of us as there are connections
            plain["log"] = {}  # and as many fronts: each is the client's own, and its end is that of the log
        starting.prepare_run_directory(self.settings.run_dir)
        self.listening = self.listen(plain["broker"])
        if not self.one_connection:
            self.claim = starting.claim_run_directory(self.settings.run_dir)
            self._listen_to_administrators()
            # Not before: another gpop that has these addresses is the one to be signalled.
            self.pid_file = starting.write_pid_file(self.settings.run_dir)
            self.succession.watch_certificates(self.settings.tls_certificates)
        self.start_generation(plain, self.listening)

    def _listen_to_administrators(self) -> None:
        if os.geteuid() != 0 and not os.access(self.settings.run_dir, os.W_OK):
            return
        try:
            self.administration.listen(self.settings.run_dir)
        except OSError as error:
            problem = f"server.run_dir: no control socket, so no gpop who and kick: {error.strerror or error}"
            self.log.write("config_warning", "warning", problem=problem)

    def _adopt(self, plain: dict[str, Any]) -> None:
        """Take over the settings for what is forked from now on."""
        broker: Any = Values(plain["broker"])
        of_session: Any = Values(plain["session"])
        self.settings = broker
        self.log.debug = self.settings.log_level == "debug"
        self.health.adopt(self.settings.answer_timeout_s, self.manager.watchdog_s)
        self.sessions.adopt(of_session, self.settings.max_per_account, self.boot_id)

    def listen(self, settings: dict[str, Any]) -> Listening:
        """Return a listening socket for each address, one that we have is kept. Raises StartFailed."""
        return self.inherited or listen_on(settings, self.listening)

    def start_generation(
        self, plain: dict[str, Any], listening: Listening, for_upgrade: bool = False
    ) -> None:
        now = time.monotonic()
        try:
            if plain["broker"]["metrics_listen"]:
                self._begin_counting()
        except OSError as error:
            problem = f"nothing can be counted, and there are no metrics: {error.strerror}"
            self.log.write("process_fault", "error", problem=problem)
        tallies = self.tallies if plain["broker"]["metrics_listen"] else None
        generation = Generation(plain, listening, self.log, tallies, now)
        generation.for_upgrade = for_upgrade
        self.generations.append(generation)
        try:
            for name in generation.wanted():
                self._start_process(generation, name, now)
        except OSError as error:
            self.starting_failed(generation, f"no process can be started: {error.strerror}")

    def _begin_counting(self) -> None:
        """From here on this process counts, and those that will be started. Raises OSError."""
        if self.tallies is not None:
            return
        tallies = Tallies()
        tallies.brokers.belongs_to(os.getpid())
        self.tallies = tallies
        self._count_in(tallies.brokers).set(("started_s",), int(time.time()))

    def _count_in(self, lent: Lent) -> Tally:
        # No session may have it: it is the mail user's process.
        self.log.tally = tally = Tally(os.dup(lent.fd), "broker", forked_from=True)
        self.sessions.count_in(tally)
        return tally

    def _start_process(self, generation: Generation, name: str, now: float) -> None:
        self._supervise(generation.start_process(name, now))

    def _supervise(self, process: Process) -> None:
        self.processes[process.pid] = process
        self.watch(process.control.fileno(), lambda: self._control_readable(process))

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poller.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        del self.handlers[fd]
        self.poller.unregister(fd)

    # The loop

    def heed_signals(self) -> None:
        """Take note of signals from here on; `run` acts on them."""
        wakeup, wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(wakeup, lambda: starting.drain_pipe(wakeup))
        signals.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        for number in (signals.TERM, signals.INT, signals.HUP, signals.USR1, signals.USR2):
            signals.actions[number] = self.signals.add
        signals.install()

    def run(self) -> int:
        """Handle what happens until gpop has stopped; returns the exit status."""
        while not self._stopped():
            for fd, _ in self.poller.poll(self._poll_timeout_ms() / 1000, MOST_READY):
                # A handler may have closed what a later one of this round was for.
                handler = self.handlers.get(fd)
                if handler:
                    handler()
            if self.signals:
                self._handle_signals()
            self._reap()
            self._keep_time(time.monotonic())
        starting.remove_pid_file(self.pid_file)
        self.log.write("broker_stopped", level="error" if self.failed else "info")
        return 1 if self.failed else 0

    def _stopped(self) -> bool:
        starts = any(generation.missing for generation in self.generations)
        return self.stop_at is not None and not self.processes and not self.sessions.pids() and not starts

    def _poll_timeout_ms(self) -> int:
        """
        Wake up for the clock, and for children that ended, only while there may be something.

        SIGCHLD would wake us once more for every session; they are reaped with the next login,
        or after this time.
        """
        waits = (
            self.sessions.running
            or self.sessions.reuse.ending
            or self.ending
            or self.succession.inquiry
            or self.stop_at is not None
            or any(generation.missing or generation.state == STARTING for generation in self.generations)
        )
        if waits:
            return POLL_MS
        next_look_ms = int(self.health.look_s * 1000) + 1
        if self.succession.watches_files or self.syslog:
            return min(next_look_ms, int(LOOK_S * 1000))
        return min(next_look_ms, IDLE_POLL_MS) if self.sessions.reuse.pids() else next_look_ms

    def _keep_time(self, now: float) -> None:
        self.succession.keep_time(now, stops=self.stop_at is not None)
        if self.log.tally is not None:
            self.log.tally.set(("running_sessions",), len(self.sessions.running))
        for generation in self.generations:
            if generation.missing:
                self._start_missing(generation, now)
            if generation.state == STARTING and now - generation.started > START_TIMEOUT_S:
                self.starting_failed(generation, f"not ready within {START_TIMEOUT_S:.0f} s")
        self.health.keep_time(now)
        if self.sessions.reuse.pids():
            self.sessions.reuse.end_idle(now)
        if self.syslog and self.syslog.changed(now):
            self._reopen_log()  # another daemon is there, or it has started again: ours is nobody's socket
        if self.stop_at is not None and now >= self.stop_at:
            self._end_what_is_left(now)

    def _start_missing(self, generation: Generation, now: float) -> None:
        for name in generation.due(now):
            try:
                self._start_process(generation, name, now)
            except OSError as error:
                again = generation.postpone(name, now)
                problem = f"{name} can't be started, next try in {again} s: {error.strerror}"
                self.log.write("process_fault", "error", problem=problem)

    def _handle_signals(self) -> None:
        arrived = self.signals.copy()
        self.signals -= arrived
        if signals.TERM in arrived or signals.INT in arrived:
            self._stop(time.monotonic())
        if signals.USR1 in arrived and self.log_settings.log_target != "stdout":
            self._reopen_log()
        if signals.USR2 in arrived and self.stop_at is None and not self.one_connection:
            if self.succession.is_under_way:
                self.signals.add(signals.USR2)
            else:
                self.succession.begin(for_upgrade=True)
        if signals.HUP in arrived and self.stop_at is None and not self.one_connection:
            if self.on_terminal and not os.isatty(self.log.fd):
                # The terminal was closed: nobody reads the log, and nobody could stop us.
                self._stop(time.monotonic())
            elif self.succession.is_under_way:
                # The file may have changed since it was read: once more, when this is done.
                self.signals.add(signals.HUP)
            else:
                self.succession.begin()

    # The log

    def _reopen_log(self) -> None:
        """Open the log anew, for every process: the file was renamed, or the syslog daemon has gone."""
        where = log_target.place_of(self.log_settings)
        try:
            fd = log_target.open_target(self.log_settings)
        except OSError as error:
            self.log.write("log_reopen_failed", "error", path=where, problem=error.strerror)
            return
        octets = messages.encode(messages.LOG)
        for process in self.processes.values():
            if process.holds_log and process.tell(octets, [fd]):
                process.lost.add((messages.LOG, 0))  # it is told again at the next look
                problem = f"{process.name} could not be told yet, and writes to what was open before"
                self.log.write("log_reopen_failed", "error", path=where, problem=problem)
        self.log.replace(fd)
        self.log.write("log_reopened", path=where)

    # Logins

    def _control_readable(self, process: Process) -> None:
        try:
            octets, fds = channel.receive_octets(process.control, messages.MAX_SERVE_OCTETS)
        except channel.ChannelClosed:
            # It ends; how, its status will say.
            self.ending += 1
            self.unwatch(process.control.fileno())
            return
        except BlockingIOError:
            return
        except channel.ShortOfDescriptors as short:
            if process.name == "auth" and messages.kind_of(short.octets) == messages.SERVE:
                # The front sees that the session channel has closed, and refuses the login with [SYS/TEMP].
                self.shortage.lost("auth", "an accepted login")
            else:
                self.reject(process, "descriptors, and it has none to send")
            return
        except (messages.BadFrame, OSError) as error:
            self.reject(process, str(error))
            return
        kind = messages.kind_of(octets)
        if kind == messages.SERVE and process.name == "auth" and len(fds) == 2:
            self._reap()
            try:
                self.sessions.serve(octets, fds)
            except messages.BadFrame as error:
                channel.close_all(fds)
                self.reject(process, str(error))
        elif kind == messages.READY and not process.ready and not fds:
            process.ready = True
            self._became_ready(process.generation)
        elif kind == messages.ALIVE and process.asked and not fds:
            self.health.answered(process)
        elif kind == messages.CUT_OFF and process.name in ("auth", "log") and not fds:
            self.health.cut_off(process, octets)
        elif kind == messages.LOST and not fds:
            self.health.lost(process, octets)
        elif kind == messages.LOOK and process.name == "metrics" and not fds:
            self.health.look_for_metrics(time.monotonic())
        else:
            channel.close_all(fds)
            self.reject(process, f"a frame of kind {kind} is not {process.name}'s to send now")

    def reject(self, process: Process, problem: str) -> None:
        """End a process that does not speak as gpop does: it was taken over, or is broken."""
        self.log.write("frame_rejected", "error", sender=process.name, pid=process.pid, problem=problem)
        os.kill(process.pid, signals.KILL)

    # Children that ended

    def _reap(self) -> None:
        # The last also when gpop stops and all the others have ended.
        sessions, succession = self.sessions, self.succession
        while sessions.running or self.processes or succession.inquiry or sessions.reuse.pids():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if sessions.ended(pid, status):
                continue
            if pid in self.processes:
                self._process_ended(self.processes.pop(pid), status)
            elif succession.inquiry and succession.inquiry.pid == pid:
                code = os.waitstatus_to_exitcode(status)
                succession.inquiry_ended(succession.inquiry, code, stops=self.stop_at is not None)

    def _process_ended(self, process: Process, status: int) -> None:
        generation = process.generation
        if process.control.fileno() in self.handlers:
            self.unwatch(process.control.fileno())
        else:
            self.ending -= 1
        if self.one_connection and process.name == "front" and self.stop_at is None:
            self._stop(time.monotonic())
        if generation.state == STARTING and process.is_needed:
            generation.ended(process, time.monotonic())
            self.starting_failed(generation, f"{process.name} ended: {exit_fields(status)}")
            return
        again = generation.ended(process, time.monotonic())
        if again is not None:
            fields: dict[str, Any] = {"ended": process.name, "pid": process.pid, "restart_in_s": again}
            self.log.write("process_ended", "error", **fields, **exit_fields(status))
            if self.log.tally is not None:
                self.log.tally.add(("restarts", process.name))
        elif generation.is_over() and generation in self.generations:
            self.generations.remove(generation)

    # Generations

    def _became_ready(self, generation: Generation) -> None:
        if generation.state != STARTING or not generation.all_ready():
            return
        if generation.for_upgrade:
            self.succession.try_next_broker(generation)
            return
        self._adopt(generation.settings)
        self._listen_only_on(generation.listening)
        generation.serve()
        # Anything the old ones accept from here on, the new ones could have accepted as well.
        old = [other for other in self.generations if other.state == SERVING and other is not generation]
        for other in old:
            other.drain(at_once=False)
        for process in generation.processes():
            process.ask()
        fields: dict[str, Any] = {"listen": self.addresses(tls=False), "pid": os.getpid()}
        with_tls = self.addresses(tls=True)
        if with_tls:
            fields["listen_tls"] = with_tls
        fields["fronts"] = self.settings.fronts
        if old:
            self.log.write("reload_finished", **fields)
        else:
            self.log.write("broker_started", version=__version__, root=os.geteuid() == 0, **fields)
        if self.one_connection:
            # The front has it, and when it closes it, its client is to notice.
            for sock in self.listening.values():
                sock.close()

    def _listen_only_on(self, listening: Listening) -> None:
        """Close the other sockets; old fronts have copies of their own until they drain."""
        for address in self.listening.keys() - listening.keys():
            self.listening[address].close()
        self.listening = listening
        for sock in listening.values():
            channel.set_autologout(sock, self.sessions.settings.autologout_s)

    def addresses(self, tls: bool) -> list[str]:
        """The addresses listened on, with the ports that the kernel chose."""
        return [spelled(sock) for (_, with_tls), sock in self.listening.items() if with_tls == tls]

    def starting_failed(self, generation: Generation, problem: str) -> None:
        """A new generation did not come up: end it, and keep the old one if there is one."""
        generation.end()
        for address in generation.listening.keys() - self.listening.keys():
            generation.listening[address].close()
        first = not any(other.state == SERVING for other in self.generations)
        event = "upgrade_failed" if generation.for_upgrade else "reload_failed"
        self.log.write(event, "error", problem=problem, kept_old=not first)
        if not first:
            self.manager.ready()
        if generation.is_over():
            self.generations.remove(generation)
        if first:
            self.failed = True
            self._stop(time.monotonic())

    # Upgrade

    def handed_over(self) -> dict[str, Any]:
        """What the next broker has to know."""
        return upgrade.handed_over(
            self.log,
            self.listening,
            self.generations,
            sessions=self.sessions.handed_over(),
            signals=sorted(self.signals),
            inherited=bool(self.inherited),
            notify_socket=self.manager.address,
            watchdog_s=self.manager.watchdog_s,
            tallies=self.tallies,
            log_settings=vars(self.log_settings),
        )

    def take_over(self, state: dict[str, Any]) -> Generation:
        """
        Know all that the broker before knew, and touch none of it; returns the generation that is to serve.

        Raises:
            NotTakenOver: it was another version, which handed over otherwise.
        """
        upgrade.check(state)
        self.manager = ServiceManager(state["notify_socket"], state["watchdog_s"])
        self.listening, self.generations, self.tallies = upgrade.taken_over(state, self.log)
        if state["inherited"]:
            self.inherited = self.listening
        self.signals.update(state["signals"])
        self.sessions.take_over(state["sessions"])
        for generation in self.generations:
            for process in generation.processes():
                self._supervise(process)
        newest = self.generations[-1]
        self._adopt(newest.settings)
        self.succession.watch_certificates(self.settings.tls_certificates)
        return newest

    def count_on(self) -> None:
        """Count where the broker before has stopped. Its trial does not: that one counts still."""
        if self.tallies:
            self._count_in(self.tallies.brokers)

    def go_on(self, newest: Generation, before: str) -> None:
        """Serve with the generation that the broker of version `before` has started."""
        self.log.write("upgrade_finished", version=__version__, before=before, pid=os.getpid())
        try:
            self.claim = starting.claim_run_directory(self.settings.run_dir)
        except starting.StartFailed as error:
            self.log.write("config_warning", "warning", problem=str(error))
        self._listen_to_administrators()
        self.pid_file = starting.write_pid_file(self.settings.run_dir)
        try:
            newest.take_log_away(time.monotonic())
        except OSError as error:
            self.starting_failed(newest, f"there can be no log process: {error.strerror}")
            return
        self._became_ready(newest)

    # Stopping

    def _stop(self, now: float) -> None:
        """SIGTERM: accept nothing new, give sessions the grace time. A second one ends the grace time."""
        if self.stop_at is not None:
            self.stop_at = now
            return
        self.stop_at = now + self.settings.grace_time_s
        if self.claim >= 0:
            os.close(self.claim)  # the next gpop may start while our sessions have their grace time
            self.claim = -1
        grace = self.settings.grace_time_s
        self.log.write("shutdown_started", sessions=len(self.sessions.running), grace_time_s=grace)
        self.manager.stops(grace + 2 * END_TIMEOUT_S)
        for generation in self.generations:
            for sock in generation.listening.values():
                sock.close()
            generation.drain(at_once=True)
        self.sessions.reuse.end()

    def _end_what_is_left(self, now: float) -> None:
        if self.kill_at is None:
            self.kill_at = now + END_TIMEOUT_S
            self.log.write("sessions_ended", sessions=len(self.sessions.running))
            for pid in self.sessions.running:
                os.kill(pid, signals.TERM)
        elif now >= self.kill_at:
            self.kill_at = now + END_TIMEOUT_S
            # Those that write the log for the others come last, and not without a moment for that.
            logs = [pid for pid, process in self.processes.items() if process.name == "log"]
            others = [*self.sessions.pids(), *(pid for pid in self.processes if pid not in logs)]
            for pid in others or logs:
                os.kill(pid, signals.KILL)
            if not others:
                for generation in self.generations:
                    generation.missing = []


def _rehearse(broker: Broker) -> None:
    folder = broker.settings.run_dir if os.geteuid() == 0 else "/tmp"
    try:
        sessions = broker.sessions
        rehearsal.rehearse(folder, sessions.settings, sessions.options, sessions.confinement)
    except OSError as error:
        problem = f"sessions could not be rehearsed in {folder} and cost more: {error}"
        broker.log.write("config_warning", "warning", problem=problem)


def main(arguments: list[str]) -> int:
    """
    Run as the broker: `broker CONFIG SETTINGS_FD`.

    With `trial` behind that it is only seen whether it could take over from the broker that asks.
    """
    config_path, settings_fd, *trial = arguments
    handed = read_settings(int(settings_fd))
    before = handed.get("upgrade")
    log_settings: Any = Values(before["log_settings"] if before else handed["broker"])
    try:
        log_fd = before["log_fd"] if before else log_target.open_target(log_settings)
    except OSError as error:
        where = f"log.target = {log_settings.log_target}: {log_target.place_of(log_settings)}"
        print(f"gpop: {where}: {error.strerror}", file=sys.stderr)
        return 1
    is_terminal = log_settings.log_target == "stdout" and os.isatty(log_fd)
    console = log_settings.log_format == "console" or (log_settings.log_format == "auto" and is_terminal)
    log = Log(log_fd, "broker", console, facility=log_target.facility_of(log_settings))
    broker = Broker(config_path, log, log_settings)
    try:
        return _run(broker, handed, bool(trial))
    except (starting.StartFailed, upgrade.NotTakenOver) as error:
        print(f"gpop: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if trial:
            raise  # who asks reads it
        # The one outermost handler; without it nobody would ever know. Fronts and auth end with us.
        log.write("process_fault", "error", problem=place(error))
        return 1


def _run(broker: Broker, handed: dict[str, Any], trial: bool) -> int:
    """Be the broker, from its start or from where another version's has come to, to its end."""
    before: dict[str, Any] = handed.get("upgrade", {})
    newest = broker.take_over(before) if before else None
    if trial:
        try:
            _rehearse(broker)
        except channel.ChannelClosed:
            text = "a session that was played in the trial of its broker ended before it had said how"
            raise upgrade.NotTakenOver(text) from None
        return 0
    broker.heed_signals()
    if newest:
        broker.count_on()
    else:
        broker.start(handed, handed["surroundings"])
    _rehearse(broker)
    starting.forget_standard_files()
    starting.close_import_system()
    gc.collect()
    gc.freeze()
    gc.disable()
    if newest:
        broker.go_on(newest, before["version"])
        before.clear()  # what was needed of it has been taken
    return broker.run()
