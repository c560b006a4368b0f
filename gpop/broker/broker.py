"""
PROCESS: the broker. Root; supervises, and forks a session for each login that auth accepted.

May run as root in this process: broker.*, `programs`, `signals`, `events`, `json_text`, `privsep.*`,
and of the session `session.run` and `privsep.credentials.become_user` in the forked child, until
it is the mail user. Loaded here but run only there: session.*, `pop3.*`, `maildrop.*`.

It sees no password and parses nothing that a client sent. It imports as little as can be,
because a fork copies what it has: every module here is paid for in every session.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import time

from gpop import __version__, signals
from gpop.broker import rehearsal
from gpop.broker.control import Control
from gpop.broker.listening import Listening, listening_socket, spelled
from gpop.broker.sessions import Sessions, exit_fields
from gpop.broker.supervision import DRAINING, SERVING, STARTING, Generation, Process
from gpop.broker.watching import LOOK_S, FileWatch
from gpop.events import Log, open_log, place
from gpop.privsep import channel, messages
from gpop.programs import ConfigReader, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gpop.config import BrokerSettings

# Loading gevent, PAM and certificates takes about a second on a busy machine.
START_TIMEOUT_S = 60.0
# After the grace time sessions are told to end; what is left after this long is killed.
END_TIMEOUT_S = 5.0
# How late a session's death, or a process's, may be noticed while nobody logs in.
POLL_MS = 100
# How often session processes that wait for another login are looked after.
IDLE_POLL_MS = 10_000


class Values:
    """Settings, as attributes: the broker loads no dataclasses."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class StartFailed(Exception):
    """gpop can't start; the text says why."""


