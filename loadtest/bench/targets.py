"""
What gpop is meant to reach, and against whom; docs/performance.md says where it stands.

A comparison is "gpop costs so many times what somebody else does"; some have a limit. The best isolating
peer is the cheapest one that, as gpop, gives each session a process and a uid of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.bench.results import TUNED, Results, is_gpop, isolates

ISOLATING = "best isolating"
REUSE = "gpop-reuse"
ANY = "best peer"


@dataclass(frozen=True, slots=True)
class Target:
    """`subject`'s figure is at most `limit` times `against`'s; `limit` itself if that is nobody."""

    limit: float
    against: str = ""
    subject: str = "gpop"
    at_least: bool = False
    floor: float = 0.0  # what is accepted if the limit proves to be out of reach

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def verdict(self, figure: float) -> str:
        sign = "≥" if self.at_least else "≤"
        if not self.met(figure) and figure <= self.floor:
            return f"{sign} {self.floor:g}, not {self.limit:g}"
        return f"{sign} {self.limit:g} {'met' if self.met(figure) else 'MISSED'}"


def _against_tuned(limit: float, floor: float = 0.0) -> tuple[Target, ...]:
    """For gpop as it is, and for a store of one uid, which is what Dovecot tuned serves."""
    return Target(limit, TUNED, floor=floor), Target(limit, TUNED, REUSE)


# By scenario, label and metric.
TARGETS: dict[tuple[str, str, str], tuple[Target, ...]] = {
    ("poll", "20", "cpu_ms"): (*_against_tuned(1.0, floor=1.4), Target(0.35, ISOLATING)),
    ("poll", "1000", "cpu_ms"): (*_against_tuned(0.4), Target(0.35, ISOLATING)),
    ("poll", "10000", "cpu_ms"): (*_against_tuned(0.08), Target(0.35, ISOLATING)),
    ("poll", "100000", "cpu_ms"): (*_against_tuned(0.01), Target(0.35, ISOLATING)),
    ("refresh", "1000", "cpu_ms"): _against_tuned(0.4),
    ("refresh", "10000", "cpu_ms"): _against_tuned(0.15),
    ("refresh", "100000", "cpu_ms"): _against_tuned(0.15),
    ("rebuild", "10000", "cpu_ms"): (Target(0.5, ANY),),
    ("rebuild", "100000", "cpu_ms"): (Target(0.5, ANY),),
    ("retr", "20", "cpu_ms"): _against_tuned(1.1),
    ("retr", "1000", "cpu_ms"): _against_tuned(0.7),
    ("retr", "big", "cpu_ms"): (Target(0.5, ANY),),
    ("passwords", "permit", "cpu_ms"): (Target(0.5, "dovecot-secure", "gpop-nocache"),),
    ("passwords", "unix", "cpu_ms"): (Target(20, "gpop", "gpop-nocache", at_least=True),),
    ("memory", "idle", "kib"): (Target(24),),
    ("memory", "session", "kib"): (Target(1536),),
    ("latency", "4", "p99_ms"): (Target(1.0, ISOLATING),),
    ("latency", "200", "p99_ms"): (Target(1.0, ISOLATING),),
}
# STAT at the largest maildrop costs so many times what it does at the smallest.
FLAT = Target(1.1)
# A message of 50 MB adds so many times what one of a fourth of it does; four would be growing with it.
# Not 1: the page cache has pieces of up to 2 MiB, and it is chance how many of them are mapped at once.
NO_GROWTH = Target(1.5)
# What a server grows by is next to nothing with most: a ratio of that says nothing.
NOT_COMPARED = ("retr-small", "retr-quarter", "retr-big", "retr-big-anon")
# Comparisons that are shown whether there is a limit or not.
ALWAYS = (("gpop", TUNED), (REUSE, TUNED), ("gpop", ISOLATING))


def comparisons(results: Results, scenario: str, columns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (subject, against) for every comparison that a table has, those with limits too."""
    servers = results.servers(scenario)
    wanted = list(ALWAYS)
    for label, metric in columns:
        for target in TARGETS.get((scenario, label, metric), ()):
            wanted.append((target.subject, target.against))
    gpops = [server for server in servers if is_gpop(server)]
    wanted += [(server, "gpop") for server in gpops if server != "gpop"]
    for subject, against in dict.fromkeys(wanted):
        if subject in servers and opponents(servers, against):
            yield subject, against


def opponents(servers: list[str], against: str) -> list[str]:
    """The servers that a comparison's second name stands for."""
    if against == ISOLATING:
        return [server for server in servers if isolates(server)]
    if against == ANY:
        return [server for server in servers if not is_gpop(server)]
    return [server for server in servers if server == against]


def target(scenario: str, label: str, metric: str, subject: str, against: str) -> Target | None:
    """The limit of one comparison, if there is one."""
    for each in TARGETS.get((scenario, label, metric), ()):
        if (each.subject, each.against) == (subject, against):
            return each
    return None


def growth(results: Results, scenario: str) -> float | None:
    """How many times as much gpop needs for a message of 50 MB as for a fourth of it."""
    less, more = (results.median(scenario, label, "gpop", "kib") for label in ("retr-quarter", "retr-big"))
    return more / less if less and more is not None else None


def flatness(results: Results, scenario: str) -> tuple[str, str, float] | None:
    """Return (a size, a larger one, how many times as much gpop's STAT costs there), if known."""
    sizes = results.labels(scenario)
    if scenario != "stat" or len(sizes) < 2:
        return None
    least, most = min(sizes, key=int), max(sizes, key=int)
    costs = [results.median(scenario, size, "gpop") for size in (least, most)]
    if costs[0] is None or costs[1] is None:
        return None
    return least, most, costs[1] / costs[0]
