"""`gpop uidl verify`: what it says of two servers, and its exit status, which scripts go by."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpop.commands import uidl_verify
from tests.migration.hostile import Answer, Script, drop
from tests.serving import ROOT, wait_until

TOP = Path(__file__).parent.parent.parent
MESSAGES = [b"Subject: %d\r\n\r\nbody\r\n" % number for number in range(30)]
OLD = drop(*MESSAGES)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A list of two users."""
    path = tmp_path / "users"
    path.write_text("anna:secret-a\nbert:secret-b\n")
    return path


def command(users: Path, old: Script, new: Script, *more: str) -> list[str]:
    words = ("verify", "--old", old.url, "--new", new.url, "--users", str(users), "--silence-s", "10", *more)
    return [sys.executable, "-m", "gpop", "uidl", *words]


def verify(users: Path, old: Answer, new: Answer, *more: str) -> subprocess.CompletedProcess[str]:
    with Script(old) as old_server, Script(new) as new_server:
        done = subprocess.run(
            command(users, old_server, new_server, *more),
            check=False, cwd=TOP, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        asked = old_server.asked + new_server.asked
    assert {line.split()[0] for line in asked} <= {
        b"CAPA",
        b"USER",
        b"PASS",
        b"STAT",
        b"LIST",
        b"UIDL",
        b"QUIT",
    }
    assert "secret" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    return done


def test_identical(users: Path) -> None:
    """Two servers that list the same: status 0 and one line."""
    done = verify(users, OLD, OLD)
    assert (done.returncode, done.stdout) == (0, "2 users, 2 identical; 60 messages are on both sides\n")


def test_new_mail(users: Path) -> None:
    """More at the end of the new server's list is told apart, and no difference unless that is asked for."""
    more = drop(*MESSAGES, b"X: new\r\n\r\n")
    done = verify(users, OLD, more)
    assert done.returncode == 0
    assert (
        "2 identical; 60 messages are on both sides; 2 at the end are on the new server only" in done.stdout
    )
    assert verify(users, OLD, more, "--exact").returncode == 1


def test_different_ids(users: Path) -> None:
    """Where it differs, by number and with both ids; a few of each kind, and how many there are."""
    new = drop(*MESSAGES, ids=[b"id1", *(b"new%d" % number for number in range(2, 31))])
    done = verify(users, OLD, new, "--show", "2")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:5] == [
        f"{done.stdout.split(':')[0]}: differs",
        "  another unique-id: 29 (clients fetch these again)",
        "    old message 2 id2, new message 2 new2",
        "    old message 3 id3, new message 3 new3",
        "    and 27 more",
    ]
    assert "2 users, 0 identical, 2 different; 2 messages are on both sides" in done.stdout


def test_sizes(users: Path) -> None:
    """Other sizes are a difference that can be left out."""
    new = drop(*MESSAGES[:-1], MESSAGES[-1] + b"\r\n")
    done = verify(users, OLD, new)
    assert done.returncode == 1 and "old message 30 21, new message 30 23" in done.stdout
    assert verify(users, OLD, new, "--ignore-sizes").returncode == 0


def test_could_not_be_compared(users: Path) -> None:
    """One server refuses a login: status 2, which side it was, and everybody else is compared."""

    def refusing(line: bytes) -> bytes:
        said = OLD(line)
        assert isinstance(said, bytes)
        return b"-ERR [AUTH] no\r\n" if line == b"PASS secret-b" else said

    done = verify(users, OLD, refusing)
    assert done.returncode == 2
    assert "bert: could not be compared on the new server: the login was refused" in done.stdout
    assert "2 users, 1 identical, 1 not compared" in done.stdout


def test_json(users: Path) -> None:
    """For programs: an object for each user, then a summary."""
    done = verify(users, OLD, drop(*MESSAGES[:-1]), "--json")
    *found, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1 and {each["user"] for each in found} == {"anna", "bert"}
    assert all(each["status"] == "different" and each["messages"] == 29 for each in found)
    assert found[0]["differences"] == [
        {"kind": "not on the new server", "old_number": 30, "new_number": 0, "old": "id30", "new": ""}
    ]
    assert last["summary"] == {"users": 2, "different": 2, "messages": 58, "later": 0, "users_later": 0}


@pytest.mark.skipif(not ROOT, reason="who is not root has nothing to give up")
def test_root_gives_up_root(users: Path) -> None:
    """Started by root, what speaks to a server is nobody's process in an empty directory."""
    go_on = threading.Event()

    def waiting(line: bytes) -> bytes:
        go_on.wait(60)
        said = OLD(line)
        assert isinstance(said, bytes)
        return said

    with Script(waiting) as old, Script(OLD) as new:
        running = subprocess.Popen(command(users, old, new), cwd=TOP, stdout=subprocess.PIPE)
        wait_until(lambda: len(old.asked) >= 2, 60)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        for pid in children:
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            assert set(status["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
            assert os.listdir(f"/proc/{pid}/root/") == []
        jail = os.readlink(f"/proc/{children[0]}/root")
        go_on.set()
        running.communicate(timeout=60)
    assert len(children) == 2 and running.returncode == 0 and not os.path.exists(jail)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_a_host_name_that_can_be_none(users: Path, host: str) -> None:
    """Said in a line; it was a traceback of the codec that host names are written with."""
    words = ["verify", "--old", f"pop3s://{host}", "--new", "pop3s://127.0.0.1:1", "--users", str(users)]
    done = subprocess.run(
        [sys.executable, "-m", "gpop", "uidl", *words],
        check=False, cwd=TOP, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"gpop uidl: pop3s://{host}: {host} can't be the name of a host\n"


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "report",
    [
        {},
        {"trouble": True},
        {"trouble": True, "messages": "many", "later": 0, "counts": {}, "differences": []},
        {"trouble": True, "messages": 1, "later": 0, "counts": ["x"], "differences": []},
        {"trouble": True, "messages": 1, "later": 0, "counts": {"x": 2}, "differences": [5]},
        {"trouble": True, "messages": 1, "later": [], "counts": {"x": 2}, "differences": [{}]},
    ],
)
def test_what_a_process_says_that_was_taken_over(report: dict[str, object], as_json: bool) -> None:
    """Nonsense is its user's failure; it was a traceback, and the end of everybody else's turn."""
    counted, lines = uidl_verify._told(b"anna", report, argparse.Namespace(json=as_json, show=10))
    if as_json and counted["different"]:
        assert json.loads(lines[0])["user"] == "anna"  # passed on as it is
        return
    assert counted == {"users": 1, "failed": 1}
    assert len(lines) == 1 and "anna" in lines[0] and "its process said nonsense" in lines[0]


def test_a_process_speaks_for_its_own_user_only() -> None:
    """In JSON it could give itself another user's name, and another status."""
    report = {"user": "bert", "status": "identical", "failed": "no login"}
    _, (line,) = uidl_verify._told(b"anna", report, argparse.Namespace(json=True, show=10))
    assert (json.loads(line)["user"], json.loads(line)["status"]) == ("anna", "failed")
