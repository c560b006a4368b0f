"""
The program with the hostile peers, in small: honest users are served, nothing stays; a broken gpop is found.

Times are not judged here, so that a busy machine is no failure; `./dev hostile` does.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from loadtest.hostile.attacks import ATTACKS
from loadtest.hostile.honest import Poll
from loadtest.hostile.judgement import Result, problems
from loadtest.hostile.rest import Rest
from loadtest.hostile.scenarios import BY_NAME, SCENARIOS
from loadtest.installation import Installation
from tests.serving import ROOT

TIMEOUT_S = 150
SMALL = (
    *("--users", "8", "--pause", "0.1", "--quiet-s", "0.1", "--attack-s", "0.3"),
    *("--scale", "0.01", "--no-times"),
)
pytestmark = pytest.mark.skipif(not ROOT, reason="needs root: it looks at processes of the service user")


def hostile(tmp_path, *arguments):
    """Run the program; returns its exit status, its output and its figures by scenario."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "loadtest.hostile", *SMALL, "--json", str(figures), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert figures.exists(), done.stdout + done.stderr
    return done.returncode, done.stdout, {each["scenario"]: each for each in json.loads(figures.read_text())}


def test_honest_users_are_served_beside_every_attack(tmp_path):
    """Each attack does something; every poll is right; processes, descriptors, memory are as before."""
    status, output, figures = hostile(tmp_path)
    assert status == 0, output
    assert list(figures) == [scenario.name for scenario in SCENARIOS]
    for each in figures.values():
        assert each["attacked"]["polls"] > 0
        assert (
            each["processes_before"]
            == each["processes_after"]
            == {"broker": 1, "front": 1, "auth": 1, "log": 1}
        )


def test_a_front_that_keeps_descriptors_is_found(tmp_path):
    """A gpop whose fronts forget to close who has left: status 1, and it says what is left."""
    installation = Installation(tmp_path)
    installation.change(
        "front/connection.py",
        "        self.client.close()\n",
        "        LEFT.append(os.dup(self.client.fileno()))\n",
    )
    installation.change(
        "front/connection.py", "MAX_REFUSALS = 5\n", "MAX_REFUSALS = 5\nimport os\nLEFT = []\n"
    )
    status, output, figures = hostile(
        tmp_path, "--installation", str(tmp_path), "--settle-s", "0.5", "half-open-tls"
    )
    assert status == 1
    assert "OUT OF BOUNDS: descriptors of front" in output
    assert any("descriptors of front" in each for each in figures["half-open-tls"]["problems"])


def test_every_scenario_has_an_attack():
    """By the same name, and in the same order."""
    assert list(ATTACKS) == list(BY_NAME)


# What is judged


def polls(took_ms, problem=""):
    return [Poll(0.0, took_ms / 1000, problem, {})] * 100


REST = Rest({1: "broker", 2: "front", 3: "auth"}, {1: 5, 2: 6, 3: 7}, {1: 100, 2: 100, 3: 100}, 0, 0)
WELL = Result(BY_NAME["slowloris"], polls(50), polls(100), REST, REST, {"connections": 9}, [], 0)
AMISS = {
    "p99 of honest users": {"attacked": polls(50 * BY_NAME["slowloris"].factor + 1)},
    "polls of honest users failed: a close": {"attacked": polls(50, "a close")},
    "no honest user polled": {"attacked": []},
    "achieved nothing": {"achieved": {"connections": 0, "seconds": 5}},
    "other processes": {"after": dataclasses.replace(REST, lasting={1: "broker", 9: "front", 3: "auth"})},
    "1 sessions and 0 checkers": {"after": dataclasses.replace(REST, sessions=1)},
    "0 sessions and 2 checkers": {"after": dataclasses.replace(REST, checkers=2)},
    "descriptors of front: 6, then 7": {"after": dataclasses.replace(REST, descriptors={1: 5, 2: 7, 3: 7})},
    "auth has grown": {"after": dataclasses.replace(REST, memory_kib={1: 100, 2: 100, 3: 2100})},
    "session_died": {"faults": ["session_died 1 times"]},
}


def test_a_good_result_has_no_problems():
    assert problems(WELL) == []


@pytest.mark.parametrize("what", AMISS)
def test_each_thing_that_is_amiss_is_told(what):
    """One problem, in words, for one thing that is wrong."""
    told = problems(dataclasses.replace(WELL, **AMISS[what]))
    assert len(told) == 1 and what in told[0], told
