"""
What a cache remembers and what the folders hold now, brought together.

Pure: works on names, numbers and stamps; `renewal` brings them and does what has to be done
with files in between (tell apart files with one base name, measure the new ones).
Executed by the session, as the mail user.
"""

from __future__ import annotations

from zlib import crc32

from gpop.maildrop import imported, names, statcache, table
from gpop.maildrop.imported import HIDDEN
from gpop.maildrop.listing import decoded
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.statcache import ESTIMATED, FORM_BITS, LINKED, MEASURED, NAMED, RACY, RACY_ANY, TWIN
from gpop.maildrop.table import Known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpop.maildrop.imported import ImportedId, Lookup
    from gpop.maildrop.listing import Listing
    from gpop.maildrop.statcache import Header, Signature
    from gpop.maildrop.table import Columns

    # (base name, unique-id if it is a twin else b"", name, flags in the table: folder, TWIN, LINKED; inode).
    # Tuples, in this order, because that is the order of messages, and there may be 100,000 of them.
    Found = tuple[bytes, bytes, bytes, int, int]


# Octets of a message that has to be looked into.
UNMEASURED = -1
# The flags of messages of which their own folder says all.
ALL_OF_ONE_FOLDER = bytes(mark for mark in range(256) if not mark & (TWIN | LINKED | ESTIMATED))
# So many messages to append are looked for among all known ones, each by itself (7 ms among 100,000); where
# there are more it is quicker to put everything together anew.
FEW_ADDED = 200
# The flags that stay true whatever name the message gets.
REMEMBERED = MEASURED | FORM_BITS


# Is what is remembered still true?


def racy_flags(clock_ns: int, new: Signature, cur: Signature) -> int:
    """
    Return the header flags of the folders whose signature does not prove anything.

    `clock_ns` is the file system's own clock, read before the folders. A change after that
    gets a stamp of at least `clock_ns`; so a signature whose stamps are all below it can't
    stay the same when the folder changes. One that has `clock_ns` itself may: the change
    came in the same tick. (One from the future, after the clock was set back, proves nothing.)
    """
    flags = 0
    for folder, (_device, _inode, mtime_ns, ctime_ns) in ((NEW, new), (CUR, cur)):
        if max(mtime_ns, ctime_ns) >= clock_ns:
            flags |= RACY[folder]
    return flags


def changed_folders(header: Header, signatures: tuple[Signature, Signature]) -> list[int]:
    """Return the folders that may not be as the cache has them."""
    return [
        folder
        for folder in (NEW, CUR)
        if signatures[folder] != statcache.folder_signature(header, folder) or header.flags & RACY[folder]
    ]


def change_reason(header: Header, signatures: tuple[Signature, Signature], ids: Signature) -> str:
    """
    Return the log's word for why the folders are looked at again; "unchanged" if they need not be.

    `ids` is the signature of the file of imported unique-ids.
    """
    if ids != header.imported:
        return "import_changed"
    new_is_same, cur_is_same = signatures[NEW] == header.new, signatures[CUR] == header.cur
    if not new_is_same:
        return "new_changed" if cur_is_same else "both_changed"
    if not cur_is_same:
        return "cur_changed"
    return "racy" if header.flags & RACY_ANY else "unchanged"


def file_stamp(mtime_ns: int, size: int, clock_ns: int) -> int:
    """
    Return what tells whether a file has the content that it had when it was looked at; 0 if nothing does.

    Whoever writes into a file sets its mtime, and after `clock_ns`, a reading of the file
    system's own clock before the look, he sets it to that at least. A file with a younger
    one may have been looked at before the last write, so it has no stamp.
    """
    if mtime_ns >= clock_ns:
        return 0
    return crc32(b"%d %d" % (mtime_ns, size)) or 1


# Files become messages


def gathered(folder: int, files: Iterable[tuple[bytes, int]]) -> list[Found]:
    """Return files of one folder (name, inode), each as if it were the only one with its base name."""
    return [(name.partition(b":")[0], b"", name, folder, inode) for name, inode in files]


