"""
A session and a front in the hands of an attacker: what they try from inside, and what comes of it.

They are real ones, of `taken_over_gpop`. Nothing here says that anything has to be possible for them: being
killed for an attempt is as good as being refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root import taken_over_gpop
from tests.serving import ROOT, Dialogue, Server, Site, wait_until

pytestmark = pytest.mark.skipif(not ROOT, reason="needs root: there is nobody to be taken over without")

PROGRAM = Path(taken_over_gpop.__file__)
SECRET = b"in the mail of user2 alone"
DEADLINE_S = 60


@contextlib.contextmanager
def captured_gpop(jail: str) -> Iterator[Server]:
    """gpop with an attacker inside, who owns user1; user2 has mail."""
    site = Site(accounts=3, session__jail=jail)
    (site.path / "roots-own").write_bytes(SECRET)
    (site.path / "roots-own").chmod(0o600)
    site.deliver(SECRET, "user2", base="1700000000.secret")
    site.deliver(b"Subject: own\n\n", "user1", base="1700000001.own")
    try:
        with Server(site, program=PROGRAM) as running:
            yield running
    finally:
        site.remove()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The same without a jail: a session is held by its uid, and whatever else confines it."""
    with captured_gpop("none") as running:
        yield running


class Victims:
    """Who may not be harmed: the broker, auth, the front, and a session of user2's."""

    def __init__(self, server: Server, without: str = "") -> None:
        self.server = server
        before = set(server.pids("session"))
        self.session = server.login("user2")
        (self.session_pid,) = set(server.pids("session")) - before
        kinds = [kind for kind in ("front", "auth") if kind != without]
        self.pids = [
            server.process.pid,
            self.session_pid,
            *(pid for kind in kinds for pid in server.pids(kind)),
        ]

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def are_well(self) -> bool:
        """None of them has ended or stands still, and nobody traces them."""
        for pid in self.pids:
            status = Path(f"/proc/{pid}/status").read_text()
            assert re.search(r"^State:\s+[RSD]", status, re.MULTILINE), status
            assert re.search(r"^TracerPid:\s+0$", status, re.MULTILINE), status
        self.session.send(b"read /nothing\n")  # it answers still
        return b" worked" in self.session.line()


def attack_from_session(server: Server, line: str) -> bytes:
    """Have a session of user1's try something; returns what it says of that, b"" if that was its end."""
    with server.login("user1") as dialogue:
        dialogue.send(line.encode() + b"\n")
        try:
            return dialogue.line()
        except ConnectionError:
            return b""


def attack_from_front(server: Server, line: str) -> bytes:
    """Have the front try something."""
    source = (taken_over_gpop.ATTACKER, 0)
    with Dialogue(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S, source)) as dialogue:
        dialogue.send(line.encode() + b"\n")
        try:
            return dialogue.line()
        except ConnectionError:
            return b""


def assert_refused(what: str, said: bytes) -> None:
    """It tried something, and all was refused; or it did not survive trying."""
    print(f"{what}: {said.decode()}")
    assert said == b"" or re.match(rb"[1-9]\d* tried, 0 worked", said), (what, said)


ATTACKS_FROM_BOTH = {
    "read /etc/shadow": "read /etc/shadow {pids}",
    "read the passwd-file": "read {site}/passwd {pids}",
    "read another's mail": "read {mail}/new/1700000000.secret {pids}",
    "list another's mail": "read {mail}/new {pids}",
    "list another's Maildir": "read {mail} {pids}",
    "change another's mail": "write {mail}/new/1700000000.secret {pids}",
    "change root's file": "write {site}/roots-own {pids}",
    "read root's file": "read {site}/roots-own {pids}",
    "become root": "become 0",
    "become another user": "become 61002",
    "raise limits": "limits",
    "make others wait": "linger",
    "signal others": "kill {pids}",
    "trace others": "trace {pids}",
    "ask the control socket": "connect {site}/run/control",
}
ATTACKS_FROM_SESSIONS = ATTACKS_FROM_BOTH | {"be many": "multiply", "hold descriptors": "hoard"}


def filled_in(line: str, server: Server, victims: Victims) -> str:
    site = server.site
    return line.format(pids=" ".join(map(str, victims.pids)), site=site.path, mail=site.maildir("user2"))


def assert_all_as_before(server: Server, victims: Victims) -> None:
    """Nobody is harmed, nothing changed, everybody served."""
    assert victims.are_well()
    # Not /etc/shadow: others may change that while this runs.
    assert (server.site.path / "roots-own").read_bytes() == SECRET
    assert not [path for path in server.site.path.iterdir() if path.name.startswith("roots-own.")]
    assert (server.site.maildir("user2") / "new" / "1700000000.secret").read_bytes() == SECRET
    server.login("user0").close()


def attack_from_sessions(server: Server) -> None:
    with Victims(server) as victims:
        for what, line in ATTACKS_FROM_SESSIONS.items():
            assert_refused(what, attack_from_session(server, filled_in(line, server, victims)))
            wait_until(lambda: len(server.pids("session")) == 1, timeout_s=DEADLINE_S)
        assert_all_as_before(server, victims)
    wait_until(lambda: not server.pids("session"), timeout_s=DEADLINE_S)


