"""
The n-th system call fails while gpop reloads its config or is upgraded, for n = 1, 2, 3 ...

Of the broker, of who reads the config and of who tries the next broker, and of the processes that are started
to serve from then on. CI tries a part; `GPOP_TEST_FAULTS=all` tries more.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import time

import pytest

from tests import kernel
from tests.kernel import Kernel
from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting
from tests.serving import Site

pytestmark = pytest.mark.skipif(bool(kernel.missing()), reason=kernel.missing() or "-")

ALL = os.environ.get("GPOP_TEST_FAULTS") == "all"
SCARCE = (errno.ENOMEM, errno.EMFILE)
BROKER = {
    "open": (errno.EIO, *SCARCE),
    "write": (errno.ENOSPC,),
    "stat": (errno.EIO,),
    "fork": (errno.EAGAIN,),
    "socket": SCARCE,
    "send": (errno.ENOBUFS, errno.EPIPE),
    "receive": (errno.ENOMEM,),
    "mmap": (errno.ENOMEM,),
}
# What is started anew makes hundreds of calls before it is ready: every so many are tried.
STARTED = {
    "open": (errno.EIO, *SCARCE),
    "read": (errno.EIO,),
    "stat": (errno.EIO,),
    "mmap": (errno.ENOMEM,),
    "socket": SCARCE,
    "send": (errno.ENOBUFS,),
    "receive": (errno.ENOMEM,),
    "user": (errno.EPERM,),
}
ROLES = {"broker": BROKER} | dict.fromkeys(("front", "auth", "log", "inquiry"), STARTED)
STEPS = {"open": 40, "read": 60, "stat": 80, "mmap": 25}
# The trial of a broker rehearses 48 sessions, which make the same few calls again and again: every seventh is
# tried, which is another one of them each time.
REHEARSED = {"socket": 7, "send": 7, "receive": 7, "user": 7}
# How a reload or an upgrade may end. After the last two the processes of before serve on.
SERVES, KEPT = "reload_finished", ("reload_failed", "upgrade_failed", "config_rejected")


@pytest.fixture(scope="module")
def renewing():
    """A server whose calls can be made to fail."""
    # Who could not be told something is told when it is asked next.
    site = Site(accounts=2, accounts_cache__enabled=True, server__answer_timeout_s=10.0)
    between = Kernel(site)
    yield between
    between.stop()
    site.remove()


def renew(server, number: int, loses_lines: bool = False) -> dict:
    """Send the signal, and wait for what came of it; returns that event."""
    endings = (SERVES, *KEPT)
    before = len(server.events(*endings))
    # If the line that says so was the one that could not be written: once more, then.
    again_at = time.monotonic() + 5 if loses_lines else math.inf
    server.process.send_signal(number)

    def has_ended() -> bool:
        nonlocal again_at
        if time.monotonic() > again_at:
            again_at = math.inf
            server.process.send_signal(number)
        return server.process.poll() is not None or len(server.events(*endings)) > before

    failing.wait_until(has_ended, failing.PATIENCE_S, lambda: f"an ending; {server.events()[-5:]}")
    assert server.process.poll() is None, server.output_path.read_text()[-4000:]
    return server.events(*endings)[-1]


def attempt(between, lasting, number, role, kind, nth, error_number) -> bool:
    """One renewal with a session from before, and a call that fails; returns if there was such a call."""
    server = between.server
    old = Drop(server, "unchanged", name="user1")
    client = failing.next_login(old)
    between.fail(role, kind, nth, error_number)
    event = renew(server, number, loses_lines=kind == "write")
    ending = " ".join([event["event"], event.get("problem", "")]).strip()
    reached = bool(between.failed)
    between.heed_nothing()
    what = f"{signal.Signals(number).name}, {role}: {kind} {nth} {kernel.named(error_number)}: {ending}"
    print(what)
    if not reached:
        assert ending == SERVES, what
    client.look(old.truth)
    for index, (_, octets) in enumerate(old.truth):
        client.retrieve(index, octets)
    assert client.quit().startswith(b"+OK"), what
    drop = Drop(server, "unchanged")
    failing.after(Attempt(drop))
    lasting.check()
    return reached


def sweep(between, number, role, kind, error_number) -> int:
    """Let each n-th call fail until there is none; returns how many renewals that were."""
    lasting = Lasting(between.server)
    steps = {"broker": {}, "inquiry": STEPS | REHEARSED}.get(role, STEPS)
    step = steps.get(kind, 1)
    nth = 1
    while attempt(between, lasting, number, role, kind, nth, error_number):
        nth += step
        assert nth < 4000
    return nth // step


@pytest.mark.skipif(not ALL, reason="takes an hour; GPOP_TEST_FAULTS=all")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=["reload", "upgrade"])
def test_a_renewal(renewing, number, role):
    """The server serves, renewed or as before; a session from before goes on; the next renewal succeeds."""
    for kind, numbers in ROLES[role].items():
        for error_number in numbers:
            sweep(renewing, number, role, kind, error_number)
    assert renew(renewing.server, number)["event"] == SERVES


def test_a_front_that_can_not_be_told_the_way_to_auth_is_started_again(renewing):
    """It waited for that for ever, and nobody could log in; or auth did not know of it."""
    lasting = Lasting(renewing.server)
    for nth in (2, 3):
        assert attempt(renewing, lasting, signal.SIGHUP, "broker", "send", nth, errno.ENOBUFS)


def test_processes_that_can_not_be_told_to_drain_are_told_again(renewing):
    """The old ones served on beside the new ones, by the config of before."""
    lasting = Lasting(renewing.server)
    for nth in (4, 5, 6):
        assert attempt(renewing, lasting, signal.SIGHUP, "broker", "send", nth, errno.ENOBUFS)


def test_processes_that_can_not_be_started_leave_nothing_open(renewing):
    """Their settings and the pipe for their log stayed open in the broker, each time."""
    lasting = Lasting(renewing.server)
    for nth in (3, 5):
        assert attempt(renewing, lasting, signal.SIGHUP, "broker", "write", nth, errno.ENOSPC)


def test_an_upgrade_that_fails_half_way(renewing):
    """One process of the new version can't be started, the trial of its broker neither."""
    lasting = Lasting(renewing.server)
    for nth in (3, 5):
        assert attempt(renewing, lasting, signal.SIGUSR2, "broker", "fork", nth, errno.EAGAIN)
