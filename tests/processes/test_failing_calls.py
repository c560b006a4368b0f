"""
The n-th system call of a real process fails, for n = 1, 2, 3 ... until it makes no more of them.

Sessions, the broker, auth and fronts, each call in the kernel (`tests.kernel`), with every errno that it is likely to give.
CI tries a part, another kind of maildrop for each n; `GPOP_TEST_FAULTS=all` tries everything.
"""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest

from tests import kernel
from tests.kernel import Kernel
from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting

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


@pytest.fixture(scope="module", params=[-1, 30] if ALL else [30], ids=lambda days: f"expire {days}")
def stand(request):
    """A server whose calls can be made to fail; with retention, which has a record of its own."""
    from tests.serving import Site

    site = Site(session__expire_retrieved_days=request.param, accounts_cache__enabled=True)
    made = Kernel(site)
    made.lasting = Lasting(made.server)
    yield made
    made.stop()
    site.remove()


def sweep(stand, role, kind, error_number, states, step=1):
    """Let each n-th call fail until a try had no such call; returns the calls that failed, by name."""
    failed: Counter[str] = Counter()
    tries = 0
    for nth in range(1, 1000, step):
        here = states if ALL else [states[nth // step % len(states)]]
        missed = 0
        for state in here:
            drop = Drop(stand.server, state)
            stand.fail(role, kind, nth, error_number)
            attempt = Attempt(drop, wrong_sizes=1 if kind in READS else 0)
            stand.heed_nothing()
            what = f"{role}: {kind} {nth} {kernel.named(error_number)}, cache {state}, {attempt.cut or 'served'}"
            print(what)
            if not stand.failed:
                assert attempt.removed and not attempt.cut, f"{what}: {stand.server.events()[-3:]}"
                missed += 1
            failed += stand.failed
            failing.after(attempt)
            tries += 1
        stand.lasting.check()
        if missed == len(here):
            print(f"{tries} tries")
            return failed
    raise AssertionError("no try got by without a failure")


@pytest.mark.parametrize("kind", SESSION)
def test_sessions(stand, kind):
    """Whatever fails: a whole maildrop or none, right octets or none, and nothing gone without a QUIT."""
    for error_number in SESSION[kind] if ALL else SESSION[kind][:1]:
        sweep(stand, "session", kind, error_number, Drop.STATES, 1 if ALL else 3)
