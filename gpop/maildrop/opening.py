"""
EDGE: opens a maildrop: is the statcache still true, and if not, what has to be done.

    judge     one read, three stats: hit, refresh or rebuild, and why
    renewal   list what changed, measure what is new, write the cache, or do without it
    Opened    what the session works with until UPDATE, which `update` carries out

docs/statcache.md has the table of states. Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno
import os
import time

from gpop.maildrop import cachefile, importfile, names, reconcile, statcache, system
from gpop.maildrop.cachefile import Draft, Image
from gpop.maildrop.errors import MaildropUnavailable, MessageChanged, MessageUnreadable, MessageVanished
from gpop.maildrop.lock import unlock
from gpop.maildrop.maildir import Maildir, OpenMessage, digest_of
from gpop.maildrop.model import Maildrop
from gpop.maildrop.removal import UNLINK
from gpop.maildrop.renewal import Memory, renew, unwritable
from gpop.maildrop.retention import Retention
from gpop.maildrop.statcache import (
    ESTIMATED,
    FORM_BITS,
    FORM_SHIFT,
    HEADER_OCTETS,
    MEASURED,
    NO_IMPORT,
    NOTHING,
    BadCache,
    Facts,
    Known,
)
from gpop.maildrop.update import Update, UpdateResult
from gpop.pop3 import encoding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpop.maildrop.hit import Hit
    from gpop.maildrop.maildir import Places
    from gpop.maildrop.model import Location
    from gpop.maildrop.statcache import Signature

    Warnings = list[tuple[str, dict[str, int | str]]]

HIT, REFRESH, REBUILD, OFF = "hit", "refresh", "rebuild", "off"
# Reasons of a rebuild that nobody needs to look into.
HARMLESS_REASONS = ("absent", "other_version")
# Reasons of a refresh for which the old cache is only good for what it knows of octets.
DISTRUSTED_REASONS = ("settings_changed", "import_changed")


class Options:
    """What the config decides about maildrops."""

    __slots__ = (
        "audit", "boot_id", "cache", "clock_wait_s", "expire_days", "max_messages", "move_to_cur", "removal",
    )  # fmt: skip

    def __init__(
        self,
        cache: bool = True,
        max_messages: int = 0,
        boot_id: bytes = b"",
        clock_wait_s: float = 0.02,
        move_to_cur: bool = True,
        expire_days: int = -1,
        removal: str = UNLINK,
        audit: bool = False,
    ) -> None:
        self.cache = cache
        self.max_messages = max_messages
        self.boot_id = boot_id  # of this run of the kernel; empty: unknown
        self.clock_wait_s = clock_wait_s
        self.move_to_cur = move_to_cur
        self.expire_days = expire_days  # how long retrieved messages stay; -1: until somebody removes them
        self.removal = removal  # what becomes of the removed ones (removal.py)
        self.audit = audit  # whether each of these is noted

    def with_removal(self, removal: str) -> Options:
        """Return the options for an account that has a setting of its own."""
        return Options(
            self.cache,
            self.max_messages,
            self.boot_id,
            self.clock_wait_s,
            self.move_to_cur,
            self.expire_days,
            removal,
            self.audit,
        )


class Verdict:
    """
    What to do about a cache: `outcome` and the `reason` for the log.

    `image` is there for a hit and a refresh; `signatures` are those of the folders now.
    """

    __slots__ = ("image", "outcome", "reason", "signatures")

    def __init__(
        self, outcome: str, reason: str, signatures: tuple[Signature, Signature], image: Image | None
    ) -> None:
        self.outcome = outcome
        self.reason = reason
        self.signatures = signatures
        self.image = image


def judge(folders: Maildir, options: Options) -> Verdict:
    """
    Decide what the maildrop's cache is worth now. Changes nothing.

    Raises:
        MaildropUnavailable: a folder is missing or can't be looked at.
        OSError: the file of imported unique-ids can't be looked at.
    """
    try:
        image = cachefile.open_image(folders.dir_fd)
    except BadCache as bad:
        return Verdict(REBUILD, bad.reason, folders.signatures(), None)
    try:
        signatures = folders.signatures()
        header = image.header
        if header.max_messages != options.max_messages:
            return Verdict(REFRESH, "settings_changed", signatures, image)
        reason = reconcile.change_reason(header, signatures, importfile.signature(folders.dir_fd))
        if reason != "unchanged":
            return Verdict(REFRESH, reason, signatures, image)
        if image.octets is None and (header.boot_id != options.boot_id or not options.boot_id):
            # A large body that a crash may have torn: read and checked once, then served from memory.
            image.octets = image.load()
            return Verdict(HIT, "unchanged_since_boot", signatures, image)
        return Verdict(HIT, reason, signatures, image)
    except BadCache as bad:
        image.close()
        return Verdict(REBUILD, bad.reason, signatures, None)
    except BaseException:
        image.close()
        raise


def open_maildrop(dir_fd: int, options: Options) -> Opened:
    """
    Open the maildrop of a Maildir; `dir_fd` stays the caller's and has to stay open until `close`.

    Raises:
        MaildropUnavailable: new/ or cur/ can't be read. Never an empty maildrop instead.
    """
    started = time.monotonic()
    folders = Maildir(dir_fd)
    warnings: Warnings = []
    try:
        if options.cache:
            verdict = judge(folders, options)
        else:
            verdict = Verdict(OFF, "disabled", folders.signatures(), None)
        image = verdict.image
        if image is None or verdict.outcome != HIT:
            image = _renewed(folders, options, verdict, warnings)
        elif verdict.reason != "unchanged":
            image = _written_again(folders, options, image, warnings)
    except OSError as error:
        folders.close()
        raise MaildropUnavailable(f"the maildrop can't be read: {error}", error.errno) from error
    except BaseException:
        folders.close()
        raise
    opened = Opened(folders, options, verdict, image, warnings)
    opened.cache_ms = (time.monotonic() - started) * 1000
    return opened


def opened_by_hit(dir_fd: int, options: Options, hit: Hit) -> Opened:
    """
    Return the open maildrop of a hit found by `hit.look`, for the commands that want more than it says.

    Takes over its descriptor. Raises MaildropUnavailable: the statcache has been damaged meanwhile.
    """
    body, fd = hit[-2:]
    try:
        head = system.pread(fd, HEADER_OCTETS, 0)
        header = statcache.parse_header(head, system.fstat(fd).st_size)
    except (OSError, BadCache) as error:
        os.close(fd)
        raise MaildropUnavailable(f"the statcache was damaged while it was in use: {error}") from error
    verdict = Verdict(HIT, "unchanged", (header.new, header.cur), None)
    return Opened(Maildir(dir_fd), options, verdict, Image(header, head + body if body else None, fd), [])


def absent_maildrop() -> Opened:
    """Return the empty maildrop of a user who has no Maildir yet."""
    nowhere = (0, 0, 0, 0)
    octets = b"".join(statcache.assemble(NOTHING, NOTHING, 0, Facts(b"", 0, 0, 0, nowhere, nowhere)))
    image = Image(statcache.Header(octets), octets, -1)
    verdict = Verdict(OFF, "maildir_absent", (nowhere, nowhere), None)
    return Opened(None, Options(cache=False), verdict, image, [])


def _written_again(folders: Maildir, options: Options, image: Image, warnings: Warnings) -> Image:
    """
    Write an image that was checked because another run of the kernel wrote it under this one.

    So it is checked once, not on every poll until mail comes.
    """
    if not options.boot_id or image.octets is None:
        return image
    facts = image.header.facts()
    facts.boot_id = options.boot_id
    draft = None
    try:
        draft = Draft(folders.dir_fd)
        fresh = cachefile.write_cache(draft, cachefile.with_facts(image.octets, facts))
    except OSError as error:
        warnings.append(unwritable(error))
        return image
    finally:
        if draft:
            draft.discard()
    image.close()
    return fresh


def _renewed(folders: Maildir, options: Options, verdict: Verdict, warnings: Warnings) -> Image:
    """Carry out a refresh or rebuild; what proves damaged only now makes the one into the other."""
    old, image = verdict.image, None
    try:
        if old:
            noted: Warnings = []
            try:
                memory = Memory(old, trusted=verdict.reason not in DISTRUSTED_REASONS)
                image = renew(folders, options, memory, noted)
                warnings += noted
                return image
            except BadCache as bad:
                verdict.outcome, verdict.reason = REBUILD, bad.reason
        if verdict.outcome == REBUILD and verdict.reason not in HARMLESS_REASONS:
            warnings.append(("cache_damaged", {"reason": verdict.reason}))
        image = renew(folders, options, Memory(None), warnings)
        return image
    finally:
        if old and old is not image:
            old.close()


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
        self._places: Places = {}
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
        signatures = folders.signatures()
        if signatures != self._places_at:
            # All names at once: a program that renames one message usually renames many.
            self._places, _ = folders.places()
            self._places_at = signatures
        try:
            files = {folders.inode(*place): place for place in self._places.get(location.base, [])}
        except OSError as error:
            raise MessageUnreadable("a message's file can't be looked at", error.errno) from error
        files.pop(None, None)
        if len(files) > 1:
            raise MessageChanged("a message's file was renamed, and several have its base name")
        for place in files.values():
            try:
                return folders.open_message(*place)
            except FileNotFoundError:
                break
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
            known = statcache.take_apart(statcache.cut(self.image.header, self.image.load()))
            octets, flags, stamps = list(known.octets), list(known.flags), list(known.stamps)
            for index, (true_octets, form, stamp) in self._learned.items():
                octets[index] = true_octets
                stamps[index] = stamp
                flags[index] = flags[index] & ~(FORM_BITS | ESTIMATED) | MEASURED | form << FORM_SHIFT
            columns = statcache.render(
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


def _check_twin(fd: int, location: Location) -> None:
    try:
        twin = names.twin_id(location.base, digest_of(fd))
    except OSError as error:
        raise MessageUnreadable("a message's file can't be read", error.errno) from error
    if not names.is_derived(location.unique_id, twin):
        raise MessageChanged("a file does not have the content that its unique-id was made of")
