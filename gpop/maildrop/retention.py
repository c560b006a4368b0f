"""
EDGE: retention: which messages were retrieved and have stayed for so long that UPDATE removes them.

The Maildir's file .gpop-retrieved says when each message was last retrieved, by unique-id. Neither
the flag S nor any time of the message's file can say that: an IMAP reader sets the one, and a
backup that is restored brings the other along. Whatever goes wrong here keeps mail for longer: no
record, a damaged one or one that can't be written mean that nothing was retrieved.

Only UPDATE after a session that retrieved something comes here, so a poll costs nothing for it.
Executed by the session, as the mail user. docs/retention.md argues for all of this.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISREG
from zlib import crc32

from gpop.maildrop import names, system
from gpop.maildrop.errors import MaildropError
from gpop.maildrop.maildir import DRAFT_FLAGS, open_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.maildir import Maildir
    from gpop.maildrop.model import Maildrop

    Record = dict[bytes, int]  # unique-id -> Unix time, in seconds, of the last retrieval

RECORD_NAME = ".gpop-retrieved"
DRAFT_NAME = RECORD_NAME + ".new"
# The first line: format, its version, and the CRC-32 of everything below.
FORMAT_MARK = b"gpop-retrieved 1 "
# As many as a session wants to have in memory; more are not noted, and so not removed.
MAX_ENTRIES = 100_000
MAX_DIGITS = 12
MAX_RECORD_OCTETS = 32 + MAX_ENTRIES * (MAX_DIGITS + 2 + names.MAX_UNIQUE_ID_OCTETS)
DAY_S = 86400


def parse(octets: bytes) -> Record | None:
    """Return what a record says; None for one that is damaged, all of it."""
    first, _, body = octets.partition(b"\n")
    if first != FORMAT_MARK + b"%08x" % crc32(body) or (body and not body.endswith(b"\n")):
        return None
    record = {}
    for line in body.splitlines():
        seconds, _, unique_id = line.partition(b" ")
        if not (seconds.isdigit() and len(seconds) <= MAX_DIGITS and names.is_literal(unique_id)):
            return None
        record[unique_id] = int(seconds)
    return record


def render(record: Record) -> bytes:
    """Return the octets of a record; of too many messages, those that were retrieved longest ago."""
    entries = list(record.items())
    if len(entries) > MAX_ENTRIES:
        entries = sorted(entries, key=lambda entry: entry[1])[:MAX_ENTRIES]
    body = b"".join([b"%d %b\n" % (seconds, unique_id) for unique_id, seconds in entries])
    return FORMAT_MARK + b"%08x\n" % crc32(body) + body


class Retention:
    """
    The retention of one UPDATE: `mark_due` before anything is removed, `keep_record` when it is.

    Messages fall due `days` after they were last retrieved; with 0, when they are. `now_s` is Unix
    time. Never raises: `fault` says what went wrong, "" if nothing did.
    """

    __slots__ = ("_days", "_folders", "_maildrop", "_now_s", "_record", "fault")

    def __init__(self, folders: Maildir, maildrop: Maildrop, days: int, now_s: int) -> None:
        self._folders = folders
        self._maildrop = maildrop
        self._days = days
        self._now_s = now_s
        self._record: Record | None = None  # None: not read, and not to be written
        self.fault = ""

    def mark_due(self) -> int:
        """Mark the messages that are due as deleted; return how many were not marked before."""
        before = len(self._maildrop.marked())
        try:
            for index in self._maildrop.retrieved if self._days == 0 else self._due():
                self._maildrop.mark_deleted(index)
        except (OSError, MaildropError) as error:
            self.fault = _described(error)
        return len(self._maildrop.marked()) - before

    def keep_record(self) -> None:
        """Write the record anew: what was retrieved now is in it, what is marked or gone is not."""
        if self._record is None:
            return
        try:
            _write(self._folders.dir_fd, render(self._record))
        except OSError as error:
            self.fault = _described(error)

    def _due(self) -> list[int]:
        """Read the record, bring it up to date, and return the indexes of what is due."""
        drop = self._maildrop
        record = _read(self._folders.dir_fd)
        if record is None:
            self.fault, record = "damaged", {}
        record.update({drop.unique_id(index): self._now_s for index in drop.retrieved})
        indexes = drop.indexes_of(record)
        due = [index for unique_id, index in indexes.items() if self._is_due(index, record[unique_id])]
        gone = {*due, *drop.marked()}
        self._record = {
            unique_id: record[unique_id] for unique_id, index in indexes.items() if index not in gone
        }
        return due

    def _is_due(self, index: int, retrieved_s: int) -> bool:
        """
        Whether a message was retrieved long enough ago, and its file has been left alone since.

        The file's ctime is when it was made, renamed or restored from a backup: a message
        that has come back stays as long as one that was just retrieved.
        """
        latest_s = self._now_s - self._days * DAY_S
        if retrieved_s > latest_s:
            return False
        try:
            location = self._maildrop.location(index)
            status = self._folders.status(location.folder, location.name)
        except (OSError, MaildropError):
            return False  # not where it was, or not what it was
        return S_ISREG(status.st_mode) and status.st_ctime <= latest_s


def _described(error: OSError | MaildropError) -> str:
    return errno.errorcode.get(error.errno or 0, "changed")


def _read(dir_fd: int) -> Record | None:
    """Return a Maildir's record, an empty one if there is none; None if it is damaged. Raises OSError."""
    try:
        fd, status = open_own(dir_fd, RECORD_NAME)
    except FileNotFoundError:
        return {}
    try:
        return parse(system.pread(fd, min(status.st_size, MAX_RECORD_OCTETS), 0))
    finally:
        os.close(fd)


def _write(dir_fd: int, octets: bytes) -> None:
    """Replace the record of a Maildir as a whole. Raises OSError: it is what it was."""
    try:
        fd = system.open_file(DRAFT_NAME, DRAFT_FLAGS, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        system.unlink(DRAFT_NAME, dir_fd=dir_fd)  # of a session that was killed here
        fd = system.open_file(DRAFT_NAME, DRAFT_FLAGS, 0o600, dir_fd=dir_fd)
    try:
        view = memoryview(octets)
        while view:
            view = view[system.write(fd, view) :]
    finally:
        os.close(fd)
    # Not waited for until the disk has it: what a crash leaves torn is seen to be, by its checksum.
    system.rename(DRAFT_NAME, RECORD_NAME, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
