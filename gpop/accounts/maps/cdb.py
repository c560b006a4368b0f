"""
EDGE: looking up a key in a CDB file (D. J. Bernstein's "constant database").

The format is one page of text: 256 hash tables behind the records, their places in the first 2,048
octets, numbers little-endian. A file is written beside the old one and renamed, so there is nothing
to lock. Everything a file says is checked against its size; a look-up is bounded.
"""

from __future__ import annotations

import struct

from gpop.accounts.maps.octets import MapOctets

PAIR = struct.Struct("<II")
TABLES = 256
SLOTS_AT_ONCE = 64
MAX_SLOTS_LOOKED_AT = 65536
MAX_VALUE_OCTETS = 65536


class Cdb:
    """An open CDB file."""

    def __init__(self, name: str, path: str) -> None:
        """Raises MapError."""
        self._octets = MapOctets(name, path)
        if self._octets.size < TABLES * PAIR.size:
            self.close()
            raise self._octets.damaged(f"{self._octets.size} octets are no CDB file")

    def close(self) -> None:
        """Close the file."""
        self._octets.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the first value of `key`, None if there is none. Raises MapError."""
        wanted = _hash(key)
        place, slots = PAIR.unpack(self._octets.read(wanted % TABLES * PAIR.size, PAIR.size))
        if not slots:
            return None
        if place + slots * PAIR.size > self._octets.size:
            raise self._octets.damaged("a hash table ends behind the end of the file")
        first = (wanted >> 8) % slots
        looked_at = 0
        # From the slot of the key to the end of the table, then from its begin.
        for begin, end in ((first, slots), (0, first)):
            while begin < end:
                count = min(SLOTS_AT_ONCE, end - begin)
                table = self._octets.read(place + begin * PAIR.size, count * PAIR.size)
                for found, record in PAIR.iter_unpack(table):
                    if not record:
                        return None
                    if found == wanted and (value := self._record(record, key)) is not None:
                        return value
                begin += count
                looked_at += count
                if looked_at > MAX_SLOTS_LOOKED_AT:
                    raise self._octets.damaged("a hash table without an empty slot")
        return None

    def _record(self, place: int, key: bytes) -> bytes | None:
        """Return the value of the record at `place`, if it is that of `key`."""
        key_octets, value_octets = PAIR.unpack(self._octets.read(place, PAIR.size))
        if key_octets != len(key) or self._octets.read(place + PAIR.size, key_octets) != key:
            return None
        if value_octets > MAX_VALUE_OCTETS:
            raise self._octets.error(f"a value of {value_octets} octets, at most {MAX_VALUE_OCTETS} are read")
        return self._octets.read(place + PAIR.size + key_octets, value_octets)


def _hash(key: bytes) -> int:
    number = 5381
    for octet in key:
        number = (number * 33 & 0xFFFFFFFF) ^ octet
    return number
