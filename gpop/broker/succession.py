"""
EDGE: what serves is succeeded: by the config as it is now, and by the version that is installed now.

    SIGHUP, certificate renewed -> config read -> new generation ──────────────────────┐
                                                                                       ├-> it serves
    SIGUSR2 -> config read -> new generation -> trial of the new broker -> exec of it ─┘

Each step is another process, and what it finds out comes with its end: nothing is waited for. Whatever fails,
the generation that serves goes on. `upgrade` has what one broker hands to the next; here is when.

Executed by the broker, as root.
"""

from __future__ import annotations

import os
import time

from gpop import signals
from gpop.broker import starting, upgrade
from gpop.broker.liveness import START_TIMEOUT_S
from gpop.broker.supervision import STARTING
from gpop.broker.watching import FileWatch
from gpop.programs import Inquiry, config_answer, read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from gpop.broker.listening import Listening
    from gpop.broker.service_manager import ServiceManager
    from gpop.broker.supervision import Generation
    from gpop.config import BrokerSettings
    from gpop.events import Log

    class Supervisor(Protocol):
        """What is seen of the broker from here; `watch` and `unwatch` are its loop's."""

        config_path: str
        log: Log
        manager: ServiceManager
        generations: list[Generation]
        settings: BrokerSettings

        def watch(self, fd: int, handler: Callable[[], None]) -> None: ...
        def unwatch(self, fd: int) -> None: ...
        def listen(self, settings: dict[str, Any]) -> Listening: ...
        def start_generation(
            self, plain: dict[str, Any], listening: Listening, for_upgrade: bool
        ) -> None: ...
        def starting_failed(self, generation: Generation, problem: str) -> None: ...
        def handed_over(self) -> dict[str, Any]: ...


