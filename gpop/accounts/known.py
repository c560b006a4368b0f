"""
PURE: which names have logged in from where before.

Somebody who had the right password from this address is let past strangers when more logins wait than can be
checked. Of the address alone that would not do: a guesser may share it with users. Bounded; who has
been away for longest is a stranger again. Holds keyed hashes only. Executed by auth, as root,
and by fronts.
"""

from __future__ import annotations

import hashlib

# 32,768 names, in 384 KiB.
ROWS, NAMES_PER_ROW = 4096, 8
DIGEST_OCTETS = 12
ROW_OCTETS = NAMES_PER_ROW * DIGEST_OCTETS
_ROW_NUMBER_OCTETS = 4


class Known:
    """
    Names by source; `key` is random and secret, so that nobody can choose two that look alike.

    One piece of memory, however many they are: a small object for each, made while thousands of
    connections come and go, would keep a page of the memory that those had. Each name has a row where it may
    stand, and in a row the last to log in is the first.
    """

    def __init__(self, key: bytes, rows: int = ROWS) -> None:
        self._key = key
        self._rows = rows
        self._table = bytearray(rows * ROW_OCTETS)

    def note(self, source: bytes, name: bytes) -> None:
        """`name` has logged in from `source`."""
        at, digest = self._place(source, name)
        row = self._table[at : at + ROW_OCTETS]
        others = [row[i : i + DIGEST_OCTETS] for i in range(0, ROW_OCTETS, DIGEST_OCTETS)]
        kept = [other for other in others if other != digest][: NAMES_PER_ROW - 1]
        self._table[at : at + ROW_OCTETS] = b"".join([digest, *kept])

    def has(self, source: bytes, name: bytes) -> bool:
        """Say whether it has, and not too many others since."""
        at, digest = self._place(source, name)
        # Across the border of two others it is not found by chance: 12 octets of a keyed hash.
        return self._table.find(digest, at, at + ROW_OCTETS) >= 0

    def _place(self, source: bytes, name: bytes) -> tuple[int, bytes]:
        """Where the row of a name begins, and what stands for it there."""
        # The source's length keeps ("ab", "c") and ("a", "bc") apart.
        octets = b"%d:%b%b" % (len(source), source, name)
        size = _ROW_NUMBER_OCTETS + DIGEST_OCTETS
        digest = hashlib.blake2b(octets, key=self._key, digest_size=size).digest()
        row = int.from_bytes(digest[:_ROW_NUMBER_OCTETS]) % self._rows
        return row * ROW_OCTETS, digest[_ROW_NUMBER_OCTETS:]
