"""
EDGE: LMDB files as `postmap lmdb:` writes them: looking up a key, and writing one.

LMDB itself does it (py-lmdb, the extra `maps`). It maps the file and believes what stands in its
pages, so a damaged one may end the process by SIGBUS or SIGSEGV. Therefore: what a truncated file
would do is found out before (`_check_head`), auth never looks up anything itself, only its
checkers do, one process per login, and commands do it in a process of their own (apart.py).
Executed as root.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Mapping
from typing import Any

from gpop import programs
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.octets import MapOctets

# Two metadata pages; see MDB_meta in lmdb.c. Numbers are in the machine's own order.
MAGIC = 0xBEEFC0DE
VERSION = 1
META = struct.Struct("=II Q Q")  # magic, version, fixed address, size of the mapping; from 16 on
META_AT, PAGE_SIZE_AT, LAST_PAGE_AT, TXN_AT = 16, 40, 136, 144
META_OCTETS = 152
PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MAX_KEY_OCTETS = 511  # what LMDB is built with
FILE_MODE = 0o644  # as postmap makes them
NUL = b"\0"  # postmap writes it behind keys and values


class LmdbMissing(MapError):
    """There is no py-lmdb."""


def library() -> Any:
    """Return the module. Raises LmdbMissing."""
    try:
        import lmdb
    except ImportError:
        raise LmdbMissing(
            f"lmdb: the Python package lmdb is not installed; `{programs.installing('maps')}` brings it"
        ) from None
    return lmdb


class Lmdb:
    """An open LMDB file, under a shared lock until it is closed."""

    def __init__(self, name: str, path: str) -> None:
        """Raises MapError."""
        self._lmdb = library()
        # Postfix opens its maps without LMDB's own locks, and locks the file with fcntl instead.
        self._octets = MapOctets(name, path, locked=True)
        try:
            self._check_head()
            self._environment = self._lmdb.open(
                path, subdir=False, readonly=True, lock=False, create=False, readahead=False, max_spare_txns=0
            )
        except self._lmdb.Error as error:
            self._octets.close()
            raise self._octets.damaged(str(error)) from None
        except BaseException:
            self._octets.close()
            raise

    def close(self) -> None:
        """Close the file, and give up the lock."""
        self._environment.close()
        self._octets.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if there is none. Raises MapError."""
        if not 0 < len(key) <= MAX_KEY_OCTETS:
            return None
        try:
            with self._environment.begin() as transaction:
                value: bytes | None = transaction.get(key)
        except self._lmdb.Error as error:
            raise self._octets.damaged(str(error)) from None
        return value

    def _check_head(self) -> None:
        """Check that all pages the newer metadata page counts are there. Raises MapError."""
        newest = (-1, 0)
        octets = self._octets
        page_octets = struct.unpack("=I", octets.read(PAGE_SIZE_AT, 4))[0]
        if page_octets not in PAGE_SIZES:
            raise octets.damaged("no LMDB file of this kind of machine")
        for begin in (0, page_octets):
            meta = octets.read(begin, META_OCTETS)
            magic, version, _, _ = META.unpack_from(meta, META_AT)
            if magic != MAGIC or version != VERSION:
                raise octets.damaged("no LMDB file of this kind of machine and version")
            last_page, transaction = struct.unpack_from("=QQ", meta, LAST_PAGE_AT)
            newest = max(newest, (transaction, last_page))
        if (newest[1] + 1) * page_octets > octets.size:
            raise octets.damaged(f"it should have {newest[1] + 1} pages, and has {octets.size} octets")


def write(path: str, values: Mapping[bytes, bytes]) -> None:
    """
    Put an LMDB file with `values` at `path`: complete, or not at all.

    Postfix can read it, and update it. A file that is there gives owner and mode to the new one.

    Raises:
        LmdbMissing, MapError: from the library.
        OSError: from the file system.
    """
    lmdb = library()
    temporary = f"{path}.{secrets.token_hex(6)}"
    os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        try:
            _fill(lmdb, temporary, values)
        except lmdb.Error as error:
            raise MapError(f"lmdb: {error}") from None
        _dress_as(path, temporary)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _fill(lmdb: Any, path: str, values: Mapping[bytes, bytes]) -> None:
    octets = sum(len(key) + len(value) + 32 for key, value in values.items())
    # Thrice, for pages that are not full; the file gets as large as its pages, not as this.
    room = 3 * octets + 1024 * 1024
    environment = lmdb.open(path, subdir=False, lock=False, map_size=room - room % 4096)
    with environment, environment.begin(write=True) as transaction, transaction.cursor() as cursor:
        # In the order of the file, pages are filled one after the other.
        cursor.putmulti(
            ((key + NUL, values[key] + NUL) for key in sorted(values, key=_with_nul)), append=True
        )


def _with_nul(key: bytes) -> bytes:
    return key + NUL


def _dress_as(path: str, temporary: str) -> None:
    """Give the new file owner and mode of the old one, and have it on the disk."""
    fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            os.fchmod(fd, FILE_MODE)
        else:
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, status.st_mode & 0o7777)
        os.fsync(fd)
    finally:
        os.close(fd)
