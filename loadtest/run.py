"""
One process's part of a run: which maildrops are its, who has which, the postman, and the reckoning.

Where locust runs in several processes, each has every n-th account and nothing to do with the
others' maildrops; what they found is put together by `merged`. Knows nothing of locust. Executed by
locust's processes, the master excepted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import gevent

from loadtest.behaviours import BEHAVIOURS, Behaviour, User
from loadtest.client import CHECK, Failure, Report, Server
from loadtest.ledger import HIT, REBUILD, REFRESH, UNSURE, Maildrop, Tally, Wrong
from loadtest.mail import MailMaker
from loadtest.postman import Postman
from loadtest.site import Site

# What every part reports, and how parts are put together: all of them are counts.
MAIL_COUNTS = ("delivered", "received", "received_again", "left")
COUNTS = ("cache", "sessions", "close_reason", *MAIL_COUNTS)


class NoAccountLeft(Exception):
    """There are more users than accounts."""


class Run:
    """The part of a run that this process has: every `of`-th account, from the `part`-th on."""

    def __init__(
        self, site: Site, part: int, of: int, server: Server, mail_per_s: float, report: Report
    ) -> None:
        self._site = site
        self._free = site.accounts()[part::of]
        self._accounts = len(self._free)
        self._returned: dict[str, list[Maildrop]] = defaultdict(list)
        self._taken: list[tuple[Behaviour, Maildrop]] = []
        self._on_the_round: list[Maildrop] = []
        self._clock = site.clock()
        self._server = server
        self._report = report
        self._maker = MailMaker()
        self._tally = Tally()
        self._started = time.time()
        postman = Postman(self._on_the_round, mail_per_s / of, self._maker, report)
        self._postman = gevent.spawn(postman.deliver_without_end)

    # Users come and go

    def user(self, behaviour: Behaviour) -> User:
        """
        Return a new user with a maildrop that is nobody else's.

        Raises:
            NoAccountLeft: every account has a user.
        """
        if self._returned[behaviour.name]:
            maildrop = self._returned[behaviour.name].pop()
        else:
            maildrop = self._taken_over(behaviour)
        return User(behaviour, maildrop, self._server, self._report, self._tally)

    def _taken_over(self, behaviour: Behaviour) -> Maildrop:
        if not self._free:
            raise NoAccountLeft(
                f"more users than accounts: {self._accounts}, in {self._site.path}; "
                "`./dev loadtest server --accounts N` makes more"
            )
        maildrop = Maildrop(self._free.pop(0), self._clock)
        maildrop.adopt()
        if behaviour.needs_large:
            maildrop.receive(self._maker.large(maildrop.account.name))
        self._taken.append((behaviour, maildrop))
        if behaviour.gets_mail:
            self._on_the_round.append(maildrop)
        return maildrop

    def give_back(self, user: User) -> None:
        """A user has gone; the next one of that kind may have the maildrop."""
        self._returned[user.behaviour.name].append(user.maildrop)

    # The reckoning

    def finish(self) -> dict[str, Any]:
        """
        End the postman, look at every Maildir, and return what this part has counted.

        All users have to be gone.
        """
        self._postman.kill()
        for behaviour, maildrop in self._taken:
            self._check(behaviour, maildrop)
            gevent.sleep(0)  # the connection to a master has to be kept alive
        self._check_drained()
        self._clock.close()
        tally = self._tally
        counts = {name: dict(getattr(tally, name)) for name in COUNTS}
        return counts | {
            "refused": tally.refused,
            "removed": tally.removed,
            "cut_off": tally.cut_off,
            "users": len(self._taken),
            "from": self._started,
            "until": time.time(),
        }

    def _check(self, behaviour: Behaviour, maildrop: Maildrop) -> None:
        self._tally.delivered[behaviour.name] += maildrop.delivered
        started = time.perf_counter()
        problem = None
        try:
            maildrop.check_disk()
        except (Wrong, OSError) as error:
            problem = Failure(f"{maildrop.account.maildir}: {error}", f"its user was a {behaviour.name}")
        # Only a message that was retrieved whole is marked.
        self._tally.received[behaviour.name] += maildrop.removed_in_doubt
        self._tally.left[behaviour.name] += len(maildrop.on_disk())
        self._report(CHECK, "at the end: Maildir", (time.perf_counter() - started) * 1000, 0, problem)

    def _check_drained(self) -> None:
        """Every message that came to a Drainer was received by it exactly once, or is still there."""
        tally = self._tally
        if not tally.delivered["Drainer"]:
            return
        delivered, received, again, left = (getattr(tally, what)["Drainer"] for what in MAIL_COUNTS)
        problem = None
        if again or delivered != received + left:
            counts = f"{delivered} delivered, {received} received, {again} once more, {left} still there"
            problem = Failure(f"Drainers: {counts}", "")
        self._report(CHECK, "at the end: Drainers' mail", 0, 0, problem)


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Put what the parts have counted together into what the log of the server must show."""
    parts = list(parts)
    counts = {name: sum((Counter(part[name]) for part in parts), Counter()) for name in COUNTS}
    cache = counts["cache"]
    return {
        "from": _stamp(min(part["from"] for part in parts)),
        "until": _stamp(max(part["until"] for part in parts)),
        "users": sum(part["users"] for part in parts),
        # Sessions of which it is not known what the log says, because something has failed.
        "unsure": cache[UNSURE] + counts["close_reason"][UNSURE],
        "cache": {outcome: cache[outcome] for outcome in (HIT, REFRESH, REBUILD, "off")},
        "close_reason": {reason: counts["close_reason"][reason] for reason in ("quit", "disconnect")},
        "refused": sum(part["refused"] for part in parts),
        "removed": sum(part["removed"] for part in parts),
        "cut_off": sorted(each for part in parts for each in part["cut_off"]),
        "sessions": dict(counts["sessions"]),
        "mail": {
            each.name: {what: counts[what][each.name] for what in MAIL_COUNTS}
            for each in BEHAVIOURS
            if each.name in counts["delivered"]
        },
    }


def _stamp(seconds: float) -> str:
    """A time as the log has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
