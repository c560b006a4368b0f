"""
EDGE: work on many users, so many at once, each in a process of its own.

A process can become the user whose Maildir it opens, it has that user's password and no other, and
whatever a server does to it (memory, time, a crash) it does to this user's turn alone: it is killed when
it is over its time, and what it reports is bounded. A fork of what is loaded anyway costs a few
milliseconds, which is nothing beside a login. Executed by `gpop uidl`, as whoever started it; knows
nothing of mail and servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from gpop.events import place

Report = dict[str, Any]

MAX_REPORT_OCTETS = 1024 * 1024
READ_OCTETS = 65536
# A process that keeps its own time ends before it has to be ended.
GRACE_S = 10.0


class _Turn:
    """One user's process."""

    __slots__ = ("deadline", "fd", "index", "octets", "pid")

    def __init__(self, index: int, pid: int, fd: int, deadline: float) -> None:
        self.index = index
        self.pid = pid
        self.fd = fd
        self.deadline = deadline
        self.octets = bytearray()


def for_each(
    indexes: Iterable[int],
    work: Callable[[int], Report],
    at_once: int,
    timeout_s: float,
    keep: Collection[int] = (),
) -> Iterator[tuple[int, Report]]:
    """
    Yield each index and what `work(index)` returned in its process, in the order in which they end.

    Of a process that was killed, died or said nonsense the report is {"failed": why}. Whoever stops
    asking ends those that still run. A process has its standard descriptors, its pipe, and those in
    `keep`: it may soon be another user's. Where no more processes can be had than run, they are fewer.

    Raises:
        OSError: not even one can be had.
    """
    waiting: Iterator[int] = iter(indexes)
    turns: dict[int, _Turn] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                while len(turns) < at_once and (index := next(waiting, None)) is not None:
                    try:
                        turn = _start(index, work, keep, time.monotonic() + timeout_s + GRACE_S)
                    except OSError:
                        if not turns:
                            raise
                        waiting = chain([index], waiting)  # one that ends makes room
                        break
                    turns[turn.fd] = turn
                    selector.register(turn.fd, selectors.EVENT_READ)
                if not turns:
                    return
                for turn, failed in _ended(selector, turns):
                    selector.unregister(turn.fd)
                    del turns[turn.fd]
                    yield turn.index, _finish(turn, failed)
        finally:
            for turn in turns.values():
                _finish(turn, "ended before its time")


def _start(index: int, work: Callable[[int], Report], keep: Collection[int], deadline: float) -> _Turn:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        return _Turn(index, pid, reading, deadline)
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; who started us ends us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(reading)  # first of all: to list the others takes a descriptor, and there may be no other
        _close_all_but({0, 1, 2, writing, *keep})
        _write(writing, _report(work, index))
        status = 0
    finally:
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - keep:
        with contextlib.suppress(OSError):  # the one that listed them is gone
            os.close(fd)


def _report(work: Callable[[int], Report], index: int) -> bytes:
    try:
        report = work(index)
    except Exception as error:  # the one place; what an unforeseen error was about may be a password
        report = {"failed": f"unexpected {place(error)}"}
    return json.dumps(report).encode()


def _write(fd: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(fd, view) :]


def _ended(selector: selectors.BaseSelector, turns: dict[int, _Turn]) -> Iterator[tuple[_Turn, str]]:
    """Wait for something to happen; yield whose turn has ended, and why if not by itself."""
    now = time.monotonic()
    first = min(turn.deadline for turn in turns.values())
    for key, _ in selector.select(max(0.0, first - now)):
        turn = turns[key.fd]
        octets = os.read(turn.fd, READ_OCTETS)
        turn.octets += octets
        if not octets:
            yield turn, ""
        elif len(turn.octets) > MAX_REPORT_OCTETS:
            yield turn, "its process reported more than anybody wants to read"
    now = time.monotonic()
    for turn in [turn for turn in turns.values() if turn.deadline <= now]:
        yield turn, "it took too long altogether"


def _finish(turn: _Turn, failed: str) -> Report:
    """Reap a process, killing it if it goes on, and return its report."""
    os.close(turn.fd)
    # Also one that has closed its pipe: its last word is said, and who took it over need not end it. Of one
    # that is ending anyway this changes no status.
    os.kill(turn.pid, signal.SIGKILL)
    _, status = os.waitpid(turn.pid, 0)
    if failed:
        return {"failed": failed}
    try:
        report = json.loads(turn.octets)
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict):
        code = os.waitstatus_to_exitcode(status)
        return {"failed": f"its process died ({f'signal {-code}' if code < 0 else f'status {code}'})"}
    return report


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that the processes are ended and the summary is written all the same."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.stdout.flush()
