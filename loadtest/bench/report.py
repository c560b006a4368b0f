"""
The report: figures as tables for people, Markdown that can be read on a terminal of 100 columns as it is.
"""

from __future__ import annotations

import os
import platform
import statistics
import textwrap
from collections.abc import Iterator
from pathlib import Path

from loadtest.bench import memory, scenarios, targets
from loadtest.bench.results import Results
from loadtest.bench.scenarios import Column

WIDTH = 100
NONE = "-"


def machine() -> str:
    """One line that says what the figures were measured on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return (
        f"{model}, {cores} core{'s' * (cores != 1)}, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from _head(results)
    for scenario in results.scenarios():
        yield ""
        yield f"### {scenarios.TITLES[scenario]}"
        yield ""
        yield from _table(results, scenario)
        yield from _notes(results, scenario)
        if scenario == "poll":
            yield from _split(results)
    yield from _summary(results)


def _head(results: Results) -> Iterator[str]:
    about = results.about
    versions = ", ".join(dict.fromkeys(about["versions"].values()))
    after = f"{about['load_after']:.1f} after" if about["complete"] else "not run to its end"
    root = "" if about["root"] else "; without root"
    for line in (
        f"{about['machine']}; load average {about['load_before']:.1f} before, {after}",
        f"{versions}; {about['time']}",
        f"accounts from {about['accounts']}; {about['concurrency']} sessions at once{root}",
        f"CPU time of whole servers, by {about['meter']}: median of {about['rounds']} rounds (range)",
        "vs: gpop's figure divided by that peer's; isolating: with a process and a uid for each session",
    ):
        yield from _wrapped(line)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, break_on_hyphens=False, subsequent_indent="  ")


# Tables


def _table(results: Results, scenario: str) -> Iterator[str]:
    """A table; with short names of peers, and without ranges, if it would be too wide with them."""
    for ranges, short in ((True, False), (True, True), (False, False), (False, True)):
        lines = list(_aligned(list(_rows(results, scenario, ranges, short))))
        if max(map(len, lines)) <= WIDTH:
            break
    yield from lines


def _rows(results: Results, scenario: str, ranges: bool, short: bool) -> Iterator[list[str]]:
    columns = scenarios.columns(scenario, results.labels(scenario))
    yield ["server", *(scenarios.heading(scenario, column) for column in columns)]
    for server in results.servers(scenario):
        yield [server, *(_figure(results, scenario, server, column, ranges) for column in columns)]
    if scenario == "scale":
        return
    for subject, against in targets.comparisons(results, scenario, columns):
        for row in _comparison(results, scenario, columns, subject, against):
            yield [cell.removeprefix("dovecot-") for cell in row] if short else row
    yield from _verdicts(results, scenario, columns)


def _figure(results: Results, scenario: str, server: str, column: Column, ranges: bool) -> str:
    label, metric = column
    known = results.known(scenario, label, server, metric)
    if not known:
        return "failed" if results.cell(scenario, label, server) else NONE
    median = rounded(statistics.median(known))
    if not ranges or len(known) == 1:
        return median
    return f"{median} ({rounded(min(known))}-{rounded(max(known))})"


def _comparison(
    results: Results, scenario: str, columns: list[Column], subject: str, against: str
) -> Iterator[list[str]]:
    """Ratios, below them who the best is where that differs, below that what is to be reached."""
    names, ratios, verdicts = [], [], []
    for label, metric in columns:
        opponents = targets.opponents(results.servers(scenario), against)
        if label in targets.NOT_COMPARED:
            opponents = []
        peer = results.best(scenario, label, metric, opponents)
        ratio = results.ratio(scenario, label, subject, peer, metric) if peer else None
        target = targets.target(scenario, label, metric, subject, against)
        names.append(peer or NONE)
        ratios.append(rounded(ratio))
        verdicts.append(target.verdict(ratio) if target and ratio is not None else "")
    if set(ratios) == {NONE}:
        return
    yield [f"{subject} : {against}" if subject != "gpop" else f"vs {against}", *ratios]
    if against in (targets.ISOLATING, targets.ANY):
        yield ["  which is", *names]
    if any(verdicts):
        yield ["  target", *verdicts]


def _verdicts(results: Results, scenario: str, columns: list[Column]) -> Iterator[list[str]]:
    """Targets for gpop's figures as they are."""
    verdicts = []
    for label, metric in columns:
        target = targets.target(scenario, label, metric, "gpop", "")
        figure = results.median(scenario, label, "gpop", metric)
        verdicts.append(target.verdict(figure) if target and figure is not None else "")
    if any(verdicts):
        yield ["gpop's target", *verdicts]


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    """The rows as a Markdown table whose columns stand below each other."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        first, *others = (
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    yield line(rows[0])
    yield "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    yield from map(line, rows[1:])


def rounded(figure: float | None) -> str:
    """Three digits that mean something, no more."""
    if figure is None:
        return NONE
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}" if figure >= 0.1 else f"{figure:.3f}"


# What stands below the tables


def _notes(results: Results, scenario: str) -> Iterator[str]:
    lines = []
    flat = targets.flatness(results, scenario)
    if flat:
        least, most, ratio = flat
        verdict = targets.FLAT.verdict(ratio)
        lines.append(
            f"gpop at {int(most):,} messages costs {rounded(ratio)} of what it does at {least} ({verdict})."
        )
    if scenario == "memory":
        lines += memory.MEANINGS
        if (grown := targets.growth(results, scenario)) is not None:
            verdict = targets.NO_GROWTH.verdict(grown)
            lines.append(f"gpop: 50 MB add {rounded(grown)} of what 12 MB do ({verdict}).")
        lines += _counts(results)
    if scenario == "scale":
        lines += _limits(results)
    for cell in results.cells:
        if cell["scenario"] == scenario and scenario != "scale":
            lines += [
                f"{cell['server']} at {cell['label']}: {what}: {said}."
                for what, said in cell["notes"].items()
            ]
        lines += [
            f"{cell['server']}, {cell['label']}: {error}"
            for error in cell["errors"][:1]
            if cell["scenario"] == scenario
        ]
    if lines:
        yield ""
    for line in lines:
        yield from _wrapped(line)


def _counts(results: Results) -> Iterator[str]:
    """How many connections and sessions were held: servers with a process for each were given fewer."""
    for label, what in (("idle", "connections before login"), ("session", "sessions")):
        counts = []
        for server in results.servers("memory"):
            cell = results.cell("memory", label, server)
            if cell and cell["rounds"] and cell["rounds"][0]:
                counts.append(f"{server} {cell['rounds'][0]['count']:,}")
        yield f"Held, {what}: {', '.join(counts)}."


def _limits(results: Results) -> Iterator[str]:
    """What was bound to which cores, and what that says about machines with more of them."""
    yield "The servers were pinned to cores, the load generator (two processes) was not and shared them."
    for cell in results.cells:
        if cell["scenario"] != "scale":
            continue
        yield f"{cell['server']}: every process of it pinned to {cell['notes']['pinned to']}."
        cpu, broker = (
            results.median("scale", cell["label"], cell["server"], metric)
            for metric in ("cpu_ms", "broker_ms")
        )
        if cpu and broker:
            cores, brokers = int(cell["notes"]["cores"]), int(cell["notes"]["brokers"])
            yield (
                f"  With the cores to itself at most {rounded(cores * 1e3 / cpu)} sessions/s; its "
                f"broker{'s' * (brokers > 1)}, with a core each, at most {rounded(brokers * 1e3 / broker)}."
            )


def _split(results: Results) -> Iterator[str]:
    """Where the CPU time of gpop's polls goes, process by process."""
    rows: list[list[str]] = []
    for cell in results.cells:
        rounds = [each for each in cell["rounds"] if each and each.get("by_process")]
        if cell["scenario"] != "poll" or not rounds:
            continue
        kinds = list(rounds[0]["by_process"])
        if not rows:
            rows.append(["server", "messages", *kinds, "whole, user", "whole, system"])
        parts = [statistics.median(each["by_process"][kind] for each in rounds) for kind in kinds]
        parts += [statistics.median(each[name] for each in rounds) for name in ("user_ms", "system_ms")]
        rows.append([cell["server"], f"{int(cell['label']):,}", *map(rounded, parts)])
    if rows:
        yield ""
        yield "### Where a poll's CPU time goes: ms per session by process"
        yield ""
        yield from _aligned(rows)


def _summary(results: Results) -> Iterator[str]:
    """How many of the targets that could be looked at are met."""
    met, missed = 0, []
    for (scenario, label, metric), wanted in targets.TARGETS.items():
        servers = results.servers(scenario)
        for target in wanted:
            peer = None
            if target.against:
                peer = results.best(scenario, label, metric, targets.opponents(servers, target.against))
                figure = results.ratio(scenario, label, target.subject, peer, metric) if peer else None
            else:
                figure = results.median(scenario, label, target.subject, metric)
            if figure is None:
                continue
            if target.met(figure):
                met += 1
            else:
                compared = f" vs {target.against}" if target.against else ""
                missed.append(f"{scenario} {label}{compared} {rounded(figure)}")
    if met or missed:
        yield ""
        yield from textwrap.wrap(
            f"Targets met: {met} of {met + len(missed)}."
            + (f" Missed: {'; '.join(missed)}." if missed else ""),
            WIDTH,
        )
