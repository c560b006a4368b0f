"""
Throw-away maildrops: invented mail, the same for every server, each server with a copy of its own.

A `Profile` is a size of maildrop; `Tree` is one server's copy of all of them, with the accounts that own
them. Ids are of nobody's on the machine, so nothing has to be added to it. From the same seed comes the
same mail: text, one message in twenty with lines that begin with a dot; half of the names say `W=`. All lines
end with LF, the last one too: about the size of other messages servers disagree, and replies are verified.

From 10,000 messages on the files are links to one set of files, readable by everybody: what differs from
maildrops that people have is who owns a file, which no server looks at, and the disk stays small.
"""

from __future__ import annotations

import os
import random
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = os.geteuid() == 0
FIRST_UID = 70000
PASSWORD = "open-sesame"
FIRST_DELIVERY = 1_700_000_000
DISTINCT_MESSAGES = 500
LINKED_FROM = 10_000
MOST_TYPICAL_OCTETS = 64 * 1024
BIG_OCTETS = 50_000_000
BIG = {"big": "one of 50 MB", "big-dots": "the same, dots"}

# What the servers keep beside the mail; each glob is relative to a Maildir.
CACHES = (
    ".statcache*", "courierpop3dsizelist*", "dovecot-uidlist*", "dovecot-uidvalidity*",
    "dovecot.index*", "dovecot.list*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it is delivered."""

    file: bytes
    octets: int  # as LIST has it (RFC 1939 §11)
    checksum: int  # CRC-32 of what RETR sends, before byte-stuffing

    def name(self, number: int) -> str:
        """The file name of the `number`-th message of a maildrop: half of them say what RETR sends."""
        claim = f",S={len(self.file)},W={self.octets}" if number % 2 else ""
        return f"{FIRST_DELIVERY + number * 37}.M{number}P4711.mail.example.org{claim}"


@dataclass(frozen=True, slots=True)
class Profile:
    """A size of maildrop: its label, messages in each, and how many accounts have one."""

    label: str
    count: int
    accounts: int
    octets: int  # of a typical message


@dataclass(slots=True)
class Maildrop:
    """One account's maildrop in one server's tree, and what its server has to say of it."""

    name: str
    uid: int
    home: Path
    label: str
    count: int = 0
    octets: int = 0
    checksum: int = 0  # sum of its messages' checksums

    @property
    def path(self) -> Path:
        return self.home / "Maildir"

    def note(self, message: Message) -> None:
        self.count += 1
        self.octets += message.octets
        self.checksum = (self.checksum + message.checksum) & 0xFFFFFFFF

    def lose_caches(self) -> None:
        """Remove what servers keep beside the mail."""
        for glob in CACHES:
            for path in self.path.glob(glob):
                path.unlink()

    def deliver(self, message: Message) -> None:
        """Deliver one message as an MDA does."""
        path = self.path / "tmp" / f"{time.time_ns() // 10**9}.M{self.count}P{os.getpid()}.mail.example.org"
        path.write_bytes(message.file)
        _give(path, self.uid)
        path.rename(self.path / "new" / path.name)
        self.note(message)


@dataclass(slots=True)
class Tree:
    """One server's copy of every maildrop."""

    path: Path
    one_uid: bool = False  # all of it belongs to one user, as servers with shared processes want it
    maildrops: list[Maildrop] = field(default_factory=list)

    def of(self, label: str) -> list[Maildrop]:
        return [maildrop for maildrop in self.maildrops if maildrop.label == label]

    def passwd_lines(self) -> Iterator[str]:
        """Lines for a passwd-file, in the layout that gpop and Dovecot share."""
        for each in self.maildrops:
            yield f"{each.name}:{{PLAIN}}{PASSWORD}:{each.uid}:{each.uid}::{each.home}::"


def profile(label: str, concurrency: int) -> Profile:
    """Return the profile with that label: a number of messages, or one of BIG (one message of 50 MB)."""
    if label in BIG:
        return Profile(label, 1, min(2, concurrency), BIG_OCTETS)
    count = int(label)
    accounts = max(concurrency, 16 if count <= 100 else 8 if count <= 2000 else 4)
    return Profile(label, count, accounts if ROOT else 1, 8192 if count <= 2000 else 1300)


class Post:
    """Makes the mail, and fills trees with it."""

    def __init__(self, folder: Path, profiles: list[Profile]) -> None:
        self.folder = folder
        self.profiles = profiles
        self.pools: dict[str, list[Message]] = {}
        for each in profiles:
            self.pools[each.label] = list(_messages(each))

    def new_message(self, label: str, number: int) -> Message:
        """The message that is delivered as the `number`-th of a maildrop."""
        pool = self.pools[label]
        return pool[number % len(pool)]

    def fill(self, tree: Tree) -> None:
        """Make every account and maildrop of a tree."""
        tree.path.mkdir(mode=0o755)
        for each in self.profiles:
            for number in range(each.accounts):
                uid = FIRST_UID if tree.one_uid else FIRST_UID + 1 + len(tree.maildrops)
                name = f"{'s' if each.label.isdigit() else ''}{each.label}u{number}"
                home = tree.path / name
                maildrop = Maildrop(name, uid if ROOT else os.geteuid(), home, each.label)
                self._make(maildrop, each)
                tree.maildrops.append(maildrop)

    def _make(self, maildrop: Maildrop, of: Profile) -> None:
        for folder in ("", "Maildir", "Maildir/new", "Maildir/cur", "Maildir/tmp"):
            path = maildrop.home / folder
            path.mkdir(mode=0o700)
            _give(path, maildrop.uid)
        source = self._linked_files(of) if of.count >= LINKED_FROM else None
        folders = [os.open(maildrop.path / each, os.O_RDONLY) for each in ("new", "cur")]
        pool = self.pools[of.label]
        for number in range(of.count):
            message = pool[number % len(pool)]
            base = message.name(number)
            seen = number // 2 % 2 == 0  # half of those that say W=, and half of those that don't
            name, directory = (base + ":2,S", folders[1]) if seen else (base, folders[0])
            if source is None:
                _write(directory, name, message.file, maildrop.uid, 0o600)
            else:
                os.link(base, name, src_dir_fd=source, dst_dir_fd=directory)
            maildrop.note(message)
        for fd in (*folders, source):
            if fd is not None:
                os.close(fd)

    def _linked_files(self, of: Profile) -> int:
        """Return a descriptor of the folder with the files that all maildrops of a profile have."""
        folder = self.folder / f"mail{of.label}"
        made = folder.exists()
        folder.mkdir(exist_ok=True)
        fd = os.open(folder, os.O_RDONLY)
        if not made:
            pool = self.pools[of.label]
            for number in range(of.count):
                message = pool[number % len(pool)]
                _write(fd, message.name(number), message.file, -1, 0o644)
        return fd


def remove(folder: Path) -> None:
    """Remove everything below and including `folder`."""
    shutil.rmtree(folder, ignore_errors=True)


def _messages(of: Profile) -> Iterator[Message]:
    """Yield the distinct messages of a profile."""
    chance = random.Random(of.count)
    texts = {dots: _text(chance, dots) for dots in (False, True)}
    for number in range(min(of.count, DISTINCT_MESSAGES)):
        size = of.octets
        if size <= MOST_TYPICAL_OCTETS:
            size = min(MOST_TYPICAL_OCTETS, max(600, int(size * chance.lognormvariate(0, 0.6))))
        text = texts[number % 20 == 19 or of.label == "big-dots"]
        head = (
            f"Return-Path: <sender{number}@example.org>\nReceived: from mx.example.org (192.0.2.7)\n"
            f"\tby mail.example.org; Tue, 14 Nov 2023 22:13:20 +0000\nFrom: sender{number}@example.org\n"
            f"To: somebody@example.org\nSubject: message {number}\nMessage-ID: <{number}@example.org>\n\n"
        ).encode()
        start = text.index(b"\n", chance.randrange(len(text) // 2)) + 1
        body = text[start:] * (1 + size // (len(text) - start))
        file = (head + body[: max(0, size - len(head) - 1)]).rstrip(b"\n") + b"\n"
        sent = file.replace(b"\n", b"\r\n")
        yield Message(file, len(sent), zlib.crc32(sent))


def _text(chance: random.Random, dots: bool) -> bytes:
    """A megabyte of lines, of which bodies are pieces; with `dots` one line in forty begins with one."""
    words = ["of", "the", "mail", "and", "server", "that", "is", "in", "header", "for", "message", "delivery"]
    lines = []
    for number in range(15000):
        line = " ".join(chance.choices(words, k=chance.randrange(4, 14)))
        lines.append("." * (dots and number % 40 == 0) + line)
    return "\n".join(lines).encode() + b"\n"


def _write(folder: int, name: str, octets: bytes, uid: int, mode: int) -> None:
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, dir_fd=folder)
    try:
        if ROOT and uid >= 0:
            os.fchown(fd, uid, uid)
        written = 0
        while written < len(octets):
            written += os.write(fd, memoryview(octets)[written:])
    finally:
        os.close(fd)


def _give(path: Path, uid: int) -> None:
    if ROOT:
        os.chown(path, uid, uid)
