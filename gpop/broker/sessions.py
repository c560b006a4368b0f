"""
EDGE: the broker's table of sessions: forks them, and takes note of how they end.

Executed by the broker, as root, once per login: what it touches is paid for in every session,
so a login's frame stays undecoded here but for whose maildrop it is about.
"""

from __future__ import annotations

import gc
import os
import time

from gpop import signals
from gpop.broker.reuse import Reuse
from gpop.events import Log
from gpop.privsep import channel, messages
from gpop.privsep.confinement import Confinement
from gpop.session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    from gpop.config import SessionSettings
    from gpop.maildrop.opening import Options
    from gpop.tally import Tally

# Nothing here makes cycles on purpose; what exceptions leave behind is collected this often.
FORKS_PER_COLLECTION = 1000

# What the exit status of a session says; any other, and any signal, is a death.
FAILURES = {
    session.EXIT_UNREPORTED: ("session_unreported", "warning"),
}
DEATH = ("session_died", "error")

# What the broker needs to know of a login whose session runs, and what it does not.
HANDED_OVER = ("uid", "maildir", "login_id", "account", "peer", "received_ms")
NOT_HANDED_OVER = {
    "gid": 0,
    "groups": (),
    "home": b"",
    "removal": "",
    "dialogue": 0,
    "pipelined": 0,
    "utf8": 0,
    "language": "",
}


