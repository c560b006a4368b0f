"""
The measuring: what is done to every server, in rounds, each server in turn in each of them.

A figure is CPU time of the whole server over the sessions of one round. Seconds depend on what else the
machine does; CPU time does so much less, and ratios between servers in one round least of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from loadtest.bench.load import Result
from loadtest.bench.maildrops import BIG, Maildrop
from loadtest.bench.measuring import Cell, Figure, measure
from loadtest.bench.servers import NotHere, Server
from loadtest.bench.stages import Stage, progress

# Dovecot looks at a folder again if it changed less than a second or two before: not what is measured here.
DOVECOT_RACY_S = 2.2
BEFORE_DELIVERY_S = 1.2
# A poll in the very clock tick of a delivery is a case of its own; mail is older than that as a rule.
AFTER_DELIVERY_S = 0.05
# The maildrops that are retrieved whole: up to this one by one, up to the next pipelined, above that not.
RETR_ONE_BY_ONE = 100
RETR_PIPELINED = 2000


class Bench:
    """Servers that run, and what is done to them."""

    def __init__(self, stage: Stage, rounds: int, seconds: float, concurrency: int) -> None:
        self.servers = list(stage.servers)
        self.post = stage.post
        self.load = stage.load
        self.rounds = rounds
        self.seconds = seconds
        self.concurrency = concurrency

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
                if why := cells[server.name].note(found):
                    progress(f"{server.name}, {scenario} {label}, round {number}: {why}")
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
        return measure(self.load, server, script, maildrops, self.concurrency, seconds)


def retr_script(label: str) -> str:
    """How the messages of a maildrop of that size are asked for."""
    pipelined = label.isdigit() and RETR_ONE_BY_ONE < int(label) <= RETR_PIPELINED
    return "retr-pipelined" if pipelined else "retr"


def labels_of(scenario: str, sizes: list[int]) -> list[str]:
    """The maildrops that a scenario is run on."""
    if scenario == "retr":
        return [str(size) for size in sizes if size <= RETR_PIPELINED] + list(BIG)
    return [str(size) for size in sizes]
