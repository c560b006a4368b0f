"""
The measuring: what is done to every server, in rounds, each server in turn in each of them.

A figure is CPU time of the whole server over the sessions of one round. Seconds depend on what else the
machine does; CPU time does so much less, and ratios between servers in one round least of all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loadtest.bench import cpu
from loadtest.bench.load import Load, Result
from loadtest.bench.maildrops import BIG, Maildrop, Post
from loadtest.bench.servers import NotHere, Server

# Dovecot looks at a folder again if it changed less than a second or two before: not what is measured here.
DOVECOT_RACY_S = 2.2
BEFORE_DELIVERY_S = 1.2
# A poll in the very clock tick of a delivery is a case of its own; mail is older than that as a rule.
AFTER_DELIVERY_S = 0.05
# The maildrops that are retrieved whole: up to this one by one, up to the next pipelined, above that not.
RETR_ONE_BY_ONE = 100
RETR_PIPELINED = 2000

TITLES = {
    "stat": "STAT only (USER PASS STAT QUIT), no new mail",
    "poll": "Poll (USER PASS STAT UIDL QUIT), no new mail",
    "refresh": "Refresh: a poll after one message was delivered",
    "rebuild": "Rebuild: a poll after everything that the server keeps beside the mail was lost",
    "retr": "RETR of every message",
}


@dataclass(slots=True)
class Figure:
    """What one round came to; milliseconds of CPU time are per session."""

    cpu_ms: float
    user_ms: float
    system_ms: float
    sessions: int
    seconds: float
    p50_ms: float
    p99_ms: float
    by_process: dict[str, float]  # milliseconds as well


@dataclass(slots=True)
class Cell:
    """One server in one scenario at one size."""

    scenario: str
    label: str
    server: str
    concurrency: int
    rounds: list[Figure | None] = field(default_factory=list)  # None: no figure, `errors` or stderr say why
    errors: list[str] = field(default_factory=list)  # replies that were wrong


class Bench:
    """Servers that run, and what is done to them."""

    def __init__(
        self, servers: list[Server], post: Post, rounds: int, seconds: float, concurrency: int
    ) -> None:
        self.servers = servers
        self.post = post
        self.rounds = rounds
        self.seconds = seconds
        self.concurrency = concurrency
        self.load = Load()

    def close(self) -> None:
        self.load.close()

    def prime(self, labels: list[str]) -> None:
        """
        Have every maildrop opened twice, so that what servers keep is there and their memory is warm.

        Raises:
            NotHere: a server does not answer as it should.
        """
        for turn in range(2):
            for server in self.servers:
                for label in labels:
                    found = self._all_once(server, label)
                    if found.failed:
                        raise NotHere(f"{server.name}: {'; '.join(found.errors)}")
            if not turn:
                time.sleep(DOVECOT_RACY_S)

    def run(self, scenario: str, label: str) -> list[Cell]:
        """Measure every server in one scenario, at one size."""
        cells = {
            server.name: Cell(scenario, label, server.name, min(self.concurrency, len(server.tree.of(label))))
            for server in self.servers
        }
        measures: dict[str, Callable[[str], Iterator[tuple[Server, Figure | Result]]]] = {
            "stat": self._stat,
            "poll": self._poll,
            "refresh": self._refresh,
            "rebuild": self._rebuild,
            "retr": self._retr,
        }
        for number in range(self.rounds):
            # Nobody is always the first, or always follows the same one.
            self.servers.append(self.servers.pop(0))
            for server, found in measures[scenario](label):
                if isinstance(found, Figure):
                    cells[server.name].rounds.append(found)
                    continue
                cells[server.name].rounds.append(None)
                cells[server.name].errors += found.errors
                why = found.errors or "too little CPU time for this meter"
                print(f"{server.name}, {scenario} {label}, round {number}: {why}", file=sys.stderr)
        return list(cells.values())

    # Scenarios

    def _stat(self, label: str) -> Iterator[tuple[Server, Figure | Result]]:
        for server in self.servers:
            yield server, self._measured(server, "stat", server.tree.of(label), self.seconds)

    def _poll(self, label: str) -> Iterator[tuple[Server, Figure | Result]]:
        for server in self.servers:
            yield server, self._measured(server, "poll", server.tree.of(label), self.seconds)

    def _refresh(self, label: str) -> Iterator[tuple[Server, Figure | Result]]:
        for server in self.servers:
            self._all_once(server, label)
        time.sleep(BEFORE_DELIVERY_S)
        for server in self.servers:
            for maildrop in server.tree.of(label):
                maildrop.deliver(self.post.new_message(label, maildrop.count))
            time.sleep(AFTER_DELIVERY_S)
            yield server, self._measured(server, "poll", server.tree.of(label))

    def _rebuild(self, label: str) -> Iterator[tuple[Server, Figure | Result]]:
        for server in self.servers:
            for maildrop in server.tree.of(label):
                maildrop.lose_caches()
            yield server, self._measured(server, "poll", server.tree.of(label))

    def _retr(self, label: str) -> Iterator[tuple[Server, Figure | Result]]:
        for server in self.servers:
            yield server, self._measured(server, retr_script(label), server.tree.of(label), self.seconds)

    def prime_retr(self, label: str) -> None:
        """Retrieve everything once: servers that mark mail as seen have done so then."""
        for server in self.servers:
            maildrops = server.tree.of(label)
            self.load.run(server.port, retr_script(label), maildrops, self.concurrency, 0, len(maildrops))
            self._all_once(server, label)
        time.sleep(DOVECOT_RACY_S)

    # One measurement

    def _all_once(self, server: Server, label: str) -> Result:
        maildrops = server.tree.of(label)
        return self.load.run(server.port, "poll", maildrops, self.concurrency, 0, len(maildrops))

    def _measured(
        self, server: Server, script: str, maildrops: list[Maildrop], seconds: float = 0.0
    ) -> Figure | Result:
        """
        Return what sessions cost; the Result instead if one went wrong, or they cost too little to tell.

        Without `seconds`: one session for each maildrop.
        """
        at_least = self.concurrency if seconds else len(maildrops)
        before = cpu.settled(server.meter)
        processes_before = server.by_process()
        result = self.load.run(server.port, script, maildrops, self.concurrency, seconds, at_least)
        used = cpu.settled(server.meter) - before
        if result.failed or not result.sessions or used.total <= server.meter.least_s:
            return result
        per_session_ms = 1e3 / result.sessions
        by_process = {
            kind: (seconds_now - processes_before[kind]) * per_session_ms
            for kind, seconds_now in server.by_process().items()
        }
        return Figure(
            cpu_ms=used.total * per_session_ms,
            user_ms=used.user * per_session_ms,
            system_ms=used.system * per_session_ms,
            sessions=result.sessions,
            seconds=result.seconds,
            p50_ms=result.p50_ms,
            p99_ms=result.p99_ms,
            by_process=by_process,
        )


def retr_script(label: str) -> str:
    """How the messages of a maildrop of that size are asked for."""
    pipelined = label.isdigit() and RETR_ONE_BY_ONE < int(label) <= RETR_PIPELINED
    return "retr-pipelined" if pipelined else "retr"


def labels_of(scenario: str, sizes: list[int]) -> list[str]:
    """The maildrops that a scenario is run on."""
    if scenario == "retr":
        return [str(size) for size in sizes if size <= RETR_PIPELINED] + list(BIG)
    return [str(size) for size in sizes]