def of_one_base(found: list[Found]) -> dict[bytes, list[Found]]:
    """Return the base names that several files have, with those files."""
    if len({one[0] for one in found}) == len(found):
        return {}
    by_base: dict[bytes, list[Found]] = {}
    for one in found:
        by_base.setdefault(one[0], []).append(one)
    return {base: several for base, several in by_base.items() if len(several) > 1}


def without_hidden(found: list[Found], ids: dict[bytes, ImportedId]) -> list[Found]:
    """Return the files but for those of messages that are kept, and hidden."""
    hidden = {base for base, one in ids.items() if one.order == HIDDEN}
    return [one for one in found if one[0] not in hidden] if hidden else found


def in_order(found: list[Found], ids: dict[bytes, ImportedId] | None = None) -> list[Found]:
    """
    Return the files in message order: by delivery time, then by base name; twins by unique-id.

    Those with an order among the imported `ids` come first, in that.
    """
    if ids:
        return sorted(found, key=lambda one: (imported.order_key(one[0], ids), one))
    if names.have_usual_times([one[0] for one in found]):
        # By base name alone, which is quicker; sorting keeps the order of twins, which are sorted.
        return sorted(found, key=lambda one: one[0])
    return sorted(found, key=lambda one: (names.order_key(one[0]), one))


class Messages:
    """
    Messages in message order, being completed; one entry per message in each list.

    Attributes:
        found, octets, flags, stamps: as in the table, but for UNMEASURED octets.
        doubts: by index, octets and stamp of messages that are in another file than they were: of
            those that are UNMEASURED the ones whose file may turn out to be as it was, restored.
    """

    __slots__ = ("doubts", "flags", "found", "octets", "stamps")

    def __init__(self, found: list[Found], octets: list[int], flags: list[int], stamps: list[int]) -> None:
        self.found = found
        self.octets = octets
        self.flags = flags
        self.stamps = stamps
        self.doubts: dict[int, tuple[int, int]] = {}

    def unmeasured(self) -> list[int]:
        """Return the indexes of messages whose octets nobody has told yet."""
        return [index for index, octets in enumerate(self.octets) if octets == UNMEASURED]

    def without(self, indexes: list[int]) -> Messages:
        """Return the messages but for some, which turned out not to be there any more."""
        if not indexes:
            return self
        gone = set(indexes)
        left = [index for index in range(len(self.found)) if index not in gone]
        return Messages(
            [self.found[index] for index in left],
            [self.octets[index] for index in left],
            [self.flags[index] for index in left],
            [self.stamps[index] for index in left],
        )


def recall(known: Known, found: list[Found]) -> Messages:
    """
    Return the messages with what is known of their octets: from the cache, else from `W=`.

    What the cache has goes first, since it may be a correction of a `W=` that lies. Nothing
    is believed of a twin: its name's `W=` is that of the other one, too. Nor is anything of
    a message that is in another file than it was: a filter has rewritten it.
    """
    if not known.ids:
        claimed = [UNMEASURED if one[3] & TWIN else names.wire_octets(one[0]) for one in found]
        return Messages(found, claimed, [one[3] for one in found], [0] * len(found))
    memory = {
        (names.base_name(name) if mark & NAMED else shown): (octets, mark & REMEMBERED, inode, stamp)
        for shown, octets, mark, name, inode, stamp in zip(
            known.ids, known.octets, known.flags, known.names, known.inodes, known.stamps, strict=True
        )
        if not mark & (TWIN | ESTIMATED)
    }
    all_octets: list[int] = []
    all_flags: list[int] = []
    all_stamps: list[int] = []
    messages = Messages(found, all_octets, all_flags, all_stamps)
    for base, _twin, _name, mark, inode in found:
        if mark & TWIN:
            octets, remembered, stamp = UNMEASURED, 0, 0
        elif base in memory:
            octets, remembered, inode_then, stamp = memory[base]
            if inode != inode_then:
                if stamp:
                    messages.doubts[len(all_octets)] = (octets, stamp)
                octets, remembered, stamp = UNMEASURED, 0, 0
        else:
            octets, remembered, stamp = names.wire_octets(base), 0, 0
        all_octets.append(octets)
        all_flags.append(mark | remembered)
        all_stamps.append(stamp)
    return messages