class Sessions:
    """
    The sessions that run.

    Attributes:
        running: the SERVE frame of each by its pid.
        settings, options, confinement: what the next one gets.
        reuse: the processes that serve one login after another, where there are such.
    """

    __slots__ = (
        "_by_maildrop",
        "_fork_at",
        "_forks",
        "_log",
        "_max_per_account",
        "_tally",
        "confinement",
        "options",
        "reuse",
        "running",
        "settings",
    )

    def __init__(
        self,
        log: Log,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        """`watch` and `unwatch` are told which descriptors the broker's loop is to call what for."""
        self._log = log
        self._by_maildrop: dict[bytes, set[int]] = {}
        self._forks = 0
        self._max_per_account = 0
        self.running: dict[int, bytes] = {}
        self._tally: Tally | None = None
        self._fork_at = 0
        self.reuse = Reuse(log, watch, unwatch, self._freed)
        self.settings: SessionSettings
        self.options: Options
        self.confinement: Confinement

    def adopt(self, settings: SessionSettings, max_per_account: int, boot_id: bytes) -> None:
        """Take over settings for the sessions to come."""
        self.settings = settings
        self._max_per_account = max_per_account
        # There is no /proc in a session's jail to read the boot id from.
        self.options = session.maildrop_options(settings, boot_id)
        self.confinement = Confinement(settings.session_calls, settings.memory_limit_mib << 20)
        self.reuse.adopt(settings, self.options, self.confinement)

    def count_in(self, tally: Tally) -> None:
        """Count forks, and what they take, from here on."""
        self._tally, self._fork_at = tally, tally.first_of("fork")

    def pids(self) -> set[int]:
        """The processes of sessions, those that wait for another login included."""
        return {*self.running, *self.reuse.pids()}

    def serve(self, login: bytes, fds: list[int]) -> None:
        """
        Start the session of a login that auth accepted, the SERVE frame `login`; takes over `fds`.

        Raises:
            BadFrame: it is none, as far as that is looked at here; `fds` are the caller's.
        """
        key = messages.maildrop_key(login)
        others = self._by_maildrop.get(key)
        if others and self.reuse.pids():
            for pid in tuple(others):
                self.reuse.look(pid)  # its session may have ended, unread as yet
            others = self._by_maildrop.get(key)
        if others is None:
            self._start(login, key, fds)
        elif len(others) >= self._max_per_account:
            _refuse(fds, "IN-USE", "too_many_sessions")
        else:
            if self.settings.lock:
                _ask_to_end(others)
            self._start(login, key, fds)
        channel.close_stream(fds[0])
        os.close(fds[1])

    def _start(self, login: bytes, key: bytes, fds: list[int]) -> None:
        try:
            pid = self.reuse.serve(login, fds) if self.reuse.is_for(key) else self._fork(login, fds)
        except OSError:
            _refuse(fds, "SYS/TEMP", "fork_failed")
            return
        self._note(pid, login, key)

    def _note(self, pid: int, login: bytes, key: bytes) -> None:
        self.running[pid] = login
        if key in self._by_maildrop:
            self._by_maildrop[key].add(pid)
        else:
            self._by_maildrop[key] = {pid}

    def handed_over(self) -> list[tuple[int, dict[str, Any]]]:
        """
        Return, for the broker after an upgrade, the sessions: by pid, what has to be known of a login.

        The processes that are reused stay out: the exec closes their channels, so that those which are free
        end, and those which serve a login end after it, as a session that is not reused does.
        """
        sessions = []
        for pid, login in self.running.items():
            fields = messages.decode(login).fields
            sessions.append((pid, {name: fields[name] for name in HANDED_OVER}))
        return sessions

    def take_over(self, sessions: list[tuple[int, dict[str, Any]]]) -> None:
        """Have the sessions that another version's broker has forked, so that limits and the log go on."""
        for pid, fields in sessions:
            login = messages.encode(messages.SERVE, **{**NOT_HANDED_OVER, **fields})
            self._note(pid, login, messages.maildrop_key(login))

    def _fork(self, login: bytes, fds: list[int]) -> int:
        # What a session needs is looked up here, where it has been looked up before.
        run, settings, options, confine = session.run, self.settings, self.options, self.confinement.enter
        before = time.monotonic_ns()
        pid = os.fork()
        if pid == 0:
            run(login, fds[0], fds[1], settings, options, confine)
        if self._tally is not None:
            # The parent's part: so long nobody else's login is looked at.
            self._tally.observe(self._fork_at, (time.monotonic_ns() - before) // 1000)
        self._forks += 1
        if self._forks % FORKS_PER_COLLECTION == 0:
            gc.collect()
        return pid

    def ended(self, pid: int, status: int) -> bool:
        """Take note of the end of a process; returns False if it was no session's."""
        reused = self.reuse.ended(pid)
        login = self._over(pid)
        if login is None:
            return reused
        if status:
            self._failed(pid, login, status)
        return True

    def _freed(self, pid: int) -> None:
        """The session of a process that is reused has ended, and was reported."""
        self._over(pid)

    def _over(self, pid: int) -> bytes | None:
        """Forget the session of a process; returns its login, None if it had none."""
        login = self.running.pop(pid, None)
        if login is not None:
            key = messages.maildrop_key(login)
            pids = self._by_maildrop[key]
            pids.remove(pid)
            if not pids:
                del self._by_maildrop[key]
        return login

    def _failed(self, pid: int, octets: bytes, status: int) -> None:
        try:
            login = messages.fields_of(octets, messages.SERVE)
        except messages.BadFrame as error:
            # Only the session takes a whole frame apart, and this one could not.
            self._log.write("frame_rejected", "error", sender="auth", pid=pid, problem=str(error))
            return
        event, level = FAILURES.get(os.waitstatus_to_exitcode(status), DEATH)
        self._log.write(
            event,
            level,
            login_id=login["login_id"],
            pid=pid,
            peer=login["peer"],
            account=login["account"].decode("utf-8", "backslashreplace"),
            uid=login["uid"],
            **exit_fields(status),
        )


def exit_fields(status: int) -> dict[str, Any]:
    """Return how a process ended, for the log."""
    if os.WIFSIGNALED(status):
        return {"signal": signals.name_of(os.WTERMSIG(status))}
    return {"exit_status": os.WEXITSTATUS(status)}


def _ask_to_end(pids: Collection[int]) -> None:
    """A newer login wants the maildrop: older sessions of it end if their client is silent."""
    for pid in pids:
        os.kill(pid, signals.USR1)


def _refuse(fds: Sequence[int], code: str, reason: str) -> None:
    """Tell the front, on the session channel, that there will be no session; it knows whose."""
    fields = {"code": code, "reason": reason, "user": "", "source": "broker", "auth_us": 0}
    # If that can't be the front is gone, and its clients with it; or it has filled the channel itself.
    channel.send_at_once(fds[1], messages.encode(messages.REFUSED, **fields))
    for fd in fds:
        channel.discard_unread(fd)
