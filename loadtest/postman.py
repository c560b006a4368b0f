"""
The postman: delivers mail into the Maildirs at a set rate, whether sessions are open there or not.

Only while a login is under way does he wait, or go next door first: so that it is known which
messages a session sees. Knows nothing of locust or POP3. Executed by locust's processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import gevent

from loadtest.client import POST, Report
from loadtest.ledger import Maildrop
from loadtest.mail import MailMaker

DOORS_TRIED = 5


class Postman:
    """Delivers to maildrops chosen at random; `maildrops` may grow meanwhile."""

    def __init__(
        self, maildrops: Sequence[Maildrop], rate_per_s: float, maker: MailMaker, report: Report
    ) -> None:
        self._maildrops = maildrops
        self._rate_per_s = rate_per_s
        self._maker = maker
        self._report = report

    def deliver_without_end(self) -> None:
        """Deliver until the greenlet is killed. What could not be done in time is made up for."""
        due = time.monotonic()
        while self._rate_per_s > 0:
            due += random.expovariate(self._rate_per_s)
            gevent.sleep(max(0.0, due - time.monotonic()))
            if self._maildrops:
                self._deliver(self._chosen())

    def _chosen(self) -> Maildrop:
        for _ in range(DOORS_TRIED):
            maildrop = random.choice(self._maildrops)
            if not maildrop.login_gate.locked():
                break
        return maildrop

    def _deliver(self, maildrop: Maildrop) -> None:
        mail = self._maker.mail(maildrop.account.name)
        with maildrop.login_gate:
            started = time.perf_counter()
            maildrop.receive(mail)
        self._report(POST, "delivery", (time.perf_counter() - started) * 1000, len(mail.file))