def shown_ids(messages: Messages, ids: dict[bytes, ImportedId] | None = None) -> list[bytes]:
    """Return the unique-id of each message: the imported one, else the default one."""
    bases = [one[0] for one in messages.found]
    twins = {index: one[1] for index, one in enumerate(messages.found) if one[1]}
    return imported.unique_ids(bases, twins, ids) if ids else names.unique_ids(bases, twins)


def rendered(messages: Messages, ids: list[bytes], before: Columns) -> Columns:
    """
    Return the messages in the form in which the cache holds them, to follow those in `before`.

    `ids` are their unique-ids.
    """
    bases = [one[0] for one in messages.found]
    flags = messages.flags
    if ids != bases:
        named = zip(flags, ids, bases, strict=True)
        flags = [mark if shown == base else mark | NAMED for mark, shown, base in named]
    file_names, inodes = [one[2] for one in messages.found], [one[4] for one in messages.found]
    return table.render(before, Known(ids, messages.octets, flags, file_names, inodes, messages.stamps))


def needs_both_folders(messages: Messages) -> bool:
    """Whether a later refresh has to look at everything: there are twins, links or unreadable files."""
    return bool(bytes(messages.flags).translate(None, ALL_OF_ONE_FOLDER))


# The usual refresh: nothing but new mail


def additions(
    listed: tuple[bytes, bytes], columns: Columns, listings: dict[int, Listing]
) -> list[Found] | None:
    """
    Return the messages to append to what is known, in order, if that is all there is to do.

    None if something known is gone, has another name or is another file, or if a new message does
    not follow the known ones in message order: then everything has to be put together anew.
    What does not come after the last known one has to be what was there, which the checksums
    tell (`listed`, by folder); so nothing is done per known message but to list it.

    Raises:
        BadCache: `columns` are not what `table.render` writes.
    """
    last = table.last_name(columns) if columns.flags else b""
    last_shown = decoded(last)
    added: list[Found] = []
    for folder, listing in listings.items():
        later = [index for index, name in enumerate(listing.names) if name > last_shown]
        new, known = listing.parted(later)
        count = len(columns.flags.translate(None, statcache.ELSEWHERE[folder]))
        if count != len(known.names) or known.checksum() != listed[folder]:
            return None
        added += gathered(folder, new.files())
    added = in_order(added)
    # Strictly after all the known: so it can't have the base name of one of them either.
    follow = not (added and last) or names.order_key(names.base_name(last)) < names.order_key(added[0][0])
    return added if follow and not of_one_base(added) else None


def may_share_id(added: list[Found], columns: Columns) -> bool:
    """
    Whether a message to append may have the unique-id of a known one, which takes a hash on one side.

    To answer yes too often costs time only.
    """
    hashed = [shown for shown in (names.unique_id(one[0]) for one in added) if names.looks_hashed(shown)]
    if not hashed or len(hashed) > FEW_ADDED:
        return bool(hashed)
    uidl = bytes(columns.uidl)
    return any(b" %b\r\n" % shown in uidl for shown in hashed)


def need_import(added: list[Found], columns: Columns, ids: Lookup) -> bool:
    """
    Whether messages to append can't have their default unique-id and order without a look at all others.

    With imported ids the last message need not be the one with the highest name, nor is a unique-id
    always a name: so each new one is looked for. To answer yes too often costs time only.
    """
    if len(added) > FEW_ADDED:
        return True
    uidl, tails = bytes(columns.uidl), b"\0" + bytes(columns.tails)
    for base, _twin, _name, _mark, _inode in added:
        shown = names.unique_id(base)
        if ids.of(base) or ids.has_id(shown) or b" %b\r\n" % shown in uidl:
            return True
        if b"\0%b:" % base in tails or b"\0%b\0" % base in tails:
            return True
    return False