class Succession:
    """
    At most one reload or upgrade at a time, from its signal to the generation that is to serve.

    Attributes:
        inquiry: the process that is asked just now.
    """

    __slots__ = ("_certificates", "_listened_to", "_next", "_server", "_when_answered", "inquiry")

    def __init__(self, server: Supervisor) -> None:
        self._server = server
        self.inquiry: Inquiry | None = None
        self._listened_to = False  # whether the inquiry may still say something
        self._when_answered: Callable[[bytes, int], None] = lambda _said, _status: None
        self._next: Generation | None = None  # it serves as soon as the next version's broker does
        self._certificates: FileWatch | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a config is being read, or processes are being started with it."""
        starts = any(generation.state == STARTING for generation in self._server.generations)
        return bool(self.inquiry) or starts

    @property
    def watches_files(self) -> bool:
        """Whether `keep_time` looks at files now and then."""
        return self._certificates is not None

    # Processes that find something out

    def _ask(self, inquiry: Inquiry, then: Callable[[bytes, int], None]) -> None:
        """Go on with `then`, what the process has said and its exit status, when it has ended."""

        def readable() -> None:
            if not inquiry.read():
                self._stop_listening(inquiry)

        self.inquiry, self._when_answered = inquiry, then
        self._listened_to = True
        self._server.watch(inquiry.fd, readable)

    def _stop_listening(self, inquiry: Inquiry) -> None:
        if self._listened_to:
            self._listened_to = False
            self._server.unwatch(inquiry.fd)

    def inquiry_ended(self, inquiry: Inquiry, status: int, stops: bool) -> None:
        """The process has been reaped; `stops`: gpop is ending, and nothing follows from what was said."""
        self.inquiry = None
        self._stop_listening(inquiry)
        said = inquiry.said()
        if not stops:
            self._when_answered(said, status)

    def keep_time(self, now: float, stops: bool) -> None:
        """Do what is due, between two turns of the broker's loop. May not return: see `_give_way`."""
        if self._next:
            self._give_way(self._next)
        if self.inquiry and now - self.inquiry.started > START_TIMEOUT_S:
            os.kill(self.inquiry.pid, signals.KILL)
        if self._certificates and not stops and not self.is_under_way:
            self._look_at_certificates(self._certificates, now)

    # By another config

    def begin(self, for_upgrade: bool = False) -> bool:
        """
        Have the config read and checked by what is installed; `_config_read` goes on when that is done.

        Returns False if no process can be started for it.
        """

        def answered(said: bytes, status: int) -> None:
            self._config_read(config_answer(said, status), for_upgrade)

        log, config = self._server.log, self._server.config_path
        try:
            self._ask(read_config(config, time.monotonic()), answered)
        except OSError as error:
            problem = f"no process can be started: {error.strerror}"
            event = "upgrade_failed" if for_upgrade else "reload_failed"
            log.write(event, "error", problem=problem, kept_old=True)
            return False
        log.write("upgrade_started" if for_upgrade else "reload_started", config=config)
        self._server.manager.starts_over()
        return True

    def _config_read(self, answer: dict[str, Any], for_upgrade: bool) -> None:
        """Start processes with the config that was read, or keep the old one."""
        if "settings" not in answer:
            self._config_rejected(answer["errors"])
            return
        for warning in answer["warnings"]:
            self._server.log.write("config_warning", "warning", problem=warning)
        plain = answer["settings"]
        run_dir, new_run_dir = self._server.settings.run_dir, plain["broker"]["run_dir"]
        if new_run_dir != run_dir:
            # The control socket is there, broker.pid, and our claim that no other gpop takes these from us.
            text = f'server.run_dir = "{new_run_dir}": expected "{run_dir}": it changes with a restart only'
            self._config_rejected([text])
            return
        try:
            starting.prepare_run_directory(plain["broker"]["run_dir"])
            listening = self._server.listen(plain["broker"])
        except starting.StartFailed as error:
            self._config_rejected([str(error)])
            return
        self.watch_certificates(plain["broker"]["tls_certificates"])
        self._server.start_generation(plain, listening, for_upgrade)

    def _config_rejected(self, problems: list[str]) -> None:
        config = self._server.config_path
        self._server.log.write("config_rejected", "error", config=config, problems=problems)
        self._server.manager.ready()

    def watch_certificates(self, pairs: list[list[str]]) -> None:
        """Watch the files of the certificates that are to be used from here on, before anybody reads them."""
        paths = sorted({path for pair in pairs for path in pair})
        if not paths:
            self._certificates = None
        elif self._certificates is None or self._certificates.paths != paths:
            self._certificates = FileWatch(paths, time.monotonic())

    def _look_at_certificates(self, certificates: FileWatch, now: float) -> None:
        """Renewed certificates are loaded as after SIGHUP: checked, by fresh fronts, and no session ends."""
        path = certificates.changed(now)
        if path:
            self._server.log.write("certificate_changed", path=path)
            if not self.begin():
                certificates.not_acted_upon()

    # By another version

    def try_next_broker(self, generation: Generation) -> None:
        """The new version's auth and fronts are ready: see whether its broker can take over."""

        def tried(said: bytes, status: int) -> None:
            if generation.state != STARTING:
                return  # one of its processes has died meanwhile, and that is known
            if status:
                # The last line of a traceback, if nothing better.
                reason = said.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
                self._server.starting_failed(generation, reason or f"its broker ended with status {status}")
                return
            # Not here: we may be amid a login, which would be lost with our memory.
            self._next = generation

        server = self._server
        try:
            self._ask(upgrade.start_trial(server.config_path, server.handed_over(), time.monotonic()), tried)
        except OSError as error:
            server.starting_failed(generation, f"no process can be started: {error.strerror}")

    def _give_way(self, generation: Generation) -> None:
        """Become the next version's broker, if it has shown that it can; if that fails, go on as before."""
        self._next = None
        if generation.state == STARTING:
            # From here on they wait for the new program; those that came before are handed over.
            signals.block_all()
            error = upgrade.become_next(self._server.config_path, self._server.handed_over())
            signals.unblock_all()
            self._server.starting_failed(generation, f"its broker can't be executed: {error.strerror}")
