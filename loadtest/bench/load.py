"""
Load: POP3 sessions against a server, each reply verified, in a process of its own.

`Load` is the handle, `python -m loadtest.bench.load` the process: a JSON job a line in, a JSON result a
line out. One loop over epoll drives all sessions; what they do is in `scripts`. A reply that is not what the
maildrop holds is an error, and a figure with errors is no figure.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.bench.maildrops import Maildrop
from loadtest.bench.scripts import SCENARIOS, Account, Ask, Script, WrongReply

TOP = Path(__file__).resolve().parents[2]
RECEIVE_OCTETS = 1 << 20
ERRORS_KEPT = 5
END_TIMEOUT_S = 1.0
TERMINATOR = b"\r\n.\r\n"


@dataclass(slots=True)
class Result:
    """What one job came to."""

    sessions: int = 0
    failed: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    errors: list[str] = field(default_factory=list)


# Sessions


class Session:
    """One connection and the script that it follows."""

    def __init__(self, account: Account, script: Script, now: float) -> None:
        self.account = account
        self.began = now
        self.error = ""
        self._script = script
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._looked = 0  # no terminator ends before here
        self._many_lines = False
        self._script_ended = False
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(("127.0.0.1", account.port))
        self.sock.setblocking(False)
        self._take(next(script))

    def _take(self, ask: Ask) -> None:
        octets, self._many_lines = ask
        if octets:
            self._unsent = memoryview(octets)
            self.send()

    def send(self) -> bool:
        """Send what is left to send; returns whether there is more."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return True
        return False

    @property
    def waits_to_send(self) -> bool:
        return bool(self._unsent)

    def readable(self) -> bool:
        """Take what has come; returns False once the session is over."""
        try:
            octets = self.sock.recv(RECEIVE_OCTETS)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            octets = b""  # who closes with something unread does this
        if not octets:
            if not self._script_ended:
                raise WrongReply(f"the connection ended, after {bytes(self._received[:200])!r}")
            return False
        self._received += octets
        while (reply := self._reply()) is not None:
            if self._script_ended:
                raise WrongReply(f"{reply[:100]!r} after QUIT was answered")
            try:
                self._take(self._script.send(reply))
            except StopIteration:
                self._script_ended = True
        return True

    def _reply(self) -> bytes | None:
        """The next whole reply, if it is there."""
        received = self._received
        many = self._many_lines and not received.startswith(b"-")
        end = TERMINATOR if many else b"\r\n"
        at = received.find(end, self._looked)
        if at < 0:
            self._looked = max(0, len(received) - len(end) + 1)
            return None
        self._looked = 0
        at += len(end)
        reply = bytes(received[:at])
        del received[:at]
        return reply


class Job:
    """
    Sessions until `seconds` are over, and at least `at_least` of them; never two at once on one maildrop.

    Raises:
        TimeoutError: from `run`; a session was stuck for `timeout_s`.
    """

    def __init__(
        self,
        port: int,
        scenario: str,
        accounts: list[dict[str, Any]],
        concurrency: int,
        seconds: float,
        at_least: int,
        timeout_s: float = 120.0,
    ) -> None:
        self.script = SCENARIOS[scenario]
        self.free = deque(Account(port=port, **account) for account in accounts)
        self.concurrency = min(concurrency, len(self.free))
        self.seconds = seconds
        self.at_least = at_least
        self.timeout_s = timeout_s
        self.result = Result()
        self.times: list[float] = []
        self.running: dict[int, Session] = {}
        self.epoll = select.epoll()
        self.begun = 0

    def run(self) -> Result:
        started = time.perf_counter()
        self._start_sessions(started)
        while self.running:
            now = time.perf_counter()
            events = self.epoll.poll(1.0)
            if not events and any(now - each.began > self.timeout_s for each in self.running.values()):
                raise TimeoutError(f"sessions were stuck for {self.timeout_s:.0f} s")
            for fd, event in events:
                self._act(self.running[fd], event)
            self._start_sessions(started)
        self.epoll.close()
        self.result.seconds = time.perf_counter() - started
        if len(self.times) > 1:
            self.result.p50_ms = statistics.median(self.times) * 1e3
            self.result.p99_ms = statistics.quantiles(self.times, n=100)[98] * 1e3
        return self.result

    def _start_sessions(self, started: float) -> None:
        while len(self.running) < self.concurrency and self.free:
            now = time.perf_counter()
            if self.begun >= self.at_least and now - started >= self.seconds:
                return
            account = self.free.popleft()
            session = Session(account, self.script(account), now)
            self.begun += 1
            self.running[session.sock.fileno()] = session
            self.epoll.register(session.sock.fileno(), select.EPOLLIN)

    def _act(self, session: Session, event: int) -> None:
        fd = session.sock.fileno()
        try:
            if event & select.EPOLLOUT:
                session.send()
            goes_on = session.readable() if event & ~select.EPOLLOUT else True
        except (WrongReply, OSError) as error:
            self.result.failed += 1
            if len(self.result.errors) < ERRORS_KEPT:
                self.result.errors.append(f"{session.account.name}: {error}")
            self._end(session)
            return
        if goes_on:
            self.epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if session.waits_to_send else 0))
            return
        self.result.sessions += 1
        self.times.append(time.perf_counter() - session.began)
        self._end(session)

    def _end(self, session: Session) -> None:
        fd = session.sock.fileno()
        self.epoll.unregister(fd)
        del self.running[fd]
        session.sock.close()
        self.free.append(session.account)


class Load:
    """The process that makes the load."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TOP,
            text=True,
            start_new_session=True,  # Ctrl-C is for the bench, which ends this one in order
        )

    def run(
        self,
        port: int,
        scenario: str,
        maildrops: Iterable[Maildrop],
        concurrency: int,
        seconds: float = 0.0,
        at_least: int = 1,
    ) -> Result:
        """Have sessions made, and return what came of them."""
        self.begin(port, scenario, maildrops, concurrency, seconds, at_least)
        return self.finish()

    def begin(
        self,
        port: int,
        scenario: str,
        maildrops: Iterable[Maildrop],
        concurrency: int,
        seconds: float = 0.0,
        at_least: int = 1,
    ) -> None:
        """Have sessions made meanwhile; `finish` waits for them."""
        assert self.process.stdin
        accounts = [
            {"name": each.name, "count": each.count, "octets": each.octets, "checksum": each.checksum}
            for each in maildrops
        ]
        job = {
            "port": port,
            "scenario": scenario,
            "accounts": accounts,
            "concurrency": concurrency,
            "seconds": seconds,
            "at_least": at_least,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def finish(self) -> Result:
        """Return what came of the sessions that were begun."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with status {self.process.wait()}")
        return Result(**json.loads(line))

    def close(self) -> None:
        """End the process, also in the middle of something."""
        assert self.process.stdin and self.process.stdout
        if self.process.returncode is not None:
            return
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def main() -> None:
    for line in sys.stdin:
        try:
            result = Job(**json.loads(line)).run()
        except (OSError, TimeoutError) as error:
            result = Result(failed=1, errors=[f"{type(error).__name__}: {error}"])
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
