"""
The honest users: each polls all the time, one session after the other, and knows what it has to hear.

Every poll is timed from the connect to the answer of QUIT, and checked: the number of messages, and the same
unique-ids as ever. Executed by `python -m loadtest.hostile`.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from loadtest.hostile.peers import Peer, address_of
from loadtest.site import Account

NETWORK = 1
TIMEOUT_S = 60.0
SHOWN_OCTETS = 80


@dataclass(frozen=True, slots=True)
class Poll:
    """
    One poll: when it began (monotonic), how long it took, and what was wrong with it, "" for nothing.

    `steps_s`: when each of its answers had come, counted from its beginning.
    """

    began_s: float
    took_s: float
    problem: str
    steps_s: dict[str, float]


class Wrong(Exception):
    """An answer that an honest user should not have got."""


class Honest:
    """So many users, on one server, from their own addresses. They pause `pause_s` between two polls."""

    def __init__(self, accounts: list[Account], port: int, pause_s: float) -> None:
        self.polls: list[Poll] = []
        self._port = port
        self._pause_s = pause_s
        self._may_poll = asyncio.Event()
        self._under_way: set[float] = set()
        self._users = [asyncio.create_task(self._user(n, each)) for n, each in enumerate(accounts)]

    def go_on(self) -> None:
        self._may_poll.set()

    async def pause(self) -> None:
        """Have nobody begin a poll, and wait until those that have are done."""
        self._may_poll.clear()
        while self._under_way:
            await asyncio.sleep(0.01)

    async def of_next(self, seconds: float) -> list[Poll]:
        """The polls that begin within the next seconds, once they are done."""
        began = time.monotonic()
        await asyncio.sleep(seconds)
        ended = time.monotonic()
        while any(each < ended for each in self._under_way):
            await asyncio.sleep(0.01)
        return [poll for poll in self.polls if began <= poll.began_s < ended]

    def end(self) -> None:
        for user in self._users:
            user.cancel()

    async def _user(self, number: int, account: Account) -> None:
        chance = random.Random(number)
        expected = len([file for folder in ("new", "cur") for file in (account.maildir / folder).iterdir()])
        listing: list[bytes] = []
        while True:
            await self._may_poll.wait()
            began = time.monotonic()
            self._under_way.add(began)
            problem = ""
            answers: dict[str, float] = {}
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    listing = await _poll(self._port, number, account, expected, listing, answers)
            except TimeoutError:
                problem = f"not served within {TIMEOUT_S:g} s"
            except (OSError, Wrong) as error:
                problem = str(error) or type(error).__name__
            finally:
                self._under_way.discard(began)
            steps = {step: at - began for step, at in answers.items()}
            self.polls.append(Poll(began, time.monotonic() - began, problem, steps))
            await asyncio.sleep(self._pause_s * chance.uniform(0.5, 1.5))


async def _poll(
    port: int, number: int, account: Account, expected: int, listing: list[bytes], answers: dict[str, float]
) -> list[bytes]:
    """
    Log in, STAT, UIDL, QUIT; returns the unique-ids, which are those of `listing` if that is known.

    When each answer came goes into `answers`.

    Raises:
        Wrong: an answer is not what it has to be.
        OSError: the server has closed, or does not let us in.
    """

    def good(step: str, answer: bytes) -> bytes:
        answers[step] = time.monotonic()
        if not answer.startswith(b"+OK"):
            text = answer[:SHOWN_OCTETS].decode("ascii", "replace").strip()
            raise Wrong(f"{step}: {text or 'a close'}")
        return answer

    peer = await Peer.connect(port, address_of(NETWORK, number))
    try:
        answers["connect"] = time.monotonic()
        good("greeting", await peer.line())
        good("USER", await peer.ask(b"USER " + account.name.encode()))
        good("PASS", await peer.ask(b"PASS " + account.password.encode()))
        stat = good("STAT", await peer.ask(b"STAT"))
        if int(stat.split()[1]) != expected:
            raise Wrong(f"STAT of {expected} messages: {stat[:SHOWN_OCTETS]!r}")
        good("UIDL", await peer.ask(b"UIDL"))
        found = await peer.lines()
        if len(found) != expected or (listing and found != listing):
            raise Wrong(f"UIDL: other unique-ids than before, {len(found)}")
        good("QUIT", await peer.ask(b"QUIT"))
        return found
    finally:
        peer.close()
