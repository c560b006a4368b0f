"""
EDGE: the checker, a process for one login: asks the virtual user maps and the sources, and ends.

A PAM module may sleep, leak or crash, and LMDB in a damaged map; here they do so alone, under a
deadline, with no descriptor of any client. `start` forks it from auth, `Checker.read` takes its verdict from
a pipe: one small bounded frame. Whatever a checker does wrong is [SYS/TEMP] for its login.
Executed as root.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import struct
from collections.abc import Callable, Iterable, Sequence

from gpop import signals
from gpop.accounts.account import (
    AUTH,
    NO_ID,
    SYS_PERM,
    SYS_TEMP,
    Accepted,
    Account,
    Refused,
    Verdict,
)
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.sources import Request, Source, decide
from gpop.events import place

LENGTH = struct.Struct("!I")
# Groups and two paths of the greatest length, as JSON, every octet escaped.
MAX_RESULT_OCTETS = 128 * 1024
MAX_DETAIL_CHARACTERS = 500
DIED = Refused(SYS_TEMP, "checker_died", detail="the checker ended without a verdict")


class Checker:
    """
    A running checker, as auth sees it: `pid` (to be reaped by the caller), `fd` to read from.

    `fd` never blocks. It belongs to this object until `close`. The checker leads a session of
    its own, without a terminal.
    """

    __slots__ = ("_octets", "deadline_s", "fd", "killed", "pid")

    def __init__(self, pid: int, fd: int, deadline_s: float) -> None:
        self.pid = pid
        self.fd = fd
        self.deadline_s = deadline_s
        self.killed = False
        self._octets = b""

    def read(self) -> Verdict | None:
        """Take what has come; return the verdict when it is whole, `DIED` at an early end, None to wait."""
        try:
            octets = os.read(self.fd, MAX_RESULT_OCTETS)
        except BlockingIOError:
            return None
        self._octets += octets
        if not octets:
            return DIED
        if len(self._octets) < LENGTH.size:
            return None
        length = LENGTH.unpack_from(self._octets)[0]
        if length > MAX_RESULT_OCTETS:
            return DIED
        body = self._octets[LENGTH.size :]
        return decode(body) if len(body) >= length else None

    def last_word(self) -> Verdict:
        """Take the rest of what an ended checker said; return its verdict, `DIED` if there is none."""
        while True:
            before = len(self._octets)
            verdict = self.read()
            if verdict is not None:
                return verdict
            if len(self._octets) == before:
                return DIED  # a program it started holds the pipe open, and will never speak for it

    def close(self) -> None:
        """Give up the pipe; `fd` is -1 from then on, its number may be another's."""
        os.close(self.fd)
        self.fd = -1

    def is_overdue(self, now: float) -> bool:
        """Say whether it has run too long and was not killed yet."""
        return now >= self.deadline_s and not self.killed

    def kill(self) -> None:
        """End it, whatever it is doing, and the programs its PAM modules started (pam_exec)."""
        self.killed = True
        os.kill(self.pid, signal.SIGSTOP)  # it starts and reaps no more
        for pid in (*_descendants(self.pid), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start(
    sources: Sequence[Source],
    request: Request,
    only: int | None,
    keep: Iterable[int],
    deadline_s: float,
    virtual: VirtualUsers | None = None,
    niceness: int = 0,
) -> Checker:
    """
    Fork a checker for `request`. Of auth's descriptors it keeps 0-2 and `keep`.

    `niceness`: by how much others, auth among them, go before it where there is not enough CPU for all.

    Raises:
        OSError: no process or descriptor to be had.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        _run(lambda: decide(sources, request, only, virtual), writer, keep, niceness)
    os.close(writer)
    os.set_blocking(reader, False)
    return Checker(pid, reader, deadline_s)


def _run(answer: Callable[[], Verdict], writer: int, keep: Iterable[int], niceness: int) -> None:
    """The checker's whole life; never returns. Its outermost handler: a fault is a verdict too."""
    try:
        os.setsid()
        if niceness:
            os.nice(niceness)
        gc.disable()  # it ends soon; a collection would only copy auth's pages
        close_all_but(sorted({0, 1, 2, writer, *keep}))
        signals.set_wakeup_fd(-1)
        for number in (signals.TERM, signals.INT, signals.HUP, signals.CHLD):
            signals.handle(number, signals.SIG_DFL)
        try:
            verdict = answer()
        except Exception as error:
            verdict = Refused(SYS_TEMP, "checker_fault", detail=place(error))
        body = encode(verdict)
        octets = memoryview(LENGTH.pack(len(body)) + body)
        while octets:
            octets = octets[os.write(writer, octets) :]
    finally:
        os._exit(0)


def _descendants(pid: int) -> list[int]:
    """Return the processes that `pid` started, and those they started."""
    found = [pid]
    for parent in found:
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file,
        ):
            found.extend(map(int, file.read().split()))
    return found[1:]


def close_all_but(keep: Sequence[int]) -> None:
    """Close every descriptor but `keep` (ascending): those of other logins above all."""
    after = 0
    for fd in keep:
        if after < fd:  # closerange(0, 0) of CPython 3.11 closes everything there is
            os.closerange(after, fd)
        after = fd + 1
    os.closerange(after, os.sysconf("SC_OPEN_MAX"))


def encode(verdict: Verdict) -> bytes:
    """Return a verdict as octets."""
    if isinstance(verdict, Refused):
        detail = verdict.detail[:MAX_DETAIL_CHARACTERS]
        return json.dumps([verdict.code, verdict.reason, verdict.source, detail]).encode()
    account = verdict.account
    row = [
        account.name.decode("latin-1"),
        account.uid,
        account.gid,
        list(account.groups),
        account.home.decode("latin-1"),
        account.maildir.decode("latin-1"),
        verdict.source,
        verdict.origin,
    ]
    return json.dumps(row).encode()


def _is_refusal(code: str, reason: str, source: str) -> bool:
    """Whether these fit into a frame to the front."""
    known = code in (AUTH, SYS_TEMP, SYS_PERM)
    return known and reason.isascii() and len(reason) <= 64 and _is_source(source)


def _is_source(source: str) -> bool:
    return source.isascii() and len(source) <= 32


def _are_ids(*numbers: object) -> bool:
    """Whether these are uids or gids, and not JSON's true, lists, or numbers that no frame holds."""
    return all(type(number) is int and 0 <= number < NO_ID for number in numbers)


def decode(octets: bytes) -> Verdict:
    """Return the verdict that `octets` are, `DIED` if they are none."""
    try:
        match json.loads(octets):
            case [str(code), str(reason), str(source), str(detail)] if _is_refusal(code, reason, source):
                return Refused(code, reason, source, detail)
            case [str(name), uid, gid, list(groups), str(home), str(maildir), str(source), int(at)] if (
                _are_ids(uid, gid, *groups) and _is_source(source)
            ):
                paths = home.encode("latin-1"), maildir.encode("latin-1")
                return Accepted(Account(name.encode("latin-1"), uid, gid, tuple(groups), *paths), source, at)
    except (ValueError, RecursionError):
        return DIED
    return DIED
