"""Checkers: real forks, which answer, die, hang, and hold nobody else's descriptors."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.account import AUTH, SYS_TEMP, Accepted, Account, Refused, Verdict
from gpop.accounts.sources import Request
from gpop.auth import checker
from gpop.auth.attempt import Attempt
from gpop.auth.checks import Checks
from gpop.events import Log
from tests.accounts.auth_process import until

ACCOUNT = Account(b"j\xf6e", 1000, 100, (100, 5000), b"/home/j\xff\n", b"/m\xc3\xa9")
REQUEST = Request(b"joe", b"hunter2", "192.0.2.1")


class Source:
    """A source that does what the test says."""

    kind = "test"

    def __init__(self, decide: Callable[[Request], Verdict | None]) -> None:
        self._decide = decide

    def warm(self) -> None:
        """Nothing to do."""

    def watched_files(self) -> list[str]:
        return []

    def decide(self, request: Request) -> Verdict | None:
        return self._decide(request)


def check(decide: Callable[[Request], Verdict | None], keep: tuple[int, ...] = ()) -> Verdict:
    """Run a checker to its verdict, as auth does."""
    running = checker.start([Source(decide)], REQUEST, None, keep, deadline_s=0.0)
    try:
        while True:
            assert select.select([running.fd], [], [], 20)[0], "no verdict within 20 s"
            verdict = running.read()
            if verdict is not None:
                return verdict
    finally:
        running.close()
        os.kill(running.pid, signal.SIGKILL)
        os.waitpid(running.pid, 0)


def test_a_verdict_comes_back_as_it_was() -> None:
    """Octets of names and paths included."""
    assert check(lambda _: Accepted(ACCOUNT, "test")) == Accepted(ACCOUNT, "test", 0)
    refused = Refused(AUTH, "wrong_password", "test", "detail")
    assert check(lambda _: refused) == refused


def test_the_largest_account_comes_back() -> None:
    """More than a pipe holds at once."""
    large = Account(b"j" * 255, 2**32 - 2, 2**32 - 2, tuple(range(2**32 - 1025, 2**32 - 1)),
                    b"/" + b"\xff" * 4094, b"/" + b"\xfe" * 4094)  # fmt: skip
    assert check(lambda _: Accepted(large, "test")) == Accepted(large, "test", 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_a_checker_that_dies_is_a_fault(number: int) -> None:
    """A PAM module that crashes costs one login."""
    verdict = check(lambda _: os.kill(os.getpid(), number))
    assert verdict == checker.DIED and verdict.code == SYS_TEMP


def test_a_signal_without_a_name_ends_a_checker_and_not_auth(tmp_path) -> None:
    """Few real-time signals have one; auth looked for it, and ended."""
    number = signal.SIGRTMIN + 5
    path = tmp_path / "log"
    path.touch()
    log = Log(os.open(path, os.O_WRONLY), "auth")
    verdicts, ended = [], []
    checks = Checks(
        [Source(lambda _: os.kill(os.getpid(), number))],
        None,
        (),
        60.0,
        log,
        lambda _fd: None,
        lambda _fd: None,
        checked=lambda _attempt, verdict, _now: verdicts.append(verdict),
        ended=ended.append,
    )
    attempt = Attempt(b"joe", b"hunter2", "192.0.2.1", 0.0, None, None)
    checks.start(attempt, 0.0)
    until(lambda: (checks.reap(0.0), ended == [attempt])[1], "the end of the checker")
    assert verdicts == [checker.DIED]
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["event"], line["detail"]) == ("auth_fault", f"ended by SIG{number}")
    os.close(log.fd)


def test_a_module_that_exits_is_a_fault() -> None:
    """As if it had died."""
    assert check(lambda _: os._exit(0)) == checker.DIED


def test_an_exception_is_a_fault_with_its_place_and_without_its_text() -> None:
    """The text may hold the password, and so may the frames."""

    def fails(request: Request) -> Verdict | None:
        raise RuntimeError(request.password)

    verdict = check(fails)
    assert isinstance(verdict, Refused)
    assert (verdict.code, verdict.reason) == (SYS_TEMP, "checker_fault")
    assert verdict.detail.startswith("RuntimeError at test_checker.py:")
    assert "hunter2" not in repr(verdict)


def test_a_checker_holds_no_descriptor_of_others() -> None:
    """Standard ones, its pipe, and what libraries hold: no client's stream, no channel, no front."""
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    kept = os.open("/dev/zero", os.O_RDONLY)
    try:

        def descriptors(_: Request) -> Verdict | None:
            found = sorted(int(name) for name in os.listdir("/proc/self/fd"))
            return Refused(AUTH, ",".join(str(fd) for fd in found if os.path.exists(f"/proc/self/fd/{fd}")))

        verdict = check(descriptors, keep=(kept,))
    finally:
        for fd in (*others, kept):
            os.close(fd)
    assert isinstance(verdict, Refused)
    found = [int(number) for number in verdict.reason.split(",")]
    assert len(found) == 5 and kept in found and not set(others) & set(found)


@given(octets=st.binary(max_size=100) | st.just(b"null") | st.just(b'["a","b"]') | st.just(b"[1,2,3,4]"))
def test_any_octets_are_a_verdict_or_a_fault(octets: bytes) -> None:
    """A checker that a module took over can say no more than a verdict."""
    assert isinstance(checker.decode(octets), (Refused, Accepted))


def test_nonsense_from_a_checker_is_a_fault() -> None:
    """Right JSON of the wrong shape too."""
    for octets in (
        b"{}",
        b"[]",
        b"\xff",
        b'["USER","x","pam",""]',
        b'["AUTH","' + b"x" * 65 + b'","pam",""]',
        b'["AUTH","\\u00e9","pam",""]',
        b'["joe",1,2,["x"],"/h","/m","pam",0]',
        b'["joe","1",2,[],"/h","/m","pam",0]',
        b'["\\u1234",1,2,[],"/h","/m","pam",0]',
        # These ended auth, with all logins that it was deciding.
        b'["joe",1,2,[[3]],"/h","/m","pam",0]',
        b'["joe",1,2,[1e999],"/h","/m","pam",0]',
        b'["joe",1,2,[-1],"/h","/m","pam",0]',
        b'["joe",36893488147419103232,2,[],"/h","/m","pam",0]',
        b'["joe",true,2,[],"/h","/m","pam",0]',
        b'["joe",1,2,[],"/h","/m","' + b"s" * 33 + b'",0]',
        b"[" * 100_000,
    ):
        assert checker.decode(octets) == checker.DIED
