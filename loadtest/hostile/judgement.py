"""
PURE: what a scenario has done to honest users and to the server, whether that is within bounds, and a table.

Times are judged by ratios within one run, because the machine may be busy with other things. What does not
depend on any clock is judged as it is: every poll served, the same processes, no descriptor left.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.hostile.honest import Poll
from loadtest.hostile.rest import Rest
from loadtest.hostile.scenarios import Scenario

# Below this a p99 is the machine's: a quiet one is not taken for less.
LEAST_P99_MS = 25.0
# What a process may have more after an attack than before it, in KiB. `docs/reliability.md` says of what.
MOST_GROWTH_KIB = {"broker": 512, "auth": 1024, "front": 4096, "log": 512}
# What auth remembers of each source that it has penalised, as long as accounts.penalty_forget_s.
PENALTY_KIB = 1.0
SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Of polls: how many, the median, and what 99 of 100 keep below."""

    polls: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario: honest users before and beside it, the server before and after, what was achieved."""

    scenario: Scenario
    quiet: Sequence[Poll]
    attacked: Sequence[Poll]
    before: Rest
    after: Rest
    achieved: dict[str, Any]
    faults: Sequence[str]
    penalties: int


def grown_kib(before: Rest, after: Rest) -> dict[str, int]:
    """By kind of process, how much more memory of its own it has."""
    pids = before.lasting.keys() & after.lasting.keys()
    return {after.lasting[pid]: after.memory_kib[pid] - before.memory_kib[pid] for pid in pids}


def latency(polls: Iterable[Poll]) -> Latency:
    took_ms = sorted(poll.took_s * 1000 for poll in polls)
    if not took_ms:
        return Latency(0, 0.0, 0.0)
    return Latency(len(took_ms), statistics.median(took_ms), _p99(took_ms))


def steps_ms(polls: Iterable[Poll]) -> dict[str, list[float]]:
    """For each step of a poll how long it alone took: the median, and what 99 of 100 keep below."""
    took: dict[str, list[float]] = {}
    for poll in polls:
        before = 0.0
        for step, at in poll.steps_s.items():
            took.setdefault(step, []).append((at - before) * 1000)
            before = at
    return {
        step: [round(each, 1) for each in (statistics.median(ms), _p99(sorted(ms)))]
        for step, ms in took.items()
    }


def _p99(in_order: Sequence[float]) -> float:
    return in_order[min(len(in_order) - 1, len(in_order) * 99 // 100)]


def most_p99_ms(result: Result) -> float:
    """What the p99 beside the attack may be."""
    return result.scenario.factor * max(LEAST_P99_MS, latency(result.quiet).p99_ms)


def problems(result: Result, judges_times: bool = True) -> list[str]:
    """What is out of bounds, in words; nothing if all is well."""
    return [*_unserved(result), *(_slow(result) if judges_times else []), *_left_behind(result)]


def _unserved(result: Result) -> Iterable[str]:
    if not result.attacked:
        yield "no honest user polled beside the attack"
    wrong = [poll.problem for poll in (*result.quiet, *result.attacked) if poll.problem]
    if wrong:
        yield f"{len(wrong)} polls of honest users failed: {'; '.join(sorted(set(wrong))[:SHOWN_PROBLEMS])}"
    if not any(count for what, count in result.achieved.items() if what != "seconds"):
        yield "the attack achieved nothing, so nothing is shown"


def _slow(result: Result) -> Iterable[str]:
    p99_ms, most_ms = latency(result.attacked).p99_ms, most_p99_ms(result)
    if p99_ms > most_ms:
        yield f"the p99 of honest users was {p99_ms:.0f} ms, may be {most_ms:.0f}"


def _left_behind(result: Result) -> Iterable[str]:
    yield from left_behind(result.before, result.after, result.penalties)
    if result.faults:
        yield f"the log has {', '.join(result.faults)}"


def left_behind(before: Rest, after: Rest, penalties: int) -> Iterable[str]:
    """What a server has, some time after an attack, that it did not have before."""
    if before.lasting != after.lasting:
        yield f"other processes than before: {before.lasting}, then {after.lasting}"
    if after.sessions or after.checkers:
        yield f"{after.sessions} sessions and {after.checkers} checkers are left"
    for pid in before.lasting.keys() & after.lasting.keys():
        if before.descriptors[pid] != after.descriptors[pid]:
            more = f"{before.descriptors[pid]}, then {after.descriptors[pid]}"
            yield f"descriptors of {before.lasting[pid]}: {more}"
    for kind, grown in grown_kib(before, after).items():
        most = MOST_GROWTH_KIB[kind] + (PENALTY_KIB * penalties if kind == "auth" else 0)
        if grown > most:
            yield f"{kind} has grown by {grown} KiB, may by {most:.0f}"


HEAD = (
    f"{'scenario':<18}{'quiet, ms':>14}{'attacked, ms':>16}{'p99':>8}{'may':>6}"
    f"{'front':>9}{'auth':>8}{'broker':>8}   what the attackers achieved"
)
SUBHEAD = f"{'':<18}{'median/p99':>14}{'median/p99':>16}{'ratio':>8}{'be':>6}{'grown by KiB':>25}"


def row(result: Result) -> str:
    """One line of the table."""
    quiet, attacked, grown = (
        latency(result.quiet),
        latency(result.attacked),
        grown_kib(result.before, result.after),
    )
    # As it is judged, so that the columns can be held against each other.
    ratio = attacked.p99_ms / max(LEAST_P99_MS, quiet.p99_ms)
    achieved = ", ".join(
        f"{count:,} {what}" for what, count in result.achieved.items() if what != "seconds" and count
    )
    return (
        f"{result.scenario.name:<18}{f'{quiet.median_ms:.0f}/{quiet.p99_ms:.0f}':>14}"
        f"{f'{attacked.median_ms:.0f}/{attacked.p99_ms:.0f}':>16}{ratio:>8.1f}{result.scenario.factor:>6g}"
        f"{grown.get('front', 0):>+9}{grown.get('auth', 0):>+8}{grown.get('broker', 0):>+8}"
        f"   {achieved} in {result.achieved.get('seconds', 0)} s"
    )


def as_json(result: Result, judged: Sequence[str]) -> dict[str, Any]:
    """All figures of one scenario."""
    both = {"quiet": latency(result.quiet), "attacked": latency(result.attacked)}
    return {
        "scenario": result.scenario.name,
        "what": result.scenario.what,
        "factor": result.scenario.factor,
        **{
            name: {
                "polls": each.polls,
                "median_ms": round(each.median_ms, 1),
                "p99_ms": round(each.p99_ms, 1),
            }
            for name, each in both.items()
        },
        "steps_ms": steps_ms(result.attacked),
        "most_p99_ms": round(most_p99_ms(result), 1),
        "processes_before": result.before.kinds(),
        "processes_after": result.after.kinds(),
        "descriptors": {
            result.before.lasting[pid]: [count, result.after.descriptors.get(pid, 0)]
            for pid, count in result.before.descriptors.items()
        },
        "memory_kib": {
            result.before.lasting[pid]: [kib, result.after.memory_kib.get(pid, 0)]
            for pid, kib in result.before.memory_kib.items()
        },
        "achieved": result.achieved,
        "problems": list(judged),
    }
