"""
What a fuzz target is: a function of octets, with an invariant in one sentence and seeds made of
real files.
"""

from __future__ import annotations

import functools
import inspect
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gpop.maildrop.statcache import CHECKED_OCTETS, HEADER_OCTETS
from tests.pop3 import strategies

FUZZ = Path(__file__).parent
TESTS = FUZZ.parent
CORPUS = FUZZ / "corpus"


@dataclass(frozen=True)
class Target:
    """
    One parser under fire.

    Attributes:
        run: takes any octets; raises if the invariant does not hold.
        seeds: what to begin with, beside the files in corpus/NAME.
        examples: of these hypothesis tries so many in CI: fewer where each costs file system calls.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    examples: int = 100

    @property
    def invariant(self) -> str:
        """What holds for any octets, in one sentence."""
        return " ".join((inspect.getdoc(self.run) or "").split())

    def corpus(self) -> list[bytes]:
        """Seeds, and what was kept of earlier runs."""
        kept = sorted((CORPUS / self.name).glob("*"))
        return [*self.seeds, *(path.read_bytes() for path in kept)]


def target(run: Callable[[bytes], None], seeds: Iterable[bytes], examples: int = 100) -> Target:
    """Return the target that `run` is, under its own name."""
    return Target(run.__name__, run, tuple(dict.fromkeys(seeds)), examples)


# What an input is made of


def with_switches(seeds: Iterable[bytes], *switches: int) -> list[bytes]:
    """Return seeds behind each of these octets, for a target whose first octet says how it is run."""
    return [bytes((switch,)) + seed for seed in seeds for switch in switches]


def pieces(octets: bytes, how: int) -> list[bytes]:
    """Cut octets, at places that `how` decides: 0 not at all, 1 singly, else at random."""
    if how < 2:
        return [octets[at : at + 1] for at in range(len(octets))] if how else [octets]
    places = random.Random(how)
    return strategies.pieces(octets, [places.randrange(1 << 16) for _ in range(how % 8 + 1)])


def patched(image: bytes, patches: bytes) -> bytes:
    """Return an image with changed octets: each patch is two octets of place and one of content."""
    changed = bytearray(image)
    for place, octet in struct.iter_unpack("<HB", patches[: len(patches) // 3 * 3]):
        changed[place % len(changed)] = octet
    return bytes(changed)


def with_right_checksums(image: bytes) -> bytes:
    """Return a .statcache as a forger would write it, with both checksums made right."""
    if len(image) < HEADER_OCTETS:
        return image
    header = bytearray(image[:CHECKED_OCTETS])
    struct.pack_into("<I", header, 60, zlib.crc32(image[HEADER_OCTETS:]))
    return bytes(header) + struct.pack("<I", zlib.crc32(header)) + image[HEADER_OCTETS:]


@functools.cache
def folder() -> Path:
    """Return a folder that lasts as long as this process."""
    holder = tempfile.TemporaryDirectory(prefix="gpop-fuzz-")
    _kept.append(holder)
    return Path(holder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def client_octets() -> list[bytes]:
    """What the clients of tests/dialogues send."""
    said = []
    for path in sorted((TESTS / "dialogues").glob("*.txt")):
        lines = [line[3:] for line in path.read_text("utf-8").splitlines() if line.startswith("C: ")]
        said.append(b"".join(line.encode() + b"\r\n" for line in lines)[:2000])
    return said


def messages() -> list[bytes]:
    """The messages of tests/corpus that are not large."""
    found = [path.read_bytes() for path in sorted((TESTS / "corpus").glob("*.eml"))]
    return [message for message in found if len(message) <= 2000]
