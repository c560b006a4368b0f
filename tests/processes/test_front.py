"""What a front keeps of its peers: watchers, descriptors, greenlets; and how it writes its log."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gpop.front.front import MAX_IDLE_GREENLETS, _json_text
from gpop.json_text import json_text
from tests.serving import PASSWORD, ROOT, wait_until

needs_root = pytest.mark.skipif(not ROOT, reason="without root nobody may look into a front's descriptors")


def watched(pid: int) -> set[int]:
    """The descriptors in the epoll sets of a process, by the numbers that they were entered under."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a front that has just started closes what it only tried
            if os.readlink(link) == "anon_inode:[eventpoll]":
                lines = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().splitlines()
                found |= {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
    return found


@needs_root
def test_a_stream_that_a_session_has_wakes_no_front(server):
    """It is in no epoll set of the front's: what its peer says concerns the session alone."""
    (front,) = server.pids("front")

    def all_are_open():
        return watched(front) <= {int(name) for name in os.listdir(f"/proc/{front}/fd")}

    idle = len(watched(front))
    with server.connect() as peer:
        # Slow enough for the front to wait for each command.
        wait_until(lambda: len(watched(front)) > idle)
        assert peer.ask("USER user0").startswith(b"+OK")
        assert peer.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        wait_until(all_are_open)


def test_a_connection_goes_on_when_auth_is_gone(server):
    """Its login is refused at once, without a turn of the loop, and its next commands are heard."""
    (auth,) = server.pids("auth")
    broker = server.process.pid
    with server.connect() as peer:
        assert peer.ask("USER user0").startswith(b"+OK")
        os.kill(broker, signal.SIGSTOP)  # so that there is no other auth meanwhile
        try:
            os.kill(auth, signal.SIGKILL)
            wait_until(lambda: ") Z " in Path(f"/proc/{auth}/stat").read_text())
            for _ in range(2):
                assert peer.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
                assert peer.ask("USER user0").startswith(b"+OK")
        finally:
            os.kill(broker, signal.SIGCONT)


def test_who_comes_later_is_served_like_those_before(server):
    """More peers at once than greenlets are kept, twice."""
    for _ in range(2):
        with ExitStack() as peers:
            for number in range(2 * MAX_IDLE_GREENLETS):
                peer = peers.enter_context(server.connect())
                assert peer.ask(f"USER user{number}").startswith(b"+OK")
    with server.login() as last:
        assert last.ask("STAT").startswith(b"+OK")


@pytest.mark.parametrize("text", ["plain", 'a "quote" and a \\', "\x00\t\x1b\x7f\x85", "é€😀", "\ud800"])
def test_a_front_writes_json_as_the_others_do(text):
    """The same values, and no raw control character either."""
    fields = {"event": text, "some": [1, 2.5, None, True]}
    assert json.loads(_json_text(fields)) == json.loads(json_text(fields)) == fields
    assert _json_text(fields).isascii()
    assert _json_text(fields).isprintable()


def test_logins_wait_for_an_auth_that_is_slow(server):
    """More than its socket holds are sent at once; each is answered in the end, and none is a fault."""
    (auth,) = server.pids("auth")
    with ExitStack() as stack:
        peers = [stack.enter_context(server.connect()) for _ in range(350)]
        os.kill(auth, signal.SIGSTOP)
        try:
            for peer in peers:
                peer.send(f"USER user0\r\nPASS {PASSWORD}, but wrong\r\n".encode())
            for peer in peers:
                assert peer.line().startswith(b"+OK")  # the front has read the line, and has PASS as well
        finally:
            os.kill(auth, signal.SIGCONT)
        for peer in peers:
            assert peer.line().startswith(b"-ERR"), server.faults()
    assert not server.faults()
