"""Fronts and auth that are there and do not work: noticed, replaced; and what the service manager is told."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import pytest

from gpop.broker.liveness import START_TIMEOUT_S, Liveness
from gpop.broker.supervision import Process
from gpop.privsep import channel
from tests.serving import wait_until

# Short, but long enough for a process of a busy machine.
TIMEOUT_S = 1.5


@pytest.mark.parametrize("kind", ["front", "auth"])
def test_a_process_that_hangs_is_replaced(make_server, kind):
    """Stopped, it does not end by itself; it is killed and another one serves."""
    server = make_server(server__answer_timeout_s=TIMEOUT_S)
    (hanging,) = server.pids(kind)
    os.kill(hanging, signal.SIGSTOP)
    stuck = server.wait_for_event("process_stuck")
    assert (stuck["stuck"], stuck["pid"]) == (kind, hanging)
    assert server.wait_for_event("process_ended")["signal"] == "SIGKILL"
    wait_until(lambda: server.pids(kind) not in ([], [hanging]))
    started = {"front": "front_started", "auth": "auth_started"}[kind]
    server.wait_for_event(started, 2)
    server.pop().quit()
    assert len(server.events("process_stuck", "process_ended")) == 2


def test_a_draining_front_that_hangs_is_ended(make_server):
    """It would stay for ever, and what was left of its generation with it."""
    server = make_server(server__answer_timeout_s=TIMEOUT_S)
    (old,) = server.pids("front")
    with server.connect():
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_event("front_draining")
        os.kill(old, signal.SIGSTOP)
        assert server.wait_for_event("process_stuck")["pid"] == old
        wait_until(lambda: len(server.children()) == 3)


class FakeProcess:
    """What `Liveness` knows of a process, without one."""

    def __init__(self, ready: bool = True) -> None:
        self.ready, self.started, self.asked, self.missed, self.questions = ready, 0.0, False, 0, 0

    def ask(self) -> None:
        self.asked, self.questions = True, self.questions + 1


def test_looks_are_counted_and_not_seconds():
    """Three times missed is stuck; the hour in which the whole machine slept is one look."""
    liveness, process = Liveness(), FakeProcess()
    liveness.adopt(30.0, 0.0)
    assert [liveness.is_due(now) for now in (9.9, 10.0)] == [False, True]
    found = [liveness.look([process], now) for now in (10.0, 3600.0, 3610.0, 3620.0)]
    assert found == [[]] * 4 and process.questions == 1
    assert liveness.look([process], 3630.0) == [process]
    process.asked, process.missed = False, 0
    assert liveness.look([process], 3640.0) == [] and process.questions == 2


def test_an_impatient_service_manager_is_told_more_often():
    """Three looks within its patience; how long a process may take for an answer stays the same."""
    liveness, process = Liveness(), FakeProcess()
    liveness.adopt(30.0, 6.0)
    assert liveness.look_s == 2.0
    found = [liveness.look([process], 2.0 * number) for number in range(1, 18)]
    assert found[:16] == [[]] * 16 and found[16] == [process]


def test_who_is_asked_twice_may_answer_twice():
    """At a look, and again because it is to serve from now on: the second answer was taken for an attack."""
    ours, theirs = channel.pair()
    with closing(ours), closing(theirs):
        process = Process("front", os.getpid(), ours, None, 0.0)
        process.ask()
        process.ask()
        process.answered()
        assert process.asked
        process.answered()
        assert not process.asked


def test_who_can_not_be_asked_has_missed_it():
    """It is stuck, or the kernel has no memory at that moment: one such moment is no reason to end it."""
    ours, theirs = channel.pair()
    theirs.close()
    with closing(ours):
        process = Process("front", os.getpid(), ours, None, 0.0)
        process.ask()
        assert (process.asked, process.missed) == (0, 1)


def test_a_process_that_is_started_again_and_never_ready_is_stuck():
    """Nothing else waits for it, as for a start or a reload."""
    liveness, process = Liveness(), FakeProcess(ready=False)
    assert liveness.look([process], START_TIMEOUT_S) == []
    assert liveness.look([process], START_TIMEOUT_S + 1) == [process]
    assert process.questions == 0


def test_who_answers_is_left_alone(make_server):
    """A broker that sleeps for longer than an answer may take finds everybody late, and nobody stuck."""
    server = make_server(server__answer_timeout_s=TIMEOUT_S)
    processes = server.children()
    os.kill(server.process.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() - stopped < 1.5 * TIMEOUT_S:
        with server.connect() as dialogue:
            dialogue.ask("USER nobody")
            dialogue.send(b"PASS wrong\r\n")
            assert dialogue.line().startswith(b"-ERR")
    os.kill(server.process.pid, signal.SIGCONT)
    for _ in range(5):
        server.pop().quit()
    wait_until(lambda: not server.pids("session"))
    assert server.children() == processes
    assert server.faults() == []
