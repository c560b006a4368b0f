"""
The checkers that are at work: started, listened to, killed when they take too long, reaped when they ended.

`Checks` has no loop and no clock of its own: auth's process says when there is something to read or to reap,
and what time it is. How many there may be at once is not decided here. Executed by auth, as root.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from gpop import events, signals
from gpop.accounts.account import SYS_TEMP, Refused, Verdict
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.sources import Request, Source
from gpop.auth import checker
from gpop.auth.attempt import Attempt

# Hashes are made to be expensive: beside a dozen guesses auth itself, and every session, would get a
# twelfth of a core each.
STRANGERS_NICENESS = 10


class Checks:
    """
    Has `sources` asked, by a process for each attempt, for `timeout_s` at most.

    `checked(attempt, verdict, now)` is called once for each that was started, and then, once its process is
    gone, `ended(attempt)`: what hangs has its place until then. `watch_fd` and `unwatch_fd` are told of
    descriptors from which `readable` wants to read; `keep` are those that the system's libraries hold and
    checkers need.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        virtual: VirtualUsers | None,
        keep: Iterable[int],
        timeout_s: float,
        log: events.Log,
        watch_fd: Callable[[int], None],
        unwatch_fd: Callable[[int], None],
        checked: Callable[[Attempt, Verdict, float], None],
        ended: Callable[[Attempt], None],
    ) -> None:
        self._sources = sources
        self._virtual = virtual
        self._keep = tuple(keep)
        self._timeout_s = timeout_s
        self._log = log
        self._watch_fd = watch_fd
        self._unwatch_fd = unwatch_fd
        self._report = checked
        self._report_end = ended
        self._running: dict[int, tuple[checker.Checker, Attempt]] = {}  # by pipe
        self._unreaped: dict[int, tuple[checker.Checker, Attempt]] = {}  # by pid

    def __len__(self) -> int:
        """Return how many have not said their verdict yet."""
        return len(self._running)

    def start(self, attempt: Attempt, now: float) -> None:
        """
        Start a checker; one for an attempt with `cached` asks about the account only, and only its source.

        Raises:
            OSError: no process or descriptor to be had.
        """
        cached = attempt.cached
        password = None if cached else attempt.password
        started = checker.start(
            self._sources,
            Request(attempt.login_name, password, attempt.peer, attempt.prepared),
            cached.origin if cached else None,
            self._keep,
            now + self._timeout_s,
            self._virtual,
            0 if attempt.is_known else STRANGERS_NICENESS,
        )
        self._running[started.fd] = self._unreaped[started.pid] = (started, attempt)
        self._watch_fd(started.fd)

    def readable(self, fd: int, now: float) -> None:
        """Read what a checker says on `fd`."""
        verdict = self._running[fd][0].read()
        if verdict is not None:
            self._checked(fd, verdict, now)

    def _checked(self, fd: int, verdict: Verdict, now: float) -> None:
        started, attempt = self._running.pop(fd)
        self._unwatch_fd(fd)
        started.close()
        self._report(attempt, verdict, now)

    def reap(self, now: float) -> None:
        """Reap checkers that ended."""
        for pid, (started, attempt) in list(self._unreaped.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            if os.WIFSIGNALED(status) and not started.killed:
                # A PAM module, or LMDB in a damaged map (`gpop virtusers lookup` says which one).
                detail = f"ended by {signals.name_of(os.WTERMSIG(status))}"
                self._log.write("auth_fault", "error", reason="checker_died", detail=detail)
            # What it said comes first: a failure may be why the next of its source has to wait.
            if started.fd in self._running:
                self._checked(started.fd, started.last_word(), now)
            del self._unreaped[pid]
            self._report_end(attempt)

    def kill_overdue(self, now: float) -> None:
        """Kill what has taken too long; the verdict is that it did."""
        for started, _ in [each for each in self._unreaped.values() if each[0].is_overdue(now)]:
            started.kill()
            if started.fd in self._running:
                detail = f"no answer within {self._timeout_s:g} s"
                self._checked(started.fd, Refused(SYS_TEMP, "check_timeout", detail=detail), now)

    def due_s(self) -> float | None:
        """Return when `kill_overdue` has to be called next, None where nothing runs."""
        return min(
            (started.deadline_s for started, _ in self._unreaped.values() if not started.killed), default=None
        )

    def kill_all(self) -> None:
        """Kill those that are left."""
        for started, _ in self._unreaped.values():
            started.kill()
