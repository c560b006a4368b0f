"""
EDGE: an open maildrop: what a session works with until UPDATE, which `update` carries out.

Opens a message's file, wherever others have moved it by now; takes note of what a complete RETR has
shown of it, and writes that down at the end. `opening` makes it. Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno
import os
import time

from gpop.maildrop import cachefile, importfile, names, reconcile, statcache, table
from gpop.maildrop.cachefile import Draft
from gpop.maildrop.errors import MessageChanged, MessageUnreadable, MessageVanished
from gpop.maildrop.lock import unlock
from gpop.maildrop.maildir import OpenMessage, digest_of
from gpop.maildrop.model import Maildrop
from gpop.maildrop.retention import Retention
from gpop.maildrop.statcache import ESTIMATED, FORM_BITS, FORM_SHIFT, MEASURED, NO_IMPORT, BadCache
from gpop.maildrop.stock import look_for
from gpop.maildrop.table import NOTHING, Known
from gpop.maildrop.update import Update, UpdateResult
from gpop.pop3 import encoding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpop.maildrop.cachefile import Image
    from gpop.maildrop.maildir import Maildir, Places
    from gpop.maildrop.model import Location
    from gpop.maildrop.opening import Options, Verdict, Warnings
    from gpop.maildrop.statcache import Signature

# So many times a message that others rename is looked for.
RENAMED_TRIES = 3


class Opened:
    """
    An open maildrop: what the session works with.

    Attributes:
        maildrop: its messages, marks and totals.
        image: where LIST and UIDL responses lie, ready to be sent.
        outcome, reason, cache_ms: for the log.
        warnings: events for the log (name and fields); who has written them clears the list.
    """

    __slots__ = (
        "_are_all_places",
        "_folders",
        "_has_corrections",
        "_learned",
        "_options",
        "_places",
        "_places_at",
        "_removed",
        "_stamps",
        "cache_ms",
        "image",
        "maildrop",
        "outcome",
        "reason",
        "warnings",
    )

    def __init__(
        self,
        folders: Maildir | None,
        options: Options,
        verdict: Verdict,
        image: Image,
        warnings: Warnings,
    ) -> None:
        self._folders = folders  # None: there is no Maildir, and so no message either
        self._options = options
        self._stamps: dict[int, int] = {}  # of the files that were opened, by index
        self._learned: dict[int, tuple[int, int, int]] = {}
        self._has_corrections = False
        self._removed = 0
        self._places: Places = {}  # of all messages, at `_places_at`
        self._are_all_places = False
        self._places_at: tuple[Signature, Signature] | None = None
        self.image = image
        confirmation = None
        if folders and image.header.imported != NO_IMPORT:
            confirmation = importfile.Confirmation(folders.dir_fd).is_imported
        self.maildrop = Maildrop(image, confirmation)
        self.outcome = verdict.outcome
        self.reason = verdict.reason
        self.cache_ms = 0.0
        self.warnings = warnings

    def message(self, index: int) -> OpenMessage:
        """
        Open a message's file, wherever it is by now.

        Raises:
            MessageVanished, MessageUnreadable: as they say.
            MessageChanged: what is there can't be shown to be this message.
        """
        location = self.maildrop.location(index)
        assert self._folders is not None
        try:
            fd, status = self._folders.open_message(location.folder, location.name)
        except FileNotFoundError:
            fd, status = self._open_elsewhere(self._folders, location)
        try:
            if location.is_twin:
                _check_twin(fd, location)
            form = self._form(index, location, status)
        except BaseException:
            os.close(fd)
            raise
        return OpenMessage(fd, status.st_size, form, location.octets, location.folder == names.NEW)

    def _open_elsewhere(self, folders: Maildir, location: Location) -> tuple[int, os.stat_result]:
        """Open the file of a message that another program renamed."""
        for _ in range(RENAMED_TRIES):
            signatures = folders.signatures()
            if signatures != self._places_at:
                # All names at once: a program that renames one message usually renames many.
                self._places, self._are_all_places = look_for(folders, None, self._options.clock_wait_s)
                self._places_at = signatures
            place = _only_place(folders, self._places.get(location.base, []))
            try:
                if place:
                    return folders.open_message(*place)
            except FileNotFoundError:
                pass
            if self._are_all_places and location.base not in self._places:
                break
            self._places_at = None  # renamed once more, or while that was listed
        raise MessageVanished("a message's file is gone", errno.ENOENT)

    def _form(self, index: int, location: Location, status: os.stat_result) -> int:
        """Return what is remembered of a message's form, if its file is what it was and can have it."""
        clock_ns, form, listed = self.image.header.clock_ns, location.form, location.octets
        stamp = reconcile.file_stamp(status.st_mtime_ns, status.st_size, clock_ns)
        self._stamps[index] = stamp
        if not form or not stamp or stamp != location.stamp:
            return encoding.FORM_UNKNOWN
        if status.st_ctime_ns >= clock_ns:  # it may have been written to, and its mtime set back
            return encoding.FORM_UNKNOWN
        if form == encoding.FORM_WIRE and status.st_size != listed:
            return encoding.FORM_UNKNOWN
        if form == encoding.FORM_PLAIN_LF and not status.st_size <= listed <= 2 * status.st_size:
            return encoding.FORM_UNKNOWN
        return form

    def learned(self, index: int, octets: int, form: int) -> None:
        """
        Take note of what a complete RETR has shown of a message.

        What LIST says stays as it is in this session. The cache is corrected by `close`, if
        there are octets to correct; a form alone is not worth a call, or writing it.
        """
        listed = self.maildrop.octets(index)
        if octets != listed and not self._has_corrections:
            self._has_corrections = True  # one event is enough, however many names lie
            fields: dict[str, int | str] = {"message": index + 1, "listed": listed, "octets": octets}
            self.warnings.append(("size_corrected", fields))
        stamp = self._stamps.get(index, 0)
        self._learned[index] = (octets, form if stamp else encoding.FORM_UNKNOWN, stamp)

    @property
    def has_retention(self) -> bool:
        """Whether retrieved messages are removed some day."""
        return self._options.expire_days >= 0

    def update(self, note_removed: Callable[[Location, int, str], object] | None = None) -> UpdateResult:
        """
        Carry out UPDATE (RFC 1939 §6): remove the marked messages, file away the retrieved ones.

        Where there is retention, what is due is marked first, and goes the same way. With audit
        `note_removed` hears of each message that was removed (see `Update`).

        Never raises: what could not be done is in the result and in `warnings`.
        """
        if self._folders is None:
            return UpdateResult()
        noted = note_removed if self._options.audit else None
        work = Update(self._folders, self.maildrop, self.warnings, self._options.removal, noted)
        retention = None
        if self.has_retention and self.maildrop.retrieved:
            retention = Retention(self._folders, self.maildrop, self._options.expire_days, int(time.time()))
            work.result.expired = retention.mark_due()
        work.remove_marked()
        if self._options.move_to_cur:
            work.move_retrieved()
        if retention:
            retention.keep_record()
            if retention.fault:
                self.warnings.append(("retention_failed", {"reason": retention.fault}))
        self._removed = work.result.removed
        return work.result

    def close(self) -> None:
        """Have the cache say what was learned, close everything opened here, give back the session lock."""
        folders, self._folders = self._folders, None
        if folders is None:
            return
        try:
            if self._removed:
                cachefile.note_removed(folders.dir_fd, self.image, self._removed)
            if self._has_corrections and cachefile.is_current(folders.dir_fd, self.image):
                self._correct(folders.dir_fd)
        finally:
            self.image.close()
            folders.close()
            unlock(folders.dir_fd)

    def _correct(self, dir_fd: int) -> None:
        """Write the cache once more, with what was learned; its signatures stay as they were recorded."""
        draft = None
        try:
            known = table.take_apart(table.cut(self.image.header, self.image.load()))
            octets, flags, stamps = list(known.octets), list(known.flags), list(known.stamps)
            for index, (true_octets, form, stamp) in self._learned.items():
                octets[index] = true_octets
                stamps[index] = stamp
                flags[index] = flags[index] & ~(FORM_BITS | ESTIMATED) | MEASURED | form << FORM_SHIFT
            columns = table.render(
                NOTHING, Known(known.ids, octets, flags, known.names, known.inodes, stamps)
            )
            draft = Draft(dir_fd)
            facts = self.image.header.facts()
            facts.removed = min(facts.removed + self._removed, len(octets))
            fresh = statcache.assemble(NOTHING, columns, sum(octets), facts)
            os.close(draft.publish(fresh))
        except (OSError, BadCache):
            return  # the next session that retrieves such a message learns it again
        finally:
            if draft:
                draft.discard()


def _only_place(folders: Maildir, places: list[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    """
    Return a place of the one file that is at all of these; None if none is there any more.

    Raises:
        MessageUnreadable, MessageChanged: they can't be looked at; or there are several files.
    """
    try:
        files = {folders.inode(*place): place for place in places}
    except OSError as error:
        raise MessageUnreadable("a message's file can't be looked at", error.errno) from error
    files.pop(None, None)
    if len(files) > 1:
        raise MessageChanged("a message's file was renamed, and several have its base name")
    return next(iter(files.values()), None)


def _check_twin(fd: int, location: Location) -> None:
    try:
        twin = names.twin_id(location.base, digest_of(fd))
    except OSError as error:
        raise MessageUnreadable("a message's file can't be read", error.errno) from error
    if not names.is_derived(location.unique_id, twin):
        raise MessageChanged("a file does not have the content that its unique-id was made of")
