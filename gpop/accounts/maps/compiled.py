"""
EDGE: a compiled map, of whichever type its file is. Executed by auth's checkers, as root.

The file is opened at the first key that is asked for and closed at the end of a login: so one that was
replaced is seen by the next login, nothing is kept open or in memory, and a million entries cost
nothing at start.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

from gpop.accounts.maps.berkeleydb import BerkeleyDb
from gpop.accounts.maps.cdb import Cdb
from gpop.accounts.maps.lmdbfile import Lmdb, library
from gpop.accounts.maps.mapname import MapName

# postmap by itself takes a moment, and Postfix does not warn of so little.
STALE_AFTER_S = 100
NUL = b"\0"


class Reader(Protocol):
    """An open file; see `BerkeleyDb`, `Cdb`, `Lmdb`."""

    def get(self, key: bytes) -> bytes | None: ...

    def close(self) -> None: ...


class CompiledMap:
    """The compiled map that `map_name` names; see `resolving.Map`."""

    def __init__(self, map_name: MapName) -> None:
        self.map_name = map_name
        self.name = map_name.written
        self._reader: Reader | None = None
        # postmap writes a NUL behind keys and values, but not into CDB; makemap does if it is told to.
        self._endings: tuple[bytes, ...] = (NUL, b"")

    def warm(self) -> None:
        """Load what a checker will need. Raises lmdbfile.LmdbMissing."""
        if self.map_name.kind == "lmdb":
            library()

    def get(self, key: bytes) -> bytes | None:
        """See `resolving.Map`."""
        if self._reader is None:
            self._reader = self._open()
        for ending in self._endings:
            value = self._reader.get(key + ending)
            if value is not None:
                self._endings = (ending,)  # all of a file is written in one of the two forms
                return value.partition(NUL)[0]
        return None

    def close(self) -> None:
        """Close the file, if it is open, and give up its lock."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> Reader:
        kind, name, path = self.map_name.kind, self.name, self.map_name.file
        if kind == "lmdb":
            return Lmdb(name, path)
        if kind == "cdb":
            return Cdb(name, path)
        return BerkeleyDb(name, path, kind)

    def is_stale(self) -> bool:
        """Say whether its source is newer, as far as there is one: somebody forgot to compile it."""
        try:
            made_s = os.stat(self.map_name.file).st_mtime
            changed_s = os.stat(self.map_name.source).st_mtime
        except OSError:
            return False
        return made_s < changed_s < time.time() - STALE_AFTER_S
