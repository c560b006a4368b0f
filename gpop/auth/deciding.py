"""
What happens to a login in auth, from its frame to its verdict.

    too many at once? -> penalty? -> held ─┐
                                           ├-> too many a second? -> auth cache? ─┐
                                           │                                      ├-> delay? -> accepted
                                           └-> waits for a place -> checker ──────┘
                                                                    └> refused, said at the fixed time

`Decider` moves attempts along this way; it has no loop of its own: the process around it
(auth.py) calls `submit`, `tick` and `checkers_ended`, tells it the time, lets its `checks` read,
and sends what `answer` is called with. Everything that waits is bounded, in number and in
time. It knows no frames and no sockets. Executed by auth, as root.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gpop import events
from gpop.accounts.account import AUTH, LOGIN_DELAY, SYS_TEMP, Accepted, Account, Refused, Verdict
from gpop.accounts.addresses import source_of
from gpop.accounts.cache import SYSTEM_FILES, AuthCache, CacheWatch
from gpop.accounts.known import Known
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.penalties import PenaltyTable
from gpop.accounts.queue import Lanes
from gpop.accounts.sources import MAPS, PasswdFileSource, Source
from gpop.accounts.user_settings import UserSettingsFile
from gpop.auth.attempt import CHECKED, DONE, HELD, REFUSING, UNVERIFIED_SOURCE, WAITING, Attempt
from gpop.auth.checks import Checks
from gpop.auth.limits import Buckets
from gpop.auth.reporting import report_map, report_passwd_file, report_user_settings

if TYPE_CHECKING:
    from gpop.config import AuthSettings

MAX_HELD = 1024
# What one penalised address may have on hold: a NAT with some users needs a few, and every one
# is one guess per delay for a guesser.
MAX_HELD_PER_SOURCE = 8
MAX_WAITING = 1024
MAX_WAITING_PER_SOURCE = 256
# Front and auth share a clock; more than this between them is not to be believed.
MAX_FRAME_AGE_S = 60.0

Answer = Callable[[Attempt, Verdict], None]


class Decider:
    """
    Decides attempts with `sources`; `answer(attempt, verdict)` is called once for each, when it is time.

    `checks` are the checkers that it has started; `watch_fd`, `unwatch_fd` and `keep` are for them.
    """

    def __init__(
        self,
        settings: AuthSettings,
        sources: Sequence[Source],
        log: events.Log,
        answer: Answer,
        watch_fd: Callable[[int], None],
        unwatch_fd: Callable[[int], None],
        keep: Iterable[int] = (),
        max_pending: int = 4096,
        virtual: VirtualUsers | None = None,
    ) -> None:
        self.settings = settings
        self.sources = sources
        self.virtual = virtual
        self.log = log
        self.max_pending = max_pending
        self._answer = answer
        self.checks = Checks(
            sources,
            virtual,
            keep,
            settings.check_timeout_s,
            log,
            watch_fd,
            unwatch_fd,
            checked=self._settle,
            ended=self._give_back,
        )
        self._user_settings = UserSettingsFile(settings.user_settings)
        self._user_settings.refresh()
        if not self._user_settings.says_nothing():
            report_user_settings(log, self._user_settings)
        self._passwd_files = [source.file for source in sources if isinstance(source, PasswdFileSource)]
        self.penalties = PenaltyTable(
            secrets.token_bytes(32), settings.trusted_networks, settings.penalty_forget_s
        )
        self.cache: AuthCache | None = None
        if settings.cache_enabled:
            described = "\0".join(repr(sorted(source.items())) for source in settings.sources)
            self.cache = AuthCache(described, settings.cache_lifetime_s, settings.cache_max_entries)
        self.watch = CacheWatch(self._watched_files)
        self.pending: dict[Attempt, None] = {}
        self._queue: Lanes[Attempt] = Lanes(
            settings.max_checks, MAX_WAITING, MAX_WAITING, MAX_WAITING_PER_SOURCE
        )
        self._known = Known(secrets.token_bytes(32))
        self._waiting: dict[Attempt, None] = {}  # all wait equally long: the first has waited longest
        self._timed: list[tuple[float, int, Attempt]] = []  # a heap: held, and refusals to be said
        self._counter = itertools.count()
        self._held: dict[bytes, int] = {}
        self._at_once: dict[bytes, int] = {}  # how many of `pending` each source has
        rate = settings.max_logins_per_second
        self._rate = Buckets(1 / rate, rate, max_keys=1) if rate else None
        self._delays: Buckets | None = None
        if settings.login_delay_s:
            self._delays = Buckets(settings.login_delay_s, settings.login_delay_burst)

    def _watched_files(self) -> list[str]:
        found = [*SYSTEM_FILES, *(path for source in self.sources for path in source.watched_files())]
        return found + self.virtual.watched_files() if self.virtual is not None else found

    # The way of an attempt

    def submit(self, attempt: Attempt, now: float) -> None:
        """Take in an attempt that has just come; answers at once where it can."""
        attempt.arrived_s = now
        self._apply_rules(attempt)
        attempt.received_s = min(now, max(attempt.received_s, now - MAX_FRAME_AGE_S))
        if attempt.peer_is_verified:
            attempt.source = source_of(attempt.peer)
            attempt.trusted = self.penalties.is_trusted(attempt.peer)
        delay = self._delay_s(attempt, now)
        if len(self.pending) >= self.max_pending:
            self._settle(attempt, Refused(SYS_TEMP, "too_many_logins"), now)
        elif self._has_enough(attempt):
            self._settle(attempt, Refused(SYS_TEMP, "too_many_logins_of_address"), now)
        elif delay:
            self._hold(attempt, delay, now)
        else:
            self._consider(attempt, now)

    def _apply_rules(self, attempt: Attempt) -> None:
        """Make one name of the ways to write it; so they are one for cache and penalties."""
        if self.virtual is not None:
            rules, (name, password) = self.virtual.rules, attempt.prepared
            attempt.login_name = rules.login_name(attempt.name, attempt.local)
            if name:
                name = rules.login_name(name, attempt.local)
                attempt.prepared = (name if name != attempt.login_name else b"", password)

    def _has_enough(self, attempt: Attempt) -> bool:
        """Whether the source of an attempt has as many logins under way as it may."""
        # Who only a front vouches for may be anybody: all these together are no one's address.
        if attempt.trusted or attempt.source == UNVERIFIED_SOURCE:
            return False
        return self._at_once.get(attempt.source, 0) >= self.settings.max_logins_per_address

    def _delay_s(self, attempt: Attempt, now: float) -> float:
        return 0.0 if attempt.trusted else self.penalties.delay_s(attempt.source, now)

    def _hold(self, attempt: Attempt, delay: float, now: float) -> None:
        """Let an attempt of a penalised source wait before anything is looked at."""
        held = self._held.get(attempt.source, 0)
        if held >= MAX_HELD_PER_SOURCE or sum(self._held.values()) >= MAX_HELD:
            self._settle(attempt, Refused(SYS_TEMP, "too_many_attempts"), now)
            return
        self._held[attempt.source] = held + 1
        attempt.was_held = True
        self._enter(attempt, HELD)
        heapq.heappush(self._timed, (now + delay, next(self._counter), attempt))

    def _release(self, attempt: Attempt) -> None:
        left = self._held[attempt.source] - 1
        if left:
            self._held[attempt.source] = left
        else:
            del self._held[attempt.source]

    def _enter(self, attempt: Attempt, stage: int) -> None:
        attempt.stage = stage
        if attempt not in self.pending:
            self.pending[attempt] = None
            self._at_once[attempt.source] = self._at_once.get(attempt.source, 0) + 1

    def _leave(self, attempt: Attempt) -> None:
        """It is answered, or nobody waits for its answer any more."""
        attempt.forget_password()
        if attempt in self.pending:
            del self.pending[attempt]
            left = self._at_once[attempt.source] - 1
            if left:
                self._at_once[attempt.source] = left
            else:
                del self._at_once[attempt.source]

    def _consider(self, attempt: Attempt, now: float) -> None:
        """Look into the auth cache; else let the attempt wait for a checker."""
        if not attempt.is_login():
            self._settle(attempt, Refused(AUTH, "malformed_login"), now)
            return
        # Not before: what a penalty holds back must not use up what all the others may do.
        if self._rate is not None and not self._rate.take(b"", now):
            self._settle(attempt, Refused(SYS_TEMP, "too_many_logins_per_second"), now)
            return
        cached = self._look_up(attempt, now) if self.cache is not None else None
        if cached is not None:
            if not (self.settings.cache_always_check_account and cached.source == "pam"):
                self._accept(attempt, Accepted(cached.account, "cache", cached.origin), now)
                return
            attempt.cached = cached
        attempt.is_known = self._known.has(attempt.source, attempt.login_name)
        displaced = self._queue.lane(attempt.is_known).put(attempt.source, attempt.login_name, attempt)
        if displaced is not attempt:
            attempt.wait_until_s = now + self.settings.check_timeout_s
            self._enter(attempt, WAITING)
            self._waiting[attempt] = None
        if displaced is not None:
            self._waiting.pop(displaced, None)
            self._settle(displaced, Refused(SYS_TEMP, "checks_exhausted"), now)
        self._dispatch(now)

    def _dispatch(self, now: float) -> None:
        """Start checkers for whom it is the turn, while there are places."""
        while (attempt := self._queue.take()) is not None:
            del self._waiting[attempt]
            # It came when its source had no penalty yet, and has one now: a burst of guesses.
            delay = 0.0 if attempt.was_held else self._delay_s(attempt, now)
            if delay:
                self._give_back(attempt)
                self._hold(attempt, delay, now)
            else:
                self._start_checker(attempt, now)

    def _start_checker(self, attempt: Attempt, now: float) -> None:
        self._refresh()
        if self.cache is not None:
            self._drop_if_changed(self.watch.changed_now())
            attempt.generation = self.watch.generation
        try:
            self.checks.start(attempt, now)
        except OSError as error:
            self._give_back(attempt)
            self._settle(attempt, Refused(SYS_TEMP, "fork_failed", detail=os.strerror(error.errno or 0)), now)
            return
        attempt.stage = CHECKED

    def _give_back(self, attempt: Attempt) -> None:
        """Free the place that an attempt had for its check."""
        self._queue.lane(attempt.is_known).give_back(attempt.source)

    def _settle(self, attempt: Attempt, verdict: Verdict, now: float) -> None:
        """Act on a verdict: remember what must be, and answer now or when it is time."""
        if isinstance(verdict, Refused) and verdict.code == AUTH:
            self._note_refusal(attempt, now)
            if verdict.source == MAPS:
                fields = {"user": events.printable(attempt.name), "peer": attempt.peer}
                self.log.write("virtual_user_refused", reason=verdict.reason, detail=verdict.detail, **fields)
        if attempt.stage == DONE and attempt in self.pending:
            # Whom the answer was for has gone meanwhile.
            self._leave(attempt)
            return
        if isinstance(verdict, Accepted):
            self._accept(attempt, self._note_acceptance(attempt, verdict, now), now)
        elif verdict.code == AUTH:
            attempt.verdict, attempt.decided_s = verdict, now
            self._enter(attempt, REFUSING)
            heapq.heappush(self._timed, (self._refusal_due_s(attempt, now), next(self._counter), attempt))
        else:
            if verdict.source or verdict.detail:
                fields = {"reason": verdict.reason, "source": verdict.source, "detail": verdict.detail}
                self.log.write("auth_fault", "error", **fields)
            self._finish(attempt, verdict)

    def _refusal_due_s(self, attempt: Attempt, now: float) -> float:
        """
        Return when a refusal is said: at a fixed time after PASS, or the next multiple of it.

        So its time does not tell an unknown name from a wrong password.
        """
        step = self.settings.refusal_time_s
        if step <= 0:
            return now
        return attempt.received_s + max(1, math.ceil((now - attempt.received_s) / step)) * step

    def _note_refusal(self, attempt: Attempt, now: float) -> None:
        if attempt.cached is not None and self.cache is not None:
            self.cache.forget(attempt.login_name, attempt.peer)
        if attempt.trusted:
            return
        delay = self.penalties.failed(attempt.source, attempt.login_name, attempt.password, now)
        if delay:
            self.log.write("penalty_raised", "warning", peer=attempt.peer, delay_s=delay)

    def _note_acceptance(self, attempt: Attempt, verdict: Accepted, now: float) -> Accepted:
        """Keep an acceptance in the cache, if nothing it may rest on has changed since the check began."""
        self._known.note(attempt.source, attempt.login_name)
        if attempt.cached is not None:
            return Accepted(verdict.account, "cache", verdict.origin)
        if self.cache is not None:
            self._drop_if_changed(self.watch.changed_now())
            if attempt.generation == self.watch.generation and self.watch.settled(time.time()):
                self.cache.store(attempt.login_name, attempt.password, attempt.peer, verdict, now)
        return verdict

    def _accept(self, attempt: Attempt, verdict: Accepted, now: float) -> None:
        """
        Let a login with the right password in, unless its account is switched off or logs in too often.

        Every way to an acceptance leads through here, the auth cache's too. Who is told of the
        delay (RFC 2449 §6.5) knows the password, so it tells nobody which names exist.
        """
        if self._user_settings.refresh():
            report_user_settings(self.log, self._user_settings)
        decided = self._user_settings.applied(verdict, time.time())
        if isinstance(decided, Refused):
            self._settle(attempt, decided, now)
        elif self._delays is None or self._delays.take(_maildrop_key(verdict.account), now):
            self._finish(attempt, decided)
        else:
            self._finish(attempt, Refused(LOGIN_DELAY, "login_delay", verdict.source))

    def _finish(self, attempt: Attempt, verdict: Verdict) -> None:
        attempt.stage = DONE
        self._leave(attempt)
        self._answer(attempt, verdict)

    # The cache and the files behind it

    def _look_up(self, attempt: Attempt, now: float) -> Accepted | None:
        assert self.cache is not None
        changed = self.watch.changed(now)
        if changed:
            self._drop_if_changed(changed)
        return self.cache.look_up(attempt.login_name, attempt.password, attempt.peer, now)

    def _drop_if_changed(self, path: str) -> None:
        if path and self.cache is not None:
            count = self.cache.clear()
            self.log.write("auth_cache_dropped", reason="file_changed", path=path, entries=count)

    def _refresh(self) -> None:
        for file in self._passwd_files:
            if file.refresh():
                report_passwd_file(self.log, file)
        if self.virtual is not None:
            for each in self.virtual.refresh():
                report_map(self.log, each)

    # What the process calls

    def tick(self, now: float) -> None:
        """Do what is due."""
        while self._timed and self._timed[0][0] <= now:
            attempt = heapq.heappop(self._timed)[2]
            if attempt.stage == HELD:
                self._release(attempt)
                self._consider(attempt, now)
            elif attempt.stage == REFUSING and attempt.verdict is not None:
                self._finish(attempt, attempt.verdict)
        while self._waiting and (first := next(iter(self._waiting))).wait_until_s <= now:
            del self._waiting[first]
            self._queue.lane(first.is_known).remove(first.source, first.login_name, first)
            self._settle(first, Refused(SYS_TEMP, "checks_exhausted"), now)
        self.checks.kill_overdue(now)

    def due_s(self) -> float | None:
        """Return when `tick` has to be called next, None for not before something else happens."""
        times = [] if (overdue := self.checks.due_s()) is None else [overdue]
        if self._timed:
            times.append(self._timed[0][0])
        if self._waiting:
            times.append(next(iter(self._waiting)).wait_until_s)
        return min(times, default=None)

    def checkers_ended(self, now: float) -> None:
        """Reap checkers that ended; only then their places are free, so that what hangs counts."""
        self.checks.reap(now)
        self._dispatch(now)

    def abandon(self, owner: object) -> list[Attempt]:
        """
        Forget the attempts of a conversation that ended; returns them, for what they carry.

        A check that runs goes on: what it finds still counts as a failure of its source.
        """
        gone = [attempt for attempt in self.pending if attempt.owner is owner and attempt.stage != DONE]
        for attempt in gone:
            self._drop(attempt)
        return gone

    def _drop(self, attempt: Attempt) -> None:
        stage, attempt.stage = attempt.stage, DONE
        if stage == HELD:
            self._release(attempt)
        elif stage == WAITING:
            del self._waiting[attempt]
            self._queue.lane(attempt.is_known).remove(attempt.source, attempt.login_name, attempt)
        if stage != CHECKED:
            self._leave(attempt)

    def give_up(self, verdict: Refused) -> None:
        """Answer everything that is pending with `verdict`, now."""
        for attempt in list(self.pending):
            if attempt.stage != DONE:
                self._drop(attempt)
                self._answer(attempt, verdict)


def _maildrop_key(account: Account) -> bytes:
    """What a login delay is counted by: the maildrop, by whatever name somebody logs in to it."""
    octets = b"%d:%b" % (account.uid, account.maildir)
    return hashlib.blake2b(octets, digest_size=16).digest()
