"""
The n-th system call of a real process fails, for n = 1, 2, 3 ... until it makes no more of them.

Sessions, the broker, auth and fronts, each in the kernel (`tests.kernel`), with the errnos that can come. CI
tries a part, another kind of maildrop for each n; `GPOP_TEST_FAULTS=all` tries everything.
"""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest

from tests import kernel
from tests.certificates import Authority
from tests.kernel import Kernel
from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting
from tests.serving import Site, children_of, wait_until

pytestmark = pytest.mark.skipif(bool(kernel.missing()), reason=kernel.missing() or "-")

ALL = os.environ.get("GPOP_TEST_FAULTS") == "all"
DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
SCARCE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# What may be known of a size when a file can't be read: what its name says, or a guess.
READS = ("open", "read", "stat", "mmap")

SESSION = {
    "open": (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),
    "read": (errno.EIO, errno.ENOMEM),
    "stat": (errno.EIO, errno.ENOMEM),
    "list": (errno.EIO, errno.ENOMEM),
    "write": (*DISK, errno.ENOBUFS),
    "send": (errno.EIO, errno.ENOBUFS, errno.ENOMEM),
    "receive": (errno.ENOMEM, errno.EIO),
    "rename": DISK,
    "unlink": DISK,
    "link": (*DISK, errno.EMLINK),
    "sync": DISK,
    "lock": (errno.ENOLCK, errno.EIO),
    "mmap": (errno.ENOMEM,),
    "user": (errno.EPERM, errno.EAGAIN, errno.EIO),
}


class Stand:
    """A server whose calls can be made to fail, and its lasting processes as they were."""

    def __init__(self, context=None, reused=False, **settings) -> None:
        """`context`: clients come by TLS. `reused`: one process serves one login after another."""
        self.context = context
        self.site = Site(one_uid=reused, **settings)
        if reused:
            self.site.write_config(session__reuse_below=str(self.site.path / "home"))
        self.kernel = Kernel(self.site)
        self.server = self.kernel.server
        if reused:
            Drop(self.server, "unchanged")  # the process that was started for it stays
        self.lasting = Lasting(self.server)

    def settle(self) -> None:
        """Wait until auth has taken note of the end of its last checker: see `interrupted`."""
        wait_until(lambda: not any(children_of(pid) for pid in self.server.pids("auth")), 60)

    def interrupted(self) -> bool:
        """
        Whether a signal has interrupted a call before we looked at it, which only looking makes possible.

        A checker's end does so while auth looks at the status of a file.
        """
        return any("Interrupted system call" in str(event) for event in self.server.events()[-3:])

    def stop(self) -> None:
        """Stop it, and remove everything."""
        self.kernel.stop()
        self.site.remove()


@pytest.fixture(scope="module", params=[-1, 30] if ALL else [30], ids=lambda days: f"expire {days}")
def stand(request):
    """With retention, which has a record of its own in the Maildir, and without."""
    made = Stand(session__expire_retrieved_days=request.param, accounts_cache__enabled=True)
    yield made
    made.stop()


@pytest.fixture
def asking():
    """Auth asks a checker for every login."""
    made = Stand()
    yield made
    made.stop()


