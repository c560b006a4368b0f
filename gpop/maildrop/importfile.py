"""
EDGE: a Maildir's file `.unique-ids`: bounded reading, and adding to it for good.

Its directory is its user's, so it is opened without following links and without waiting, and
has to be a regular file of the same user. No file at all means that nothing was imported; any
other trouble is a fault, since default unique-ids in place of imported ones would have every
client download everything again. Reading is executed by the session, as the mail user; adding by
`gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

import errno
import os
import time

from gpop.maildrop import cachefile, imported, lock, system
from gpop.maildrop.errors import MaildropUnavailable
from gpop.maildrop.imported import HIDDEN, MAX_FILE_OCTETS, BadImport, ImportedId, Lookup
from gpop.maildrop.maildir import DRAFT_FLAGS, open_own
from gpop.maildrop.statcache import NO_IMPORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container

    from gpop.maildrop.statcache import Signature

IMPORT_NAME = ".unique-ids"
DRAFT_PREFIX = IMPORT_NAME + "."
# How long an import waits for a session that has the maildrop.
LOCK_WAIT_S = 30.0


def signature(dir_fd: int) -> Signature:
    """
    Return what tells whether the file is still the same one; NO_IMPORT if there is none.

    Raises:
        OSError: it can't be looked at.
    """
    try:
        status = system.stat(IMPORT_NAME, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return NO_IMPORT
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def load(dir_fd: int) -> tuple[bytes, Signature]:
    """
    Return the file's octets and its signature; nothing and NO_IMPORT if there is none.

    Raises:
        OSError: it can't be read, or is no regular file of the user's own, or too large.
    """
    try:
        fd, status = open_own(dir_fd, IMPORT_NAME)
    except FileNotFoundError:
        return b"", NO_IMPORT
    try:
        if status.st_size > MAX_FILE_OCTETS:
            raise OSError(errno.EFBIG, f"{IMPORT_NAME} is larger than {MAX_FILE_OCTETS} octets")
        octets = system.pread(fd, status.st_size + 1, 0)
        if len(octets) != status.st_size:
            raise OSError(errno.EIO, f"{IMPORT_NAME} changed while it was read")
        return octets, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    finally:
        os.close(fd)


class Confirmation:
    """Whether unique-ids were imported for their messages: asked when one is to be sent or removed."""

    __slots__ = ("_dir_fd", "_lookup")

    def __init__(self, dir_fd: int) -> None:
        """`dir_fd` stays the caller's, and open."""
        self._dir_fd = dir_fd
        self._lookup: Lookup | None = None

    def is_imported(self, unique_id: bytes, base: bytes) -> bool:
        """
        Whether the Maildir's file says so.

        Raises:
            MaildropUnavailable: it can't be read (any more).
        """
        try:
            if self._lookup is None:
                octets, found = load(self._dir_fd)
                if found == NO_IMPORT:
                    return False
                self._lookup = Lookup(octets)
            one = self._lookup.of(base)
        except (OSError, BadImport) as error:
            raise unavailable(error) from error
        return one is not None and one.unique_id == unique_id


def unavailable(error: OSError | BadImport) -> MaildropUnavailable:
    """Return the fault that stands for a file that can't be used."""
    number = error.errno if isinstance(error, OSError) else errno.EBADMSG
    return MaildropUnavailable(f"{IMPORT_NAME} can't be used: {error}", number)


def read(dir_fd: int) -> dict[bytes, ImportedId]:
    """
    Return a Maildir's imported unique-ids, by base name; none if there is no file.

    Raises:
        OSError: it can't be read, or is not what it should be.
        BadImport: it is damaged.
    """
    octets, found = load(dir_fd)
    return {} if found == NO_IMPORT else imported.parse(octets)


def add(dir_fd: int, ids: dict[bytes, ImportedId], lock_wait_s: float = LOCK_WAIT_S) -> int:
    """
    Add unique-ids to those of a Maildir, all or none of them; returns how many were not there before.

    When this returns they are on the disk. What is there is never changed. The session lock is
    taken meanwhile, by a session's ways and for two imports at the same time; `dir_fd` must not hold it.

    Raises:
        ImportConflict: a message has another id already, or another message has this one.
        MaildropInUse: a session has had the maildrop for all of `lock_wait_s`.
        OSError, BadImport: what is there can't be read, or the new file not be written.
    """
    lock.lock(dir_fd, lock_wait_s)
    try:
        there = read(dir_fd)
        both = imported.merged(there, ids)
        if len(both) > len(there):
            _write(dir_fd, imported.render(both))
        return len(both) - len(there)
    finally:
        lock.unlock(dir_fd)


def hide(dir_fd: int, shown: dict[bytes, bytes], is_there: Container[bytes] | None) -> None:
    """
    Hide messages (see `imported.hidden`) in a Maildir whose session lock the caller has.

    Raises:
        OSError, BadImport: what is there can't be read, or the new file not be written.
    """
    _write(dir_fd, imported.render(imported.hidden(read(dir_fd), shown, is_there)))


def unhide(dir_fd: int, wanted: Collection[bytes] | None, lock_wait_s: float = LOCK_WAIT_S) -> int:
    """
    Show hidden messages again, those with the unique-ids `wanted` (None: all); returns how many.

    They keep their unique-ids. The session lock is taken meanwhile; `dir_fd` must not hold it.

    Raises:
        MaildropInUse: a session has had the maildrop for all of `lock_wait_s`.
        OSError, BadImport: what is there can't be read, or the new file not be written.
    """
    lock.lock(dir_fd, lock_wait_s)
    try:
        ids = read(dir_fd)
        found = [
            base
            for base, one in ids.items()
            if one.order == HIDDEN and (wanted is None or one.unique_id in wanted)
        ]
        if found:
            _write(dir_fd, imported.render(ids | {base: ImportedId(ids[base].unique_id) for base in found}))
        return len(found)
    finally:
        lock.unlock(dir_fd)


def _write(dir_fd: int, octets: bytes) -> None:
    """Replace the file as a whole, and wait for the disk. Raises OSError: it is what it was."""
    if len(octets) > MAX_FILE_OCTETS:
        raise OSError(errno.EFBIG, f"{IMPORT_NAME} would be larger than {MAX_FILE_OCTETS} octets")
    now_ns = time.time_ns()
    cachefile.remove_old_drafts(dir_fd, now_ns, DRAFT_PREFIX)
    draft = f"{DRAFT_PREFIX}{os.getpid()}.{now_ns:x}"
    fd = system.open_file(draft, DRAFT_FLAGS, 0o600, dir_fd=dir_fd)
    try:
        try:
            view = memoryview(octets)
            while view:
                view = view[system.write(fd, view) :]
            system.fsync(fd)
        finally:
            os.close(fd)
        system.rename(draft, IMPORT_NAME, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        system.unlink(draft, dir_fd=dir_fd)
        raise
    system.fsync(dir_fd)
