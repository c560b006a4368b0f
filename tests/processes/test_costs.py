"""
What a poll that finds no new mail costs, counted and not timed: a guard that no busy machine upsets.

Three counts stand for its cost. Modules loaded in the broker, whose pages every fork carries along, are
counted in tests/test_architecture.py; page faults of a session and its system calls are counted here.
Each ceiling is some 15 % above what was measured when it was set: room for the noise of memory layout and
of timers, not for another import. `pytest -rP tests/processes/test_costs.py` prints the present counts;
whoever makes a session cheaper lowers the ceiling to 1.15 times the new one, whoever raises it says in the
commit what the users get for that. docs/performance.md says what such counts cost in time.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, Server, wait_until

POLLS = 20
MESSAGES = 20
POLL = b"USER user0\r\nPASS open sesame\r\nSTAT\r\nUIDL\r\nQUIT\r\n"

# A page that is written to after a fork, or touched for the first time, is a fault: 0.5 to 1 µs each, on
# some virtual machines three times that. They depend on the interpreter, so there is a ceiling for each
# version that was measured. As root: 290, with Debian's Python 310. Without root there is no jail, and fewer.
MOST_FAULTS = {(3, 11): 325}

# Calls of the broker and its session together, from receiving the login to reaping the child. Each is 0.1 to
# 1 µs, more where it sleeps or wakes somebody; what matters is that none is added unseen. Measured: 58.
MOST_SYSTEM_CALLS = 63


def poll(server: Server) -> None:
    """One whole session, and its end seen by the broker."""
    with server.connect() as client:
        client.send(POLL)
        assert client.rest().endswith(b"+OK bye\r\n")


def warmed(server: Server) -> Server:
    """Deliver, and poll until the answer lies ready and everybody has done everything once."""
    for _ in range(MESSAGES):
        server.site.deliver(b"Subject: cost\n\nA line.\n")
    for _ in range(5):
        poll(server)
    wait_for_reaping(server)
    return server


def wait_for_reaping(server: Server) -> None:
    wait_until(lambda: not server.pids("session"), what="the sessions to be reaped")


def assert_hits(server: Server) -> None:
    """What was counted were hits, all of them."""
    server.wait_for_event("session_closed", 5 + POLLS)
    outcomes = [event["cache"] for event in server.events("session_closed")]
    assert outcomes[-POLLS:] == ["hit"] * POLLS


def faults_of_children(pid: int) -> int:
    """Page faults, without input or output, of all children that a process has reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[8])  # cminflt, field 11 in proc(5)


def test_page_faults_of_a_session(make_server) -> None:
    """A session copies and touches few pages: that, with the fork itself, is most of what a poll costs."""
    most = MOST_FAULTS.get(sys.version_info[:2])
    if most is None:
        pytest.skip(f"no ceiling was measured for Python {sys.version_info[0]}.{sys.version_info[1]}")
    server = warmed(make_server(accounts_cache__enabled=True))
    try:
        before = faults_of_children(server.process.pid)
    except OSError as error:
        pytest.skip(f"the broker's /proc/PID/stat can't be read here: {error}")
    for _ in range(POLLS):
        poll(server)
    wait_for_reaping(server)
    faults = (faults_of_children(server.process.pid) - before) / POLLS
    print(f"page faults per session: {faults:.1f}, at most {most} are allowed (root: {ROOT})")
    assert_hits(server)
    assert 0 < faults <= most


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_system_calls_of_a_session(make_server, tmp_path: Path) -> None:
    """The broker and a session that finds no new mail make few system calls, and none is added unseen."""
    server = warmed(make_server(accounts_cache__enabled=True))
    counts = tmp_path / "counts"
    command = ["strace", "-f", "-c", "-o", str(counts), "-p", str(server.process.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = tracer.stderr.readline()
        if "attached" not in said:
            pytest.skip(f"strace can't attach to a process here: {said.strip()}")
        for _ in range(POLLS):
            poll(server)
        wait_for_reaping(server)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)
    calls = counted_calls(counts.read_text())
    per_session = sum(calls.values()) / POLLS
    print(f"system calls per session: {per_session:.1f}, at most {MOST_SYSTEM_CALLS} are allowed")
    print(*(f"{count / POLLS:6.1f} {name}" for name, count in calls.items()), sep="\n")
    assert_hits(server)
    assert 0 < per_session <= MOST_SYSTEM_CALLS


def counted_calls(table: str) -> dict[str, int]:
    """The counts of `strace -c`, by system call."""
    rows = [line.split() for line in table.splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}