class Broker:
    """The supervisor's state, and one method per thing that can happen to it."""

    def __init__(self, config_path: str, log: Log) -> None:
        self.config_path = config_path
        self.log = log
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.listening: Listening = {}
        self.generations: list[Generation] = []
        self.processes: dict[int, Process] = {}
        self.sessions = Sessions(log, self._watch, self._unwatch)
        self.administration = Control(log, self.sessions.running, self._watch, self._unwatch, self._reap)
        self.signals: set[int] = set()
        self.ending = 0  # processes whose channel has closed and whose exit status is to come
        self.reader: ConfigReader | None = None
        self.certificates: FileWatch | None = None
        self.stop_at: float | None = None  # when the grace time is over
        self.kill_at: float | None = None
        self.failed = False
        self.on_terminal = os.isatty(log.fd)
        self.boot_id = _read_boot_id()
        self.settings: BrokerSettings

    # Starting

    def start(self, plain: dict[str, Any]) -> None:
        """
        Bind, start the first generation, and wait for nothing: `run` sees it become ready.

        Raises:
            StartFailed: an address can't be listened on, or the run directory can't be made.
        """
        self._adopt(plain)
        _prepare_run_directory(self.settings.run_dir)
        self.listening = self._listen(plain["broker"])
        self._listen_to_administrators()
        self._watch_certificates(self.settings.tls_certificates)
        self._start_generation(plain, self.listening)

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
        self.sessions.adopt(of_session, self.settings.max_per_account, self.boot_id)

    def _listen(self, settings: dict[str, Any]) -> Listening:
        """Return a listening socket for each address, those we have already among them."""
        sockets: Listening = {}
        wanted = [(address, False) for address in settings["listen"]]
        for address, tls in [*wanted, *((address, True) for address in settings["listen_tls"])]:
            try:
                sockets[address, tls] = self.listening.get((address, tls)) or listening_socket(address)
            except OSError as error:
                for new in sockets.keys() - self.listening.keys():
                    sockets[new].close()
                setting = "server.listen_tls" if tls else "server.listen"
                raise StartFailed(f"{setting}: {address}: {error.strerror}") from error
        return sockets

    def _start_generation(self, plain: dict[str, Any], listening: Listening) -> None:
        now = time.monotonic()
        generation = Generation(plain, listening, self.log, now)
        self.generations.append(generation)
        try:
            for name in generation.wanted():
                self._start_process(generation, name, now)
        except OSError as error:
            self._starting_failed(generation, f"no process can be started: {error.strerror}")

    def _start_process(self, generation: Generation, name: str, now: float) -> None:
        process = generation.start_process(name, now)
        self.processes[process.pid] = process
        self._watch(process.control.fileno(), lambda: self._control_readable(process))

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poller.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        del self.handlers[fd]
        self.poller.unregister(fd)

    # The loop

    def heed_signals(self) -> None:
        """Take note of signals from here on; `run` acts on them."""
        wakeup, wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch(wakeup, lambda: _drain_pipe(wakeup))
        signals.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        for number in (signals.TERM, signals.INT, signals.HUP):
            signals.actions[number] = self.signals.add
        signals.install()

    def run(self) -> int:
        """Handle what happens until gpop has stopped; returns the exit status."""
        while not self._stopped():
            for fd, _ in self.poller.poll(self._poll_timeout_ms()):
                # A handler may have closed what a later one of this round was for.
                handler = self.handlers.get(fd)
                if handler:
                    handler()
            if self.signals:
                self._handle_signals()
            self._reap()
            self._keep_time(time.monotonic())
        self.log.write("broker_stopped", level="error" if self.failed else "info")
        return 1 if self.failed else 0

    def _stopped(self) -> bool:
        return self.stop_at is not None and not self.processes and not self.sessions.pids()

    def _poll_timeout_ms(self) -> int | None:
        """
        Wake up for the clock, and for children that ended, only while there may be something.

        SIGCHLD would wake us once more for every session; they are reaped with the next login,
        or after this time.
        """
        waits = (
            self.sessions.running
            or self.sessions.reuse.ending
            or self.ending
            or self.reader
            or self.stop_at is not None
            or any(generation.missing or generation.state == STARTING for generation in self.generations)
        )
        if waits:
            return POLL_MS
        if self.certificates:
            return int(LOOK_S * 1000)
        return IDLE_POLL_MS if self.sessions.reuse.pids() else None

    def _keep_time(self, now: float) -> None:
        for generation in self.generations:
            if generation.missing:
                self._start_missing(generation, now)
            if generation.state == STARTING and now - generation.started > START_TIMEOUT_S:
                self._starting_failed(generation, f"not ready within {START_TIMEOUT_S:.0f} s")
        if self.reader and now - self.reader.started > START_TIMEOUT_S:
            os.kill(self.reader.pid, signals.KILL)
        if self.sessions.reuse.pids():
            self.sessions.reuse.end_idle(now)
        if self.certificates and self.stop_at is None and not self._reloads():
            self._look_at_certificates(self.certificates, now)
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
        if signals.HUP in arrived and self.stop_at is None:
            if self.on_terminal and not os.isatty(self.log.fd):
                # The terminal was closed: nobody reads the log, and nobody could stop us.
                self._stop(time.monotonic())
            elif self._reloads():
                # The file may have changed since it was read: once more, when this is done.
                self.signals.add(signals.HUP)
            else:
                self._read_config()

    # Logins

    def _control_readable(self, process: Process) -> None:
        try:
            octets, fds = channel.receive_octets(process.control, messages.MAX_SERVE_OCTETS)
        except channel.ChannelClosed:
            # It ends; how, its status will say.
            self.ending += 1
            self._unwatch(process.control.fileno())
            return
        except BlockingIOError:
            return
        except messages.BadFrame as error:
            self._reject(process, str(error))
            return
        kind = messages.kind_of(octets)
        if kind == messages.SERVE and process.name == "auth" and len(fds) == 2:
            self._reap()
            self.sessions.serve(octets, fds)
        elif kind == messages.READY and not process.ready and not fds:
            process.ready = True
            self._became_ready(process.generation)
        else:
            channel.close_all(fds)
            self._reject(process, f"a frame of kind {kind} is not {process.name}'s to send now")

    def _reject(self, process: Process, problem: str) -> None:
        """End a process that does not speak as gpop does: it was taken over, or is broken."""
        self.log.write("frame_rejected", "error", sender=process.name, pid=process.pid, problem=problem)
        os.kill(process.pid, signals.KILL)

    # Children that ended

    def _reap(self) -> None:
        # The last also when gpop stops and all the others have ended.
        while self.sessions.running or self.processes or self.reader or self.sessions.reuse.pids():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if self.sessions.ended(pid, status):
                continue
            if pid in self.processes:
                self._process_ended(self.processes.pop(pid), status)
            elif self.reader and self.reader.pid == pid:
                self._config_read(self.reader)

    def _process_ended(self, process: Process, status: int) -> None:
        generation = process.generation
        if process.control.fileno() in self.handlers:
            self._unwatch(process.control.fileno())
        else:
            self.ending -= 1
        if generation.state == STARTING:
            generation.ended(process, time.monotonic())
            self._starting_failed(generation, f"{process.name} ended: {exit_fields(status)}")
            return
        again = generation.ended(process, time.monotonic())
        if again is not None:
            fields: dict[str, Any] = {"ended": process.name, "pid": process.pid, "restart_in_s": again}
            self.log.write("process_ended", "error", **fields, **exit_fields(status))
        elif not generation.processes() and generation in self.generations:
            self.generations.remove(generation)

    # Generations

    def _became_ready(self, generation: Generation) -> None:
        if generation.state != STARTING or not generation.all_ready():
            return
        self._adopt(generation.settings)
        self._listen_only_on(generation.listening)
        generation.serve()
        # Anything the old ones accept from here on, the new ones could have accepted as well.
        old = [other for other in self.generations if other.state == SERVING and other is not generation]
        for other in old:
            other.drain(at_once=False)
        fields: dict[str, Any] = {"listen": self.addresses(tls=False), "pid": os.getpid()}
        if self.settings.listen_tls:
            fields["listen_tls"] = self.addresses(tls=True)
        fields["fronts"] = self.settings.fronts
        if old:
            self.log.write("reload_finished", **fields)
        else:
            self.log.write("broker_started", version=__version__, root=os.geteuid() == 0, **fields)

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

    def _starting_failed(self, generation: Generation, problem: str) -> None:
        """A new generation did not come up: end it, and keep the old one if there is one."""
        generation.state = DRAINING
        generation.end(signals.KILL)
        for address in generation.listening.keys() - self.listening.keys():
            generation.listening[address].close()
        first = not any(other.state == SERVING for other in self.generations)
        self.log.write("reload_failed", "error", problem=problem, kept_old=not first)
        if not generation.processes():
            self.generations.remove(generation)
        if first:
            self.failed = True
            self._stop(time.monotonic())

    # Reload

    def _reloads(self) -> bool:
        """Whether a config is being read, or processes are being started with it."""
        return bool(self.reader) or any(generation.state == STARTING for generation in self.generations)

    def _read_config(self) -> None:
        """Have the config read and checked; `_config_read` goes on when that is done."""
        try:
            self.reader = reader = ConfigReader(self.config_path, time.monotonic())
        except OSError as error:
            problem = f"no process can be started: {error.strerror}"
            self.log.write("reload_failed", "error", problem=problem, kept_old=True)
            return

        def readable() -> None:
            if not reader.read():
                self.ending += 1
                self._unwatch(reader.fd)

        self._watch(reader.fd, readable)
        self.log.write("reload_started", config=self.config_path)

    def _watch_certificates(self, pairs: list[list[str]]) -> None:
        """Watch the files of the certificates that are to be used from here on, before anybody reads them."""
        paths = sorted({path for pair in pairs for path in pair})
        if not paths:
            self.certificates = None
        elif self.certificates is None or self.certificates.paths != paths:
            self.certificates = FileWatch(paths, time.monotonic())

    def _look_at_certificates(self, certificates: FileWatch, now: float) -> None:
        """Renewed certificates are loaded as after SIGHUP: checked, by fresh fronts, and no session ends."""
        path = certificates.changed(now)
        if path:
            self.log.write("certificate_changed", path=path)
            self._read_config()

    def _config_read(self, reader: ConfigReader) -> None:
        """The process that read the config has ended: take what it said, or keep the old config."""
        self.reader = None
        if reader.fd in self.handlers:
            self._unwatch(reader.fd)
        else:
            self.ending -= 1
        answer = reader.answer()
        if self.stop_at is not None:
            return
        if "settings" not in answer:
            self.log.write("config_rejected", "error", config=self.config_path, problems=answer["errors"])
            return
        for warning in answer["warnings"]:
            self.log.write("config_warning", "warning", problem=warning)
        self._apply(answer["settings"])

    def _apply(self, plain: dict[str, Any]) -> None:
        try:
            _prepare_run_directory(plain["broker"]["run_dir"])
            listening = self._listen(plain["broker"])
        except StartFailed as error:
            self.log.write("config_rejected", "error", config=self.config_path, problems=[str(error)])
            return
        self._watch_certificates(plain["broker"]["tls_certificates"])
        self._start_generation(plain, listening)

    # Stopping

    def _stop(self, now: float) -> None:
        """SIGTERM: accept nothing new, give sessions the grace time. A second one ends the grace time."""
        if self.stop_at is not None:
            self.stop_at = now
            return
        self.stop_at = now + self.settings.grace_time_s
        grace = self.settings.grace_time_s
        self.log.write("shutdown_started", sessions=len(self.sessions.running), grace_time_s=grace)
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
            for pid in [*self.sessions.pids(), *self.processes]:
                os.kill(pid, signals.KILL)


