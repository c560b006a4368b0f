"""
Reloads, upgrades and kills under load: what is done, what is excused by it, and how memory is judged.

The runs are as short as can be, with few users; docs/reliability.md has those that were long.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.memory import EVERY_S, MOST_GROWTH_KIB, Sample, draw, growth, own_kib
from loadtest.trouble import Server, excused, in_turn

TIMEOUT_S = 100
RUN = (
    *("--users", "20", "--spawn-rate", "20", "--run-time", "4s", "--minute-s", "1"),
    *("--kills", "0.3", "--memory"),
)


def test_kills_cost_what_they_must_and_nothing_else() -> None:
    """A run with its kills passes: what was cut off is no failure, and everything else is verified."""
    if importlib.util.find_spec("locust") is None:  # not imported: it would patch the tests that follow
        pytest.skip("needs gpop[loadtest]")
    folder = Path(tempfile.mkdtemp(prefix="gpop-test-loadtest-"))  # mail users must get through
    folder.chmod(0o755)
    try:
        ports = ("--port", str(_free_port()), "--tls-port", str(_free_port()))
        command = [sys.executable, "-m", "loadtest", "all", "--site", str(folder / "site"), *ports, *RUN]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            output = process.communicate(timeout=TIMEOUT_S)[0]
        finally:
            if process.poll() is None:
                process.terminate()  # it ends gpop and locust in order
                process.wait(60)
        assert process.returncode == 0, output
        assert re.search(r"Killed, and reloaded: .*\d+ (session|front|auth)", output)
        assert (folder / "site/results/memory.csv").read_text().count("broker") >= 2
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--reloads", "2"],
        ["server", "--kills"],
        ["--kills", "--upgrades", "1"],
        ["--kills", "--tls", "yes"],
        ["--memory", "--run-time", "soon"],
        ["--reloads", "-1"],
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made, with the option's name."""
    assert main(arguments) == 1
    assert "--" in capsys.readouterr().err


def test_reloads_and_upgrades_are_mixed_at_even_distances(tmp_path: Path) -> None:
    """24 and 5 of them in five minutes: one every ten seconds, and no two upgrades one after the other."""
    server = Server(os.getpid(), tmp_path / "log")
    plan = list(in_turn(server, 24, 5, 300))
    assert [due_s for due_s, _ in plan] == [10.0 * number for number in range(1, 30)]
    names = [deed.__name__ for _, deed in plan]
    assert Counter(names) == {"reload": 24, "upgrade": 5}
    assert ("upgrade", "upgrade") not in itertools.pairwise(names)


KILLS = [(100.0, "session"), (200.0, "front"), (300.0, "reload, 0.5 s"), (400.0, "log")]


@pytest.mark.parametrize(
    ("cut_off", "died", "said"),
    [
        ([], 0, ""),
        ([(101.0, 1)], 1, ""),
        ([(101.0, 1), (102.0, 1)], 1, "2 sessions were cut off, and 1 were killed"),
        ([(200.1, 0), (203.0, 0), (204.0, 0)], 0, ""),  # any number of logins may be under way
        ([(250.0, 0)], 0, "no kill was near"),
        ([(300.1, 0)], 0, "no kill was near"),  # a reload is none
        ([(400.1, 0)], 0, "no kill was near"),  # nobody needs the log process
    ],
)
def test_only_what_a_kill_accounts_for_is_excused(
    cut_off: list[tuple[float, int]], died: int, said: str
) -> None:
    """As many sessions as were killed; logins near a kill."""
    why = excused(cut_off, KILLS, Counter(session_died=died))
    assert said in why and bool(said) == bool(why)


def samples(*kib: int) -> list[Sample]:
    return [Sample(EVERY_S * number, "front", 7, each) for number, each in enumerate(kib)]


def test_memory_is_flat_if_it_stays_after_the_first_quarter() -> None:
    """What grows then grows for ever; what is sampled too seldom is not judged."""
    bound = MOST_GROWTH_KIB["front"]
    (flat,) = growth(samples(*range(1000, 41000, 1000), *[41000] * 120))
    assert flat.is_flat and flat.most_kib == 41000
    (grown,) = growth(samples(*range(0, 160 * bound, bound // 40)[:160]))
    assert not grown.is_flat and "grows" in str(grown)
    assert growth(samples(1, 2, 3)) == [] == growth([])


def test_a_front_that_was_replaced_does_not_hide_another(tmp_path: Path) -> None:
    """Of several the largest counts; and they can be drawn."""
    rows = [Sample(EVERY_S * number, "front", pid, 1000 * pid) for number in range(80) for pid in (1, 2)]
    (judged,) = growth(rows)
    assert (judged.second_kib, judged.last_kib) == (2000, 2000)
    if draw(rows, tmp_path / "memory.svg"):
        assert "front" in (tmp_path / "memory.svg").read_text()


def test_own_memory_is_read() -> None:
    """Of this process: some, and less than all of it."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    resident = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert 0 < own_kib(rollup) < resident
