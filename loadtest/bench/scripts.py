"""
What sessions do: what each sends, and what it has to be answered.

A script is a generator that yields what to send and is given the replies; it knows of no socket. Each reply
is verified against what the maildrop holds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

from loadtest.bench.maildrops import PASSWORD

# What a script asks for: octets to send, and whether the reply to wait for has many lines.
Ask = tuple[bytes, bool]
Script = Generator[Ask, bytes, None]


class WrongReply(Exception):
    """The server did not say what it should; the text says what it said instead."""


@dataclass(slots=True)
class Account:
    """Whom a session logs in as, where, and what it has to find."""

    port: int
    name: str
    count: int
    octets: int
    checksum: int


def _login(account: Account) -> Script:
    yield from _single(b"")
    yield from _single(b"USER %s\r\n" % account.name.encode())
    yield from _single(b"PASS %s\r\n" % PASSWORD.encode())
    reply = yield from _single(b"STAT\r\n")
    if reply.split()[1:3] != [b"%d" % account.count, b"%d" % account.octets]:
        raise WrongReply(f"STAT: {reply!r}, but there are {account.count} messages, {account.octets} octets")


def _single(command: bytes) -> Generator[Ask, bytes, bytes]:
    reply = yield command, False
    if not reply.startswith(b"+OK"):
        raise WrongReply(f"{command.split(b' ')[0]!r}: {reply[:200]!r}")
    return reply


def _stat(account: Account) -> Script:
    yield from _login(account)
    yield from _single(b"QUIT\r\n")


def _poll(account: Account) -> Script:
    yield from _login(account)
    _verify_unique_ids(account, (yield b"UIDL\r\n", True))
    yield from _single(b"QUIT\r\n")


def _retr(account: Account) -> Script:
    """Every message, one after the other."""
    yield from _login(account)
    total = Sum()
    for number in range(1, account.count + 1):
        total.add((yield b"RETR %d\r\n" % number, True))
    total.verify(account)
    yield from _single(b"QUIT\r\n")


def _retr_pipelined(account: Account) -> Script:
    """Every message, all asked for at once."""
    yield from _login(account)
    commands = b"".join(b"RETR %d\r\n" % number for number in range(1, account.count + 1))
    total = Sum()
    for _ in range(account.count):
        total.add((yield commands, True))
        commands = b""
    total.verify(account)
    yield from _single(b"QUIT\r\n")


SCENARIOS: dict[str, Callable[[Account], Script]] = {
    "stat": _stat,
    "poll": _poll,
    "retr": _retr,
    "retr-pipelined": _retr_pipelined,
}


class Sum:
    """Adds up what RETR sent, with byte-stuffing taken off."""

    def __init__(self) -> None:
        self.octets = 0
        self.checksum = 0

    def add(self, reply: bytes) -> None:
        if not reply.startswith(b"+OK"):
            raise WrongReply(f"RETR: {reply[:200]!r}")
        # From the line end of the status line on, so that a dot at the very start is found like any other.
        stuffed = reply[reply.index(b"\r\n") : -3]
        message = stuffed.replace(b"\r\n..", b"\r\n.")[2:]
        self.octets += len(message)
        self.checksum = (self.checksum + zlib.crc32(message)) & 0xFFFFFFFF

    def verify(self, account: Account) -> None:
        if (self.octets, self.checksum) != (account.octets, account.checksum):
            raise WrongReply(f"RETR: {self.octets} octets instead of {account.octets}, or others")


# What a server said once and was found right need not be taken apart again.
_verified: dict[tuple[int, str], int] = {}


def _verify_unique_ids(account: Account, reply: bytes) -> None:
    key = account.port, account.name
    if _verified.get(key) == hash((account.count, reply)):
        return
    lines = reply.split(b"\r\n")[:-2]
    if not lines or not lines[0].startswith(b"+OK") or len(lines) != account.count + 1:
        raise WrongReply(f"UIDL: {len(lines) - 1} lines instead of {account.count}: {reply[:100]!r}")
    seen = set()
    for number, line in enumerate(lines[1:], 1):
        head, _, unique_id = line.partition(b" ")
        if head != b"%d" % number or not 1 <= len(unique_id) <= 70:
            raise WrongReply(f"UIDL: {line!r} as line {number}")
        seen.add(unique_id)
    if len(seen) != account.count:
        raise WrongReply("UIDL: two messages have one unique-id")
    _verified[key] = hash((account.count, reply))
