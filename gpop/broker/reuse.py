"""
EDGE: session processes that serve one login after another: the broker's side of it.

For a store whose mail all belongs to one uid (`session.reuse_below`). A process that has become
that user, jailed in the store, can serve any account of it, so neither the fork nor giving up
root has to be paid for again. `session.run_again` is what such a process does.

Executed by the broker, as root. It believes nothing of these processes but that they are
free again; one that says anything else is ended.
"""

from __future__ import annotations

import _socket
import os
import time

from gpop import signals
from gpop.privsep import channel, messages
from gpop.session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gpop.config import SessionSettings
    from gpop.events import Log
    from gpop.maildrop.opening import Options
    from gpop.privsep.confinement import Confinement

    Identity = tuple[int, int, tuple[int, ...]]

# A process that nobody has needed for so long ends: many are there after a rush of logins.
IDLE_S = 60.0
# So many logins, and it is replaced: whatever piles up in a process has an end.
MOST_LOGINS = 1000


class Process:
    """A session process that is reused: the broker's end of its channel, and what it has done."""

    __slots__ = ("control", "free_since", "identity", "logins", "pid")

    def __init__(self, pid: int, control: _socket.socket, identity: Identity) -> None:
        self.pid = pid
        self.control: _socket.socket | None = control  # None: closed, the process ends
        self.identity = identity
        self.logins = 1
        self.free_since = 0.0  # monotonic seconds; 0 while it serves a login


class Reuse:
    """
    The session processes that are reused.

    `watch` and `unwatch` are told of descriptors that `look` is to be called for; `freed` is
    called with the pid of a process whose session has ended.

    Attributes:
        ending: how many have been let go, and are still to be reaped.
    """

    __slots__ = (
        "_below",
        "_confinement",
        "_free",
        "_freed",
        "_log",
        "_most_logins",
        "_options",
        "_processes",
        "_settings",
        "_unwatch",
        "_watch",
        "ending",
    )

    def __init__(
        self,
        log: Log,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        freed: Callable[[int], None],
    ) -> None:
        self._log = log
        self._watch = watch
        self._unwatch = unwatch
        self._freed = freed
        self._processes: dict[int, Process] = {}
        # Those without a login by whom they have become; the one that was busy last is the first taken.
        self._free: dict[Identity, list[Process]] = {}
        self._below = b""
        self._most_logins = MOST_LOGINS
        self.ending = 0
        self._settings: SessionSettings
        self._options: Options
        self._confinement: Confinement

    def adopt(self, settings: SessionSettings, options: Options, confinement: Confinement) -> None:
        """Take over settings; processes that have others end, those with a login after it."""
        self.end()
        self._settings, self._options, self._most_logins = settings, options, MOST_LOGINS
        self._confinement = confinement
        self._below = os.fsencode(settings.reuse_below + "/") if settings.reuse_below else b""

    def is_for(self, key: bytes) -> bool:
        """Whether logins to the maildrop of `key` (see `messages.maildrop_key`) share processes."""
        return bool(self._below) and key.startswith(self._below, messages.KEY_PATH_AT)

    def pids(self) -> Collection[int]:
        """The processes that have not been reaped yet."""
        return self._processes.keys()

    def serve(self, login: bytes, fds: list[int]) -> int:
        """
        Have a login served, the SERVE frame `login`; returns the pid. `fds` stay the caller's.

        Raises:
            OSError: no process is free, and there can't be another one now.
        """
        fields = messages.fields_of(login, messages.SERVE)
        identity = fields["uid"], fields["gid"], tuple(fields["groups"])
        free = self._free.get(identity)
        while free:
            process = free.pop()
            if process.control is None:
                continue
            try:
                channel.send(process.control, login, fds)
            except OSError:
                self._let_go(process)  # it has died
                continue
            process.free_since = 0.0
            process.logins += 1
            return process.pid
        return self._start(login, fds, identity)

    def _start(self, login: bytes, fds: list[int], identity: Identity) -> int:
        ours, theirs = channel.pair()
        try:
            pid = os.fork()
            if pid == 0:
                session.run_again(
                    login,
                    fds[0],
                    fds[1],
                    theirs.fileno(),
                    self._settings,
                    self._options,
                    self._confinement.enter,
                )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._processes[pid] = Process(pid, ours, identity)
        self._watch(ours.fileno(), lambda: self.look(pid))
        return pid

    def look(self, pid: int) -> None:
        """Read what a process may have to say: that it is free, or, by its end, nothing more."""
        process = self._processes.get(pid)
        if process is None or process.control is None:
            return
        try:
            octets, fds = channel.receive_octets(process.control, len(session.FREE))
        except BlockingIOError:
            return
        except channel.ChannelClosed:
            self._let_go(process)
            return
        except (messages.BadFrame, channel.ShortOfDescriptors, OSError) as error:
            # The second as well: it has no descriptor to send.
            self._reject(process, str(error))
            return
        if octets == session.FREE and not fds and not process.free_since:
            self._is_free(process)
        else:
            channel.close_all(fds)
            self._reject(process, "only that it is free, and only once, may come from it")

    def _reject(self, process: Process, problem: str) -> None:
        """End a process that was taken over, or is broken."""
        self._log.write("frame_rejected", "error", sender="session", pid=process.pid, problem=problem)
        # In this order: with its channel closed it could end as if nothing had been.
        os.kill(process.pid, signals.KILL)
        self._let_go(process)

    def _is_free(self, process: Process) -> None:
        self._freed(process.pid)
        if process.logins >= self._most_logins:
            self._let_go(process)
            return
        process.free_since = time.monotonic()
        self._free.setdefault(process.identity, []).append(process)

    def _let_go(self, process: Process) -> None:
        """Give a process no more logins: it ends, unless it serves one still, at once."""
        if process.control is not None:
            self._unwatch(process.control.fileno())
            channel.close_all([process.control.detach()])
            process.control = None
            self.ending += 1

    def end_idle(self, now: float) -> None:
        """Let go of processes that nobody has needed for a while."""
        for identity, free in list(self._free.items()):
            while free and free[0].free_since < now - IDLE_S:
                self._let_go(free.pop(0))
            if not free:
                del self._free[identity]

    def end(self) -> None:
        """Let go of every process that is free, and of the others when their session has ended."""
        for free in self._free.values():
            for process in free:
                self._let_go(process)
        self._free.clear()
        for process in self._processes.values():
            process.logins = MOST_LOGINS
        self._most_logins = 0  # for what is started from here on: gpop stops

    def ended(self, pid: int) -> bool:
        """Forget a process that has been reaped; returns False if it was none of these."""
        process = self._processes.pop(pid, None)
        if process is None:
            return False
        self._let_go(process)
        self.ending -= 1
        return True
