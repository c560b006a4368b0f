"""
A real Maildir to test on, and what gpop must make of it: the rules once more, slow and obvious.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpop.maildrop import opening
from gpop.maildrop.opened import Opened
from tests.pop3 import reference

FOLDERS = ("new", "cur")
NOBODY = 65534


class Store:
    """A Maildir as delivery agents, other mail programs and POP3 sessions use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in ("new", "cur", "tmp"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        self.dir_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.deliveries = 0

    def close(self) -> None:
        os.close(self.dir_fd)

    # Other programs

    def deliver(
        self, name: str | bytes, content: bytes = b"Subject: x\n\nhello\n", folder: str = "new"
    ) -> None:
        """Deliver as a delivery agent does: written in tmp/, then renamed."""
        self.deliveries += 1
        draft = os.fsencode(self.path / "tmp" / str(self.deliveries))
        with open(draft, "wb") as file:
            file.write(content)
        os.rename(draft, self.file(folder, name))

    def deliver_many(self, count: int, first: int = 0, folder: str = "new", claim: bool = False) -> None:
        for number in range(first, first + count):
            body = b"Subject: %d\n\n" % number + b"line\n" * (number % 7)
            octets = reference.octets_on_wire(body)
            sizes = f",S={len(body)},W={octets}" if claim else ""
            self.deliver(f"{1700000000 + number}.M{number}P1.host{sizes}", body, folder)

    def fill(self, count: int, folder: str = "cur") -> None:
        """Put many empty messages there, fast."""
        for number in range(count):
            path = self.file(folder, f"{1700000000 + number}.M{number}P1.host,S=0,W=0:2,S")
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))

    def file(self, folder: str, name: str | bytes) -> bytes:
        return os.path.join(os.fsencode(self.path / folder), os.fsencode(name))

    def files(self) -> dict[tuple[str, bytes], bytes]:
        """Content of every regular file in new/ and cur/, by folder and name."""
        found = {}
        for folder in FOLDERS:
            for entry in os.scandir(os.fsencode(self.path / folder)):
                if entry.is_file(follow_symlinks=False) and not entry.name.startswith(b"."):
                    with open(entry.path, "rb") as file:
                        found[folder, entry.name] = file.read()
        return found

    def messages(self) -> list[tuple[bytes, bytes]]:
        """(base name, content) of every file, once however many names it has."""
        inodes = {
            os.stat(self.file(*where)).st_ino: (where[1], octets) for where, octets in self.files().items()
        }
        return [(name.split(b":")[0], octets) for name, octets in inodes.values()]

    @property
    def cache(self) -> Path:
        return self.path / ".statcache"

    def settle(self) -> None:
        """Wait for the file system's clock to step past everything that was delivered."""
        there = [os.fsencode(self.path / folder) for folder in FOLDERS] + [
            self.file(*one) for one in self.files()
        ]
        last = max(os.stat(path).st_ctime_ns for path in there)
        deadline = time.monotonic() + 10
        while True:
            (self.path / "tmp" / "clock").write_bytes(b"")
            if os.stat(self.path / "tmp" / "clock").st_ctime_ns > last:
                return
            assert time.monotonic() < deadline, "the file system's clock stands still"

    def settle_file(self, path: Path) -> None:
        """The same for one file."""
        last = path.stat().st_ctime_ns if path.exists() else 0
        deadline = time.monotonic() + 10
        while True:
            (self.path / "tmp" / "clock").write_bytes(b"")
            if os.stat(self.path / "tmp" / "clock").st_ctime_ns > last:
                return
            assert time.monotonic() < deadline, "the file system's clock stands still"

    # Sessions

    def open(self, **options: object) -> Opened:
        return opening.open_maildrop(self.dir_fd, opening.Options(**options))

    @contextmanager
    def session(self, **options: object) -> Iterator[Opened]:
        opened = self.open(**options)
        try:
            yield opened
        finally:
            opened.close()

    def poll(self, **options: object) -> tuple[str, str]:
        """A session that looks at everything and does nothing; returns outcome and reason."""
        with self.session(**options) as opened:
            listing(opened)
            opened.update()
            return opened.outcome, opened.reason


@contextmanager
def without_root(store: Store) -> Iterator[None]:
    """Permissions mean nothing to root: be the Maildir's owner for a while."""
    if os.geteuid() != 0:
        yield
        return
    for folder, _, files in os.walk(os.fsencode(store.path)):
        for each in (b".", *files):
            os.chown(os.path.join(folder, each), NOBODY, NOBODY, follow_symlinks=False)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def response(opened: Opened, kind: str) -> bytes:
    """A multi-line response as a client receives it."""
    image = opened.image
    pieces = []
    for offset, length in opened.maildrop.listing_segments(kind):
        if image.octets is not None:
            pieces.append(image.octets[offset : offset + length])
        else:
            pieces.append(os.pread(image.fd, length, offset))
            assert len(pieces[-1]) == length
    return b"".join(pieces)


def lines(opened: Opened, kind: str) -> list[tuple[int, bytes]]:
    """A multi-line response, parsed as strictly as can be."""
    status, *rest = response(opened, kind).split(b"\r\n")
    assert status.startswith(b"+OK ")
    assert rest[-2:] == [b".", b""]
    parsed = []
    for line in rest[:-2]:
        number, value = line.split(b" ")
        parsed.append((int(number), value))
    return parsed


def listing(opened: Opened) -> list[tuple[bytes, int]]:
    """What a client is told: (unique-id, octets) in message order, all ways of asking compared."""
    drop = opened.maildrop
    ids, sizes = lines(opened, "UIDL"), lines(opened, "LIST")
    unmarked = [index for index in range(drop.count) if not drop.is_marked(index)]
    assert [number for number, _ in ids] == [number for number, _ in sizes] == [i + 1 for i in unmarked]
    for index, (number, shown), (_, octets) in zip(unmarked, ids, sizes, strict=True):
        assert drop.unique_id_line(index) == b"%d %b" % (number, shown)
        assert drop.scan_line(index) == b"%d %b" % (number, octets)
        assert drop.unique_id(index) == shown
        assert drop.octets(index) == int(octets)
    assert drop.stat() == (len(unmarked), sum(int(octets) for _, octets in sizes))
    return [(shown, int(octets)) for (_, shown), (_, octets) in zip(ids, sizes, strict=True)]


def content(opened: Opened, index: int) -> bytes:
    """The octets of a message's file, as RETR would read them."""
    message = opened.message(index)
    try:
        with open(message.fd, "rb", closefd=False) as file:
            octets = file.read()
    finally:
        os.close(message.fd)
    assert len(octets) == message.file_size
    return octets


# The rules once more


def expected_id(base: bytes) -> bytes:
    if 1 <= len(base) <= 70 and all(0x21 <= octet <= 0x7E for octet in base):
        return base
    return hashlib.blake2b(base, digest_size=20).hexdigest().encode()


def expected_twin_id(base: bytes, octets: bytes) -> bytes:
    digest = hashlib.blake2b(octets, digest_size=32).digest()
    return hashlib.blake2b(base + b"\0" + digest, digest_size=20).hexdigest().encode()


def delivery_time(base: bytes) -> int:
    digits = b""
    for octet in base:
        if octet not in b"0123456789":
            break
        digits += bytes([octet])
    return int(digits or b"0")


def expected(store: Store) -> list[tuple[bytes, int]]:
    """What a client must be told of a maildrop in which no two different files share a base name."""
    found = [(delivery_time(base), base, octets) for base, octets in store.messages()]
    return [(expected_id(base), reference.octets_on_wire(octets)) for _, base, octets in sorted(found)]
