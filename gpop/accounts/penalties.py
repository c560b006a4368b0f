"""
PURE: who has to wait before the next login, and how long.

After a failure the next attempt from the same source waits 2, 4, 8, then 15 seconds; a
source is one IPv4 address or one IPv6 /64, which is what one customer has. The same wrong
name and password again raises nothing: a mail client with an old password repeats itself,
a guesser does not. Nothing but time forgives: otherwise a guesser with one account of his
own could buy himself free. Bounded; where it overflows, who has been quiet longest is
forgotten first. Holds no password, only keyed hashes. Time comes in as an argument.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from gpop.accounts.addresses import Networks

DELAYS_S = (0.0, 2.0, 4.0, 8.0, 15.0)
MAX_SOURCES = 32768  # some 25 MB when every one of them keeps guessing
MAX_REMEMBERED = 8  # wrong (name, password) pairs per source: the stale clients behind one NAT
FINGERPRINT_OCTETS = 8


class _Penalty:
    __slots__ = ("level", "raised_s", "seen")

    def __init__(self) -> None:
        self.level = 0
        self.raised_s = 0.0
        self.seen: list[bytes] = []


class PenaltyTable:
    """
    Levels by source. `key` is random and secret: it keys the hashes of wrong passwords.

    `trusted` are networks that never wait, a webmail host for one: its users share an address.
    """

    def __init__(
        self, key: bytes, trusted: Sequence[str], forget_s: float, max_sources: int = MAX_SOURCES
    ) -> None:
        self._key = key
        self._forget_s = forget_s
        self._max_sources = max_sources
        self._trusted = Networks(trusted)
        self._penalties: OrderedDict[bytes, _Penalty] = OrderedDict()

    def __len__(self) -> int:
        return len(self._penalties)

    def is_trusted(self, peer: str) -> bool:
        """Say whether `peer` is in a trusted network."""
        return peer in self._trusted

    def delay_s(self, source: bytes, now: float) -> float:
        """Return how long an attempt from `source` has to wait, 0.0 for not at all."""
        penalty = self._penalties.get(source)
        if penalty is None:
            return 0.0
        if now - penalty.raised_s >= self._forget_s:
            del self._penalties[source]
            return 0.0
        return DELAYS_S[penalty.level]

    def failed(self, source: bytes, name: bytes, password: bytes, now: float) -> float:
        """Note a refused login; return the new delay if this raised it, else 0.0."""
        fingerprint = self._fingerprint(name, password)
        self.delay_s(source, now)  # forgets what is old
        penalty = self._penalties.setdefault(source, _Penalty())
        if fingerprint in penalty.seen:
            return 0.0
        penalty.seen.append(fingerprint)
        del penalty.seen[:-MAX_REMEMBERED]
        was = penalty.level
        penalty.level = min(was + 1, len(DELAYS_S) - 1)
        penalty.raised_s = now
        self._penalties.move_to_end(source)
        self._forget(now)
        return DELAYS_S[penalty.level] if penalty.level > was else 0.0

    def _forget(self, now: float) -> None:
        """Drop who is longest quiet, if it is long enough, or there is no room: two for each that comes."""
        for _ in range(2):
            oldest = next(iter(self._penalties.values()))
            if len(self._penalties) > self._max_sources or now - oldest.raised_s >= self._forget_s > 0:
                self._penalties.popitem(last=False)

    def _fingerprint(self, name: bytes, password: bytes) -> bytes:
        # The name's length keeps ("ab", "c") and ("a", "bc") apart.
        octets = b"%d:%b%b" % (len(name), name, password)
        return hashlib.blake2b(octets, key=self._key, digest_size=FINGERPRINT_OCTETS).digest()