def sweep(stand, role, kind, error_number, states, step=1):
    """Let each n-th call fail until a try had no such call; returns the calls that failed, by name."""
    failed: Counter[str] = Counter()
    for nth in range(1, 1000, step):
        here = states if ALL else [states[nth // step % len(states)]]
        unharmed = 0
        for state in here:
            drop = Drop(stand.server, state, context=stand.context)
            stand.kernel.fail(role, kind, nth, error_number)
            attempt = Attempt(drop, wrong_sizes=1 if kind in READS else 0)
            stand.kernel.heed_nothing()
            name = kernel.named(error_number)
            what = f"{role}: {kind} {nth} {name}, cache {state}: {attempt.cut.strip() or 'served'}"
            print(what)
            if not stand.kernel.failed:
                assert attempt.removed or stand.interrupted(), f"{what}: {stand.server.events()[-3:]}"
                unharmed += bool(attempt.removed)
            failed += stand.kernel.failed
            failing.after(attempt)
        stand.lasting.check()
        if unharmed == len(here):
            return failed
    raise AssertionError("no try got by without a failure")


@pytest.mark.parametrize("kind", SESSION)
def test_sessions(stand, kind):
    """Whatever fails: a whole maildrop or none, right octets or none, and nothing gone without a QUIT."""
    for error_number in SESSION[kind] if ALL else SESSION[kind][:1]:
        sweep(stand, "session", kind, error_number, Drop.STATES, 1 if ALL else 5)


# What the kernel can answer for want of memory, descriptors or processes, or for a peer that has gone.
LASTING = {
    ("broker", "fork"): (errno.EAGAIN, errno.ENOMEM),
    ("broker", "receive"): (errno.ENOMEM, errno.ENOBUFS, errno.EINTR),
    ("broker", "option"): (errno.ENOBUFS,),
    ("broker", "mmap"): (errno.ENOMEM,),
    ("auth", "open"): (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    ("auth", "stat"): (errno.EIO, errno.ENOMEM),
    ("auth", "fork"): (errno.EAGAIN, errno.ENOMEM),
    ("auth", "socket"): SCARCE,
    ("auth", "receive"): (errno.ENOMEM, errno.ENOBUFS),
    ("auth", "send"): (errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN),
    ("auth", "mmap"): (errno.ENOMEM,),
    ("checker", "write"): (errno.EIO, errno.EPIPE),
    ("checker", "mmap"): (errno.ENOMEM,),
    ("front", "accept"): (*SCARCE, errno.ENOBUFS, errno.ECONNABORTED, errno.EPERM),
    ("front", "socket"): SCARCE,
    ("front", "receive"): (errno.ENOMEM, errno.ENOBUFS, errno.ECONNRESET),
    ("front", "send"): (errno.ENOBUFS, errno.ENOMEM, errno.ECONNRESET, errno.EPIPE),
    ("front", "write"): (errno.EIO, errno.ENOSPC),
    ("front", "mmap"): (errno.ENOMEM,),
}


def test_lasting_processes(asking):
    """One login may fail with the call; the process stays, or is replaced, and keeps nothing of it open."""
    for (role, kind), numbers in LASTING.items() if ALL else list(LASTING.items())[::2]:
        for error_number in numbers if ALL else numbers[:1]:
            sweep(asking, role, kind, error_number, ("unchanged",))


# Inside TLS front and session are between client and maildrop for all of a session.
INSIDE_TLS = {
    ("front", "receive"): (errno.ENOMEM, errno.ENOBUFS, errno.ECONNRESET),
    ("front", "send"): (errno.ENOBUFS, errno.ENOMEM, errno.ECONNRESET, errno.EPIPE),
    ("front", "read"): (errno.EIO, errno.ENOMEM),
    ("front", "write"): (errno.EIO, errno.EPIPE),
    ("front", "socket"): SCARCE,
    ("front", "option"): (errno.ENOBUFS,),
    ("front", "mmap"): (errno.ENOMEM,),
    ("session", "write"): (errno.EIO, errno.ENOBUFS),
    ("session", "send"): (errno.EIO, errno.ENOMEM),
    ("session", "receive"): (errno.ENOMEM, errno.EIO),
}


@pytest.fixture
def inside_tls(tmp_path):
    """Clients come by TLS."""
    authority = Authority(tmp_path / "authority")
    pair = list(authority.issue("localhost"))
    settings = {"server__listen_tls": ["127.0.0.1:0"], "tls__certificates": [pair]}
    made = Stand(authority.client_context(), accounts_cache__enabled=True, **settings)
    yield made
    made.stop()


def test_inside_tls(inside_tls):
    """A session goes through the front: the right octets, or the connection ends, whichever call fails."""
    for (role, kind), numbers in INSIDE_TLS.items() if ALL else list(INSIDE_TLS.items())[:2]:
        for error_number in numbers if ALL else numbers[:1]:
            sweep(inside_tls, role, kind, error_number, ("unchanged",), 1 if ALL else 7)


def test_a_command_that_can_not_be_passed_on_ends_the_session(inside_tls):
    """It was left out, and the session waited for it; what came next could have joined what was before."""
    for nth in range(20, 26):  # answers to the client, and commands for the session
        drop = Drop(inside_tls.server, "unchanged", context=inside_tls.context)
        inside_tls.kernel.fail("front", "send", nth, errno.ENOBUFS)
        attempt = Attempt(drop)
        inside_tls.kernel.heed_nothing()
        assert inside_tls.kernel.failed["sendto"] == 1
        assert attempt.cut
        failing.after(attempt)
    inside_tls.lasting.check()


@pytest.fixture
def reused():
    """One process serves one login after another."""
    made = Stand(reused=True, accounts_cache__enabled=True)
    yield made
    made.stop()


def test_processes_that_are_reused(reused):
    """What fails in a session that was not its process's first harms neither it nor the next one."""
    for kind in SESSION if ALL else ("open", "send"):
        for error_number in SESSION[kind] if ALL else SESSION[kind][:1]:
            sweep(reused, "session", kind, error_number, Drop.STATES, 1 if ALL else 13)


def broken(stand, role, kind, error_number):
    """The same call fails for ever; returns how the client was cut off."""
    drop = Drop(stand.server, "unchanged")
    stand.settle()
    stand.kernel.fail(role, kind, 1, error_number, times=10**6)
    attempt = Attempt(drop)
    stand.kernel.heed_nothing()
    assert stand.kernel.failed
    failing.after(attempt)
    stand.lasting.check()
    return attempt.cut


def test_a_frame_that_the_kernel_has_no_memory_for_is_read_a_little_later(stand):
    """The broker ended for ENOMEM, and auth listened to that front no more; now both ask again."""
    before = len(stand.server.faults())
    for role in ("broker", "auth"):
        drop = Drop(stand.server, "unchanged")
        stand.settle()
        stand.kernel.fail(role, "receive", 1, errno.ENOMEM, times=3)
        attempt = Attempt(drop)
        stand.kernel.heed_nothing()
        assert stand.kernel.failed["recvmsg"] == 3
        assert attempt.removed
        failing.after(attempt)
    stand.lasting.check()
    assert len(stand.server.faults()) == before


def test_a_channel_that_cannot_be_read_costs_a_process_and_not_the_server(stand):
    """What stays unreadable is ended and replaced; no front stays that auth does not hear."""
    before = len(stand.server.events("process_ended"))
    assert broken(stand, "broker", "receive", errno.ENOMEM)
    assert broken(stand, "auth", "receive", errno.EIO)
    assert len(stand.server.events("process_ended")) >= before + 2


def test_a_stream_that_cannot_be_asked_is_closed(stand):
    """The broker ended when the kernel would not say how a client's stream is to be closed."""
    before = len(stand.server.faults())
    assert broken(stand, "broker", "option", errno.ENOBUFS) == ""
    assert len(stand.server.faults()) == before


@pytest.mark.parametrize(
    ("kind", "error_number", "answer"),
    [
        ("read", errno.EIO, b"-ERR [SYS/PERM]"),
        ("read", errno.ESTALE, b"-ERR [SYS/TEMP]"),
        ("open", errno.EMFILE, b"-ERR [SYS/TEMP]"),
        ("open", errno.EUCLEAN, b"-ERR [SYS/PERM]"),
    ],
)
@pytest.mark.parametrize("command", ["RETR {}", "TOP {} 0"])
def test_a_message_that_can_not_be_read_is_an_answer(stand, command, kind, error_number, answer):
    """The disk or the moment fails one message: -ERR, with the code that is true, and the session goes on."""
    drop = Drop(stand.server, "unchanged")
    command = command.format([len(octets) < 1000 for _, octets in drop.truth].index(True) + 1)
    with stand.server.login(drop.name) as dialogue:

        def is_answered():
            assert dialogue.ask(command).startswith(b"+OK")
            while dialogue.file.readline() != b".\r\n":
                pass
            return True

        # From here on folders and imported ids are at hand: the next file that is opened is the message's.
        assert is_answered()
        stand.kernel.fail("session", kind, 1, error_number)
        assert dialogue.ask(command).startswith(answer)
        assert stand.kernel.failed
        stand.kernel.heed_nothing()
        assert is_answered()
        assert dialogue.ask("QUIT").startswith(b"+OK")
