"""
PURE: which names have logged in from where before.

Somebody who had the right password from this address is let past strangers when more logins wait than can be
checked. Of the address alone that would not do: a guesser may share it with users. Bounded; who has
been away for longest is a stranger again. Holds keyed hashes only. Executed by auth, as root,
and by fronts.
"""

from __future__ import annotations

import hashlib

MAX_KNOWN = 32768  # some 4 MB
DIGEST_OCTETS = 12


class Known:
    """Names by source; `key` is random and secret, so that nobody can choose two that look alike."""

    def __init__(self, key: bytes, most: int = MAX_KNOWN) -> None:
        self._key = key
        self._most = most
        self._seen: dict[bytes, None] = {}  # in order of the last login

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, source: bytes, name: bytes) -> None:
        """`name` has logged in from `source`."""
        digest = self._digest(source, name)
        self._seen.pop(digest, None)
        self._seen[digest] = None
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]

    def has(self, source: bytes, name: bytes) -> bool:
        """Say whether it has, and not too many others since."""
        return self._digest(source, name) in self._seen

    def _digest(self, source: bytes, name: bytes) -> bytes:
        # The source's length keeps ("ab", "c") and ("a", "bc") apart.
        octets = b"%d:%b%b" % (len(source), source, name)
        return hashlib.blake2b(octets, key=self._key, digest_size=DIGEST_OCTETS).digest()
