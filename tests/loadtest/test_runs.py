"""
The load test runs against a real gpop, and finds no fault; before a broken one it finds the fault.

All runs go on at the same time, each with a site and a gpop of its own: each takes as long as it takes.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpop.cli import COMMANDS
from loadtest import site as sites
from loadtest.behaviours import BEHAVIOURS
from loadtest.site import Site
from tests.loadtest.broken_server import CHANGE_UNIQUE_ID, LOSE_MESSAGE, WRONG_OCTET, BrokenServer
from tests.serving import Server

USERS = 25
TIMEOUT_S = 120
RUN = (
    *("--users", str(USERS), "--spawn-rate", "25", "--run-time", "6s", "--minute-s", "1"),
    *("--mail-per-s", "10", "--exit-code-on-error", "3"),
)
NO_SWITCH = "nothing is wrong"
SWITCHES = {NO_SWITCH: None} | {name: name for name in (LOSE_MESSAGE, CHANGE_UNIQUE_ID, WRONG_OCTET)}


@dataclass
class Done:
    """What a run has left."""

    status: int
    output: str
    spoiled: int
    expected: dict
    failures: list[dict[str, str]]
    requests: dict[str, dict[str, str]]
    html: str
    faults: list[dict]
    log: Path


class Started:
    """A site, its gpop, what is between that and locust, and locust."""

    def __init__(self, stack: ExitStack, switch: str | None, *more: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix="gpop-test-loadtest-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        self.site = sites.make(folder / "site", USERS + 1, 0, 0)  # two workers do not have exactly half
        self.server = stack.enter_context(Server(self.site))
        shutil.move(self.server.log_path, self.site.log)  # where it is when `./dev loadtest server` serves
        self.server.log_path = self.site.log
        self.broken = stack.enter_context(BrokenServer(self.server.port, switch))
        host = f"pop3://127.0.0.1:{self.broken.port}"
        self.output = folder / "output"
        command = [sys.executable, "-m", "loadtest", "run", "--site", str(self.site.path), *RUN, *more]
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [*command, "--host", host], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def done(self) -> Done:
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(20)
            status = -1
        output = self.output.read_text()
        results = self.site.path / "results"
        assert (results / "expected.json").exists(), output
        return Done(
            status,
            output,
            self.broken.spoiled,
            json.loads((results / "expected.json").read_text()),
            _rows(results / "locust_failures.csv"),
            {row["Name"]: row for row in _rows(results / "locust_stats.csv")},
            (results / "report.html").read_text(),
            self.server.faults(),
            self.site.log,
        )


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Done]]:
    """All runs, by what is wrong with the server of each."""
    # Not imported: it would patch sockets, forks and signals under all the tests that follow.
    if importlib.util.find_spec("locust") is None:
        pytest.skip("needs gpop[loadtest]")
    with ExitStack() as stack:
        port = str(_free_port())
        workers = ("--processes", "2", "--master-bind-port", port, "--master-port", port)
        started = {
            name: Started(stack, switch, *(() if switch else workers)) for name, switch in SWITCHES.items()
        }
        yield {name: each.done() for name, each in started.items()}


def test_a_right_server_passes(runs: dict[str, Done]) -> None:
    """
    No request fails, every behaviour has had its sessions; hits, refreshes and rebuilds have all
    happened, each as often as was expected, which is compared with the log at the end of the run.

    Locust is a master and two workers here, which shares out the maildrops.
    """
    run = runs[NO_SWITCH]
    assert run.status == 0, run.output
    assert run.failures == []
    assert run.faults == []
    assert "The log shows what was expected." in run.output
    assert run.expected["unsure"] == 0
    assert run.expected["cache"]["off"] == 0
    assert min(run.expected["cache"][outcome] for outcome in ("hit", "refresh", "rebuild")) > 0
    guessers = sum(each.name == "Guesser" for each in BEHAVIOURS)
    assert len(run.expected["sessions"]) == len(BEHAVIOURS) - guessers
    assert run.expected["refused"] > 0
    drained = run.expected["mail"]["Drainer"]
    assert drained["received"] > 0
    assert drained["delivered"] == drained["received"] + drained["left"]
    assert run.expected["close_reason"]["disconnect"] == run.expected["sessions"]["Impatient"]


def test_gpop_report_shows_what_was_expected(runs: dict[str, Done]) -> None:
    """The report made of the server's log has as many hits, refreshes and rebuilds as the run expected."""
    if "report" not in COMMANDS:
        pytest.skip("this gpop has no report")
    command = [sys.executable, "-m", "gpop", "report", "--json", str(runs[NO_SWITCH].log)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    shown = json.loads(done.stdout)["cache"]
    expected = runs[NO_SWITCH].expected["cache"]
    assert {outcome: shown[outcome] for outcome in expected} == expected


def test_every_command_is_a_request_of_its_own(runs: dict[str, Done]) -> None:
    """With latency and octets, in locust's own CSV; its HTML report is there as well."""
    requests = runs[NO_SWITCH].requests
    for name in ("connect", "CAPA", "USER", "PASS (hit)", "STAT", "LIST", "UIDL", "RETR", "DELE", "QUIT"):
        assert int(requests[name]["Request Count"]) > 0
        assert float(requests[name]["Max Response Time"]) > 0
        assert float(requests[name]["Average Content Size"]) > 0
    assert float(requests["RETR"]["Average Content Size"]) > 1000
    assert int(requests["at the end: Maildir"]["Request Count"]) == USERS
    assert "Poller" in runs[NO_SWITCH].html


def failures(run: Done) -> str:
    assert run.spoiled == 1, "the broken server has had no occasion to do its damage"
    assert run.status == 3, run.output
    return "\n".join(f"{row['Name']}: {row['Error']}" for row in run.failures)


def test_a_lost_message_is_noticed(runs: dict[str, Done]) -> None:
    """One message that the server removes though nobody has asked for it."""
    found = failures(runs[LOSE_MESSAGE])
    assert "is gone" in found
    assert "THE LOG SHOWS SOMETHING ELSE" in runs[LOSE_MESSAGE].output


def test_a_changed_unique_id_is_noticed(runs: dict[str, Done]) -> None:
    """One unique-id, once; and the dialogue is told, without a password."""
    found = failures(runs[CHANGE_UNIQUE_ID])
    assert found.count("\n") == 0
    assert re.match(r"UIDL: '1 (.*).' should be '1 \1.' \[", found)
    assert "C: USER user0" in found
    assert "C: PASS (hidden)" in found
    assert sites.PASSWORD not in runs[CHANGE_UNIQUE_ID].output + runs[CHANGE_UNIQUE_ID].html


def test_a_wrong_octet_is_noticed(runs: dict[str, Done]) -> None:
    """One octet of one message, once."""
    found = failures(runs[WRONG_OCTET])
    assert found.count("\n") == 0
    assert re.match(r"RETR.*: not the octets with which .* was delivered", found)


def test_a_folder_of_somebody_elses_is_not_removed(tmp_path: Path) -> None:
    """A site replaces what a load test has made, and nothing else."""
    (tmp_path / "letters").touch()
    with pytest.raises(sites.SiteFailed, match="--site"):
        sites.make(tmp_path, 1, 0, 0)
    assert (tmp_path / "letters").exists()
    (tmp_path / "link").symlink_to(tmp_path / "site")
    with pytest.raises(sites.SiteFailed, match="somebody else's"):
        sites.make(tmp_path / "link", 1, 0, 0)
    for _ in range(2):
        site = sites.make(tmp_path / "site", 2, 0, 0)
    assert len(Site(site.path).accounts()) == 2