def test_the_attacks_would_work():
    """Made by root, whom nothing confines, they do: so that they are refused elsewhere says something."""
    victim = os.fork()
    if victim == 0:
        try:
            signal.pause()
        finally:
            os._exit(0)
    reading, writing = os.pipe()
    attacker = os.fork()
    if attacker == 0:
        try:
            sockets = socket.socketpair()
            attacks = ("read /etc/shadow", "limits", "linger")
            for line in (*attacks, f"trace {victim}", f"kill {victim}", "become 61002"):
                os.write(writing, taken_over_gpop.attacked(line).encode() + b"\n")
            sockets[0].close()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().splitlines()
    os.waitpid(attacker, 0)
    os.waitpid(victim, 0)
    assert len(said) == 6
    for each in said:
        assert re.match(rb"[1-9]\d* tried, [1-9]\d* worked", each), each


def test_what_a_taken_over_session_tries(server):
    """Files, others' mail, ids, limits, signals, memory, processes: refused, each way there is."""
    attack_from_sessions(server)


def test_what_a_taken_over_session_tries_in_its_jail():
    """The same in a jail, which it tries to climb out of by each directory that it has."""
    with captured_gpop("maildir") as server:
        attack_from_sessions(server)


def test_what_a_taken_over_front_tries(server):
    """The same from a front, which owns nothing and sees an empty directory."""
    with Victims(server, without="front") as victims:
        for what, line in ATTACKS_FROM_BOTH.items():
            if line == "limits":
                continue  # its limit of descriptors is the system's own
            wait_until(lambda: server.pids("front"), timeout_s=DEADLINE_S)
            assert_refused(what, attack_from_front(server, filled_in(line, server, victims)))
        assert_all_as_before(server, victims)
    wait_until(lambda: not server.pids("session"), timeout_s=DEADLINE_S)


def refused_login_is_logged(server: Server) -> bool:
    with server.connect() as dialogue:
        dialogue.ask("USER honest")
        assert dialogue.ask("PASS wrong").startswith(b"-ERR")
    return b'"user": "honest"' in server.log_path.read_bytes()


def test_what_a_taken_over_front_does_to_the_log():
    """
    It can write lines of a front into its pipe, at most so many, and they are marked as its own.

    Whatever else it writes is its end: in another's name, by halves, without end. The file is out of reach.
    """
    with captured_gpop("none") as server:
        for count, what in enumerate(("auth", "broker", "half", "noise"), 1):
            wait_until(lambda: server.pids("front"), timeout_s=DEADLINE_S)
            server.login("user0").close()
            (front,) = server.pids("front")
            before = server.log_path.read_text()
            assert_refused(what, attack_from_front(server, f"forge {what}"))
            rejected = server.wait_for_event("log_line_rejected", count, timeout_s=DEADLINE_S)
            assert (rejected["process"], rejected["sender"], rejected["pid"]) == ("log", "front", front)
            wait_until(lambda front=front: server.pids("front") not in ([], [front]), timeout_s=DEADLINE_S)
            assert server.log_path.read_text().startswith(before)
        assert "forged" not in server.log_path.read_text()
        server.login("user0").close()
        (front,) = server.pids("front")
        before = server.log_path.read_text()
        assert_refused("cut", attack_from_front(server, "forge cut"))
        assert server.log_path.read_text().startswith(before)
        assert_refused("flood", attack_from_front(server, "forge flood"))
        wait_until(lambda: refused_login_is_logged(server), timeout_s=DEADLINE_S)
        forged = [event for event in server.events("login_refused") if event["user"] == "forged"]
        assert forged and {event["pid"] for event in forged} == {front}
        assert not [event for event in forged if event["ts"] < "2001"]


def test_a_taken_over_session_floods_its_front(server):
    """Noise, and 200 descriptors a frame, into its channel: the front ends that, and keeps nothing."""
    server.login("user0").close()
    wait_until(lambda: not server.pids("session"), timeout_s=DEADLINE_S)
    (front,) = server.pids("front")
    before = len(os.listdir(f"/proc/{front}/fd"))
    for _ in range(3):
        assert_refused("flood", attack_from_session(server, "flood"))
    wait_until(lambda: not server.pids("session"), timeout_s=DEADLINE_S)
    wait_until(lambda: len(os.listdir(f"/proc/{front}/fd")) <= before, timeout_s=DEADLINE_S)
    assert server.pids("front") == [front]
    assert server.wait_for_event("frame_rejected", timeout_s=DEADLINE_S)["sender"] == "session"
    server.login("user0").close()


def test_a_taken_over_session_that_never_ends():
    """
    It blocks every signal, closes everything and stays: it counts as its account's, and costs nobody else.

    A stop of gpop ends it all the same.
    """
    site = Site(accounts=2, session__max_per_account=2)
    try:
        with Server(site, program=PROGRAM) as server:
            for _ in range(2):
                dialogue = server.login("user1")
                dialogue.send(b"stay\n")
                # Its channel is closed, too, so the front has let go of the client.
                assert dialogue.rest() == b""
                dialogue.close()
                fds = Path(f"/proc/{server.pids('session')[-1]}/fd")
                wait_until(lambda fds=fds: len(os.listdir(fds)) <= 3, timeout_s=DEADLINE_S)
            staying = server.pids("session")
            assert len(staying) == 2
            with server.connect() as refused:
                refused.ask("USER user1")
                assert refused.ask("PASS open sesame").startswith(b"-ERR [IN-USE]")
            server.login("user0").close()
            server.stop()
            assert not [pid for pid in staying if Path(f"/proc/{pid}").exists()]
    finally:
        site.remove()
