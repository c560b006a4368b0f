"""
EDGE: makes a maildrop's image anew, from what the old cache remembers and what is there now.

Lists what changed (`stock`), puts old and new together (`reconcile`), looks into the files
that nobody has measured yet, and writes the new cache where the Maildir can be written.
Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno

from gpop.maildrop import alarm, cachefile, importfile, names, reconcile, statcache, table
from gpop.maildrop.cachefile import Draft, Image
from gpop.maildrop.errors import MaildropUnavailable
from gpop.maildrop.imported import BadImport, Lookup
from gpop.maildrop.maildir import FILE_FAULTS
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.statcache import (
    ESTIMATED,
    FORM_SHIFT,
    LINKED,
    LIST_BOTH,
    MEASURED,
    NO_IMPORT,
    RACY,
    RACY_IDS,
    TWIN,
    Facts,
)
from gpop.maildrop.stock import Stock, look_for, take_stock
from gpop.maildrop.table import NOTHING, NOTHING_KNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.maildir import Maildir
    from gpop.maildrop.opening import Options, Warnings
    from gpop.maildrop.reconcile import Found, Messages
    from gpop.maildrop.statcache import Header, Octets, Signature
    from gpop.maildrop.table import Columns, Known

# So many times files that vanished before they were measured are looked for under other names. It
# takes a program that renames all the time to need more than two, and then waiting is no answer.
MEASURE_TRIES = 8
# What stands for the content of a twin that can't be read.
NO_DIGEST = bytes(names.CONTENT_DIGEST_OCTETS)


class Memory:
    """
    What is left of the old cache.

    Attributes:
        image: it, or None if there is none that can be used.
        header: of `image`; None if both folders are to be listed whatever their signatures say.
        columns: its messages, as they lie in the file.
    """

    __slots__ = ("_known", "columns", "header", "image")

    def __init__(self, image: Image | None, trusted: bool = True) -> None:
        """Read and check `image`; not `trusted`: only for what it knows of octets. Raises BadCache."""
        self.image = image
        self.header: Header | None = None
        self.columns: Columns = NOTHING
        self._known: Known | None = None if image else NOTHING_KNOWN
        if image:
            self.columns = table.cut(image.header, image.load())
            if trusted and not image.header.flags & (LIST_BOTH | RACY_IDS):
                self.header = image.header

    def known(self) -> Known:
        """Return its messages one by one: what new mail alone does not take. Raises BadCache."""
        if self._known is None:
            self._known = table.take_apart(self.columns)
        return self._known


def renew(folders: Maildir, options: Options, memory: Memory, warnings: Warnings) -> Image:
    """
    Return the maildrop's new image, written to the Maildir if that can be written.

    Raises:
        BadCache: the memory turned out to be none; nothing was written.
        MaildropUnavailable: a folder can't be listed, or does not hold still; or `.unique-ids` is damaged.
        OSError: a file can't be looked at, and that is not the file's own fault.
    """
    draft = None
    try:
        if options.cache:
            try:
                draft = Draft(folders.dir_fd)
                if memory.image is None:
                    cachefile.remove_old_drafts(folders.dir_fd, draft.clock_ns())
            except OSError as error:
                warnings.append(unwritable(error))
        for _ in range(MEASURE_TRIES):
            noted: Warnings = []
            try:
                image = _Renewal(folders, options, memory, draft, noted).image()
            except _TwinRenamed:
                continue
            warnings += noted
            return image
        raise _never_still()
    except BadImport as error:  # its checksum is right, and its lines are not: no program of ours wrote it
        raise importfile.unavailable(error) from error
    finally:
        if draft:
            draft.discard()


def unwritable(error: OSError) -> tuple[str, dict[str, int | str]]:
    """Return the event of a cache that could not be written."""
    return "cache_unwritable", {"reason": errno.errorcode.get(error.errno or 0, "unknown")}


class _TwinRenamed(Exception):
    """
    A file that shares its base name is no longer where it was listed: everything is to be listed once more.

    Only all its files together say which unique-id each of them has.
    """


def _never_still() -> MaildropUnavailable:
    return MaildropUnavailable("messages are renamed faster than they can be read", errno.EBUSY)


class _Imported:
    """
    What was imported into the maildrop: never nothing because it can't be read.

    Attributes:
        lookup: None if there is no such file.
        signature: of the file.
        racy: header flag, if the signature does not prove that the file is still the same.
    """

    __slots__ = ("lookup", "racy", "signature")

    def __init__(self, dir_fd: int, draft: Draft | None) -> None:
        """Read it, after the clock of `draft`. Raises MaildropUnavailable, OSError."""
        self.lookup: Lookup | None = None
        self.signature: Signature
        self.racy = 0
        clock_ns = draft.clock_ns() if draft else 0
        try:
            octets, self.signature = importfile.load(dir_fd)
            if self.signature != NO_IMPORT:
                self.lookup = Lookup(octets)
                self.racy = RACY_IDS if max(self.signature[2:]) >= clock_ns else 0
        except (OSError, BadImport) as error:
            raise importfile.unavailable(error) from error


class _Renewal:
    """The steps of `renew`."""

    __slots__ = ("_draft", "_folders", "_imported", "_listed", "_memory", "_options", "_stock", "_warnings")

    def __init__(
        self, folders: Maildir, options: Options, memory: Memory, draft: Draft | None, warnings: Warnings
    ) -> None:
        self._folders = folders
        self._options = options
        self._memory = memory
        self._draft = draft
        self._warnings = warnings
        self._imported = _Imported(folders.dir_fd, draft)
        if memory.header and memory.header.imported != self._imported.signature:
            memory.header = None  # any message may have another unique-id, and another place
        self._stock = take_stock(folders, draft, options.clock_wait_s, self._to_list)
        # The checksums of the listings that the new cache is made of.
        self._listed = [*(memory.header.listed if memory.header else statcache.NOTHING_LISTED)]
        for folder, listing in self._stock.listings.items():
            self._listed[folder] = listing.checksum()

    def _to_list(self, stock: Stock) -> list[int]:
        if self._memory.header is None:
            return [NEW, CUR]
        return reconcile.changed_folders(self._memory.header, stock.signatures)

    def image(self) -> Image:
        for folder in self._stock.listings:
            entries = self._folders.skipped[folder]
            if entries:
                fields: dict[str, int | str] = {"folder": names.FOLDERS[folder], "entries": entries}
                self._warnings.append(("message_skipped", fields))
        added = self._added()
        return self._put_together() if added is None else self._extended(added)

    # The usual refresh: nothing but new mail

    def _added(self) -> list[Found] | None:
        """Return the messages to append to the known ones; None if there is more to do than that."""
        memory = self._memory
        if memory.header is None:
            return None
        added = reconcile.additions(memory.header.listed, memory.columns, self._stock.listings)
        if not added:
            return added
        if memory.header.count + len(added) > self._limit():
            return None
        lookup = self._imported.lookup
        if lookup and reconcile.need_import(added, memory.columns, lookup):
            return None
        return None if reconcile.may_share_id(added, memory.columns) else added

    def _extended(self, added: list[Found]) -> Image:
        header, old = self._memory.header, self._memory.image
        assert header is not None and old is not None
        messages = self._measured(reconcile.recall(NOTHING_KNOWN, added))
        facts = self._facts(reconcile.needs_both_folders(messages))
        if not added and _says(header, facts):
            return old  # nothing to write, and nothing that a later session could learn from it
        before = self._memory.columns
        octets = header.octets + sum(messages.octets)
        columns = reconcile.rendered(messages, reconcile.shown_ids(messages), before)
        return self._written(statcache.assemble(before, columns, octets, facts))

    # Everything else

    def _put_together(self) -> Image:
        found: list[Found] = []
        for folder in (NEW, CUR):
            listing = self._stock.listings.pop(folder, None)  # its memory is wanted for what is made of it
            files = listing.files() if listing else self._memory.known().files_in(folder).items()
            found += reconcile.gathered(folder, files)
        imported = self._imported.lookup.all() if self._imported.lookup else None
        if imported:
            found = reconcile.without_hidden(found, imported)
        found = reconcile.in_order(self._told_apart(found), imported)
        messages = self._measured(reconcile.recall(self._memory.known(), found[: self._limit()]))
        facts = self._facts(len(found) > self._limit() or reconcile.needs_both_folders(messages))
        ids = reconcile.shown_ids(messages, imported)
        self._sound_alarm(messages, ids)
        columns = reconcile.rendered(messages, ids, NOTHING)
        return self._written(statcache.assemble(NOTHING, columns, sum(messages.octets), facts))

    def _sound_alarm(self, messages: Messages, ids: list[bytes]) -> None:
        """Have it logged if messages have other unique-ids than they had."""
        old = self._memory.image
        if old is None:
            return
        counts = alarm.changes(self._memory.known(), old.header.removed, messages, ids)
        if counts:
            same = old.header.imported == self._imported.signature
            reason = "unexplained" if same else "import_changed"
            self._warnings.append(("unique_ids_changed", {**counts, "reason": reason}))

    def _limit(self) -> int:
        """How many messages are served; the format has a limit of its own."""
        return min(self._options.max_messages or statcache.MAX_MESSAGES, statcache.MAX_MESSAGES)

    def _told_apart(self, found: list[Found]) -> list[Found]:
        """Return the files with those of one base name made into one message, or into twins."""
        several = reconcile.of_one_base(found)
        if not several:
            return found
        apart = [one for one in found if one[0] not in several]
        for base, files in several.items():
            apart += self._twins(base, files)
        return apart

    def _twins(self, base: bytes, files: list[Found]) -> list[Found]:
        by_inode: dict[tuple[int, int], list[Found]] = {}
        for one in files:
            inode = self._folders.inode(one[3], one[2])
            if inode:  # else it may be an older name of a file whose new one was listed as well
                by_inode.setdefault(inode, []).append(one)
        missing = {one[4] for one in files} - {one[4] for links in by_inode.values() for one in links}
        if not by_inode and len(missing) == 1:
            return files[-1:]  # one file, renamed once more: it is looked for when somebody wants it
        if missing:
            raise _TwinRenamed
        if len(by_inode) == 1:
            return [_one_of(links) for links in by_inode.values()]
        twins: list[Found] = []
        counts: dict[bytes, int] = {}
        for inode in sorted(by_inode):  # stays the same when flags change: identical twins keep their -2, -3
            _, _, name, mark, listed_inode = _one_of(by_inode[inode])
            shown = names.twin_id(base, self._digest(mark & CUR, name))
            counts[shown] = counts.get(shown, 0) + 1
            suffix = b"-%d" % counts[shown] if counts[shown] > 1 else b""
            twins.append((base, shown + suffix, name, mark | TWIN, listed_inode))
        return sorted(twins)

    def _digest(self, folder: int, name: bytes) -> bytes:
        try:
            return self._folders.content_digest(folder, name)
        except FileNotFoundError:
            raise _TwinRenamed from None
        except OSError as error:
            if error.errno not in FILE_FAULTS:
                raise
            self._try_again(folder, error)
            return NO_DIGEST

    # Octets

    def _measured(self, messages: Messages) -> Messages:
        """Return the messages with all octets known, without those that were removed meanwhile."""
        pending = messages.unmeasured()
        gone: list[int] = []
        for _ in range(MEASURE_TRIES):
            pending = [index for index in pending if not self._measure(messages, index)]
            if not pending:
                return messages.without(gone)
            removed = self._relocate(messages, pending)
            gone += removed
            pending = [index for index in pending if index not in removed]
        if pending:
            raise _never_still()
        return messages.without(gone)

    def _relocate(self, messages: Messages, vanished: list[int]) -> set[int]:
        """Look for vanished files under other names; returns the indexes of those that are gone."""
        self._listed = [*statcache.NOTHING_LISTED]  # not just what was listed will be in the cache
        bases = {messages.found[index][0] for index in vanished}
        places, certain = look_for(self._folders, bases, self._options.clock_wait_s)
        gone = set()
        for index in vanished:
            base, twin, _, mark, inode = messages.found[index]
            if twin:
                raise _TwinRenamed
            if base in places:
                folder, name = places[base][-1]
                messages.found[index] = (base, twin, name, mark & ~CUR | folder, inode)
                messages.flags[index] = messages.flags[index] & ~CUR | folder
            elif certain:
                gone.add(index)
        return gone

    def _measure(self, messages: Messages, index: int) -> bool:
        """Look into a message's file; False if it is not there."""
        _, _, name, mark, _ = messages.found[index]
        try:
            if index in messages.doubts and self._is_restored(messages, index):
                return True
            octets, form, mtime_ns, size = self._folders.measure(mark & CUR, name)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in FILE_FAULTS:
                raise
            return self._estimate(messages, index, error)
        messages.octets[index] = octets
        stamp = reconcile.file_stamp(mtime_ns, size, self._stock.clock_ns)
        messages.stamps[index] = stamp
        messages.flags[index] |= MEASURED | (form << FORM_SHIFT if stamp else 0)
        return True

    def _is_restored(self, messages: Messages, index: int) -> bool:
        """
        Whether a message that has another inode has the mtime and size of the file that was measured.

        Then it came back from a backup, or its file system does not keep inode numbers: its octets are
        believed, and not its form, because to be wrong about that would break the dialogue.
        """
        _, _, name, mark, _ = messages.found[index]
        octets, stamp = messages.doubts[index]
        status = self._folders.status(mark & CUR, name)
        if reconcile.file_stamp(status.st_mtime_ns, status.st_size, self._stock.clock_ns) != stamp:
            return False
        messages.octets[index] = octets
        messages.stamps[index] = stamp
        messages.flags[index] |= MEASURED
        return True

    def _estimate(self, messages: Messages, index: int, fault: OSError) -> bool:
        """Give a message that can't be read the octets of its file: it stays listed."""
        base, _, name, mark, _ = messages.found[index]
        octets = names.file_octets(base)
        if octets < 0:
            try:
                octets = self._folders.status(mark & CUR, name).st_size
            except FileNotFoundError:
                return False
        messages.octets[index] = octets
        messages.flags[index] |= ESTIMATED
        self._try_again(mark & CUR, fault)
        return True

    def _try_again(self, folder: int, fault: OSError) -> None:
        """Have the next session look again; a file without permission waits for a change of its folder."""
        if fault.errno == errno.EIO:
            self._stock.racy |= RACY[folder]

    # Writing

    def _facts(self, list_both: bool) -> Facts:
        stock, options = self._stock, self._options
        flags = stock.racy | self._imported.racy | (LIST_BOTH if list_both else 0)
        new, cur = stock.signatures
        listed = (self._listed[NEW], self._listed[CUR])
        signature = self._imported.signature
        return Facts(
            options.boot_id, options.max_messages, stock.clock_ns, flags, new, cur, listed, signature
        )

    def _written(self, pieces: list[Octets]) -> Image:
        """Return the image, from the Maildir if it can be written there, else from memory."""
        if self._draft:
            try:
                return cachefile.write_cache(self._draft, pieces)
            except OSError as error:
                self._warnings.append(unwritable(error))
        octets = b"".join(pieces)
        return Image(statcache.Header(octets), octets, -1)


def _one_of(links: list[Found]) -> Found:
    """Return the file that stands for several names of one inode: the one in cur/, if there is one."""
    base, twin, name, mark, inode = max(links, key=lambda one: (one[3] & CUR, one[2]))
    return base, twin, name, mark | LINKED if len(links) > 1 else mark, inode


def _says(header: Header, facts: Facts) -> bool:
    """Whether a cache with these facts would tell the next session what this header tells it already."""
    return (header.flags, header.new, header.cur, header.boot_id) == (
        facts.flags,
        facts.new,
        facts.cur,
        facts.boot_id,
    )
