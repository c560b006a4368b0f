"""
The mail that the load test delivers: text of all sizes, one in twenty of an awkward kind, no two alike.

Pure: octets and names, no files. Knows how a message goes over the wire by a writing of its own, which
shares nothing with gpop's. Executed by locust's processes, and where a site is made.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from gpop.commands.demo_messages import messages as demo_messages
from loadtest.bench.maildrops import Post, Profile

TYPICAL_OCTETS = 4096
AWKWARD_ONE_IN = 20
# Far more than a socket holds, so that a client that leaves in the middle of it leaves a server that sends.
LARGE_OCTETS = 1_500_000
HOST = "loadtest"


@dataclass(frozen=True, slots=True)
class Mail:
    """One message: its file's name (which is its unique-id), its file, and what RETR sends of it."""

    base: str
    file: bytes
    octets: int  # as LIST has it (RFC 1939 §11)
    digest: bytes  # of what RETR sends, before byte-stuffing


class MailMaker:
    """Makes mail; every message has a header of its own, so that none can pass for another."""

    def __init__(self) -> None:
        self._post = Post(Path(), [Profile("500", 500, 0, TYPICAL_OCTETS)])
        self._awkward = [message.octets for message in demo_messages()]
        self._counter = itertools.count(1)

    def mail(self, recipient: str) -> Mail:
        """A message of usual size."""
        number = next(self._counter)
        if number % AWKWARD_ONE_IN:
            return self._made(recipient, number, self._post.new_message("500", number).file)
        return self._made(recipient, number, self._awkward[number // AWKWARD_ONE_IN % len(self._awkward)])

    def large(self, recipient: str) -> Mail:
        """A message with a large attachment."""
        number = next(self._counter)
        text = self._post.new_message("500", number).file
        return self._made(recipient, number, text * (1 + LARGE_OCTETS // len(text)))

    def _made(self, recipient: str, number: int, text: bytes) -> Mail:
        now_ns = time.time_ns()
        head = f"Delivered-To: {recipient}@example.org\nX-Load-Test: {now_ns} {os.getpid()} {number}\n"
        file = head.encode() + text
        sent = on_the_wire(file)
        base = f"{now_ns // 10**9}.M{now_ns // 1000 % 10**6:06d}P{os.getpid()}Q{number}.{HOST}"
        # Some delivery agents put sizes into the name; gpop takes W= from there.
        claim = f",S={len(file)},W={len(sent)}" if number % 2 else ""
        return Mail(base + claim, file, len(sent), digest(sent))


def on_the_wire(file: bytes) -> bytes:
    """What RETR sends of a file, before byte-stuffing: every line ends with CRLF, the last one too."""
    sent = file.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return sent if sent.endswith(b"\r\n") or not sent else sent + b"\r\n"


def byte_stuffed(sent: bytes) -> bytes:
    """A message with the dots doubled that begin its lines (RFC 1939 §3)."""
    return re.sub(rb"(?m)^\.", b"..", sent)


def digest(octets: bytes) -> bytes:
    """What two messages are compared by."""
    return hashlib.blake2b(octets, digest_size=16).digest()