def _prepare_run_directory(run_dir: str) -> None:
    """Make the empty directory in which the fronts are jailed."""
    if os.geteuid() != 0:
        return
    try:
        os.makedirs(os.path.join(run_dir, "empty"), 0o755, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"server.run_dir: {run_dir}: {error.strerror}") from error


def _drain_pipe(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        return


def _read_boot_id() -> bytes:
    """The kernel's name for this boot: after another one, a cache may be torn that looks whole."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(64).strip().replace(b"-", b"")
    except OSError:
        return b""


def _forget_standard_files() -> None:
    """0, 1 and 2 become /dev/null, for the sessions too: nobody may write into a mail user's stream."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _close_import_system() -> None:
    """After this nothing can be imported: in a jail an import would run the user's file."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def _rehearse(broker: Broker) -> None:
    folder = broker.settings.run_dir if os.geteuid() == 0 else "/tmp"
    try:
        rehearsal.rehearse(folder, broker.sessions.settings, broker.sessions.options)
    except OSError as error:
        problem = f"sessions could not be rehearsed in {folder} and cost more: {error}"
        broker.log.write("config_warning", "warning", problem=problem)


def main(arguments: list[str]) -> int:
    """Run as the broker: `broker CONFIG SETTINGS_FD`, log on descriptor 1."""
    config_path, settings_fd = arguments
    plain = read_settings(int(settings_fd))
    log_settings = plain["broker"]
    console = log_settings["log_format"] == "console" or (
        log_settings["log_format"] == "auto" and os.isatty(1)
    )
    log = Log(open_log(1), "broker", console)
    broker = Broker(config_path, log)
    broker.heed_signals()
    try:
        broker.start(plain)
    except StartFailed as error:
        print(f"gpop: {error}", file=sys.stderr)
        return 1
    _rehearse(broker)
    _forget_standard_files()
    _close_import_system()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return broker.run()
    except Exception as error:
        # The one outermost handler; without it nobody would ever know. Fronts and auth end with us.
        log.write("process_fault", "error", problem=place(error))
        return 1
