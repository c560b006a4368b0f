"""
What a cache remembers and what the folders hold now, brought together.

Pure: works on names, numbers and stamps; `opening` brings them and does what has to be done
with files in between (tell apart files with one base name, measure the new ones).
Executed by the session, as the mail user.
"""

from __future__ import annotations

from gpop.maildrop import names, statcache
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.statcache import ESTIMATED, FORM_BITS, LINKED, MEASURED, NAMED, RACY, TWIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpop.maildrop.statcache import Columns, Header, Known, Signature

    # (base name, unique-id if it is a twin else b"", name, flags in the table: folder, TWIN, LINKED).
    # Tuples, in this order, because that is the order of messages, and there may be 100,000 of them.
    Found = tuple[bytes, bytes, bytes, int]


# Octets of a message that has to be looked into.
UNMEASURED = -1
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


def change_reason(header: Header, signatures: tuple[Signature, Signature]) -> str:
    """Return the log's word for why the folders are looked at again; "unchanged" if they need not be."""
    changed = [f for f in (NEW, CUR) if signatures[f] != statcache.folder_signature(header, f)]
    if len(changed) == 2:
        return "both_changed"
    if changed:
        return f"{names.FOLDERS[changed[0]]}_changed"
    return "racy" if header.flags & (RACY[NEW] | RACY[CUR]) else "unchanged"


# Files become messages


def gathered(folder: int, file_names: Iterable[bytes]) -> list[Found]:
    """Return the files of one folder, each as if it were the only one with its base name."""
    return [(name.partition(b":")[0], b"", name, folder) for name in file_names]


def of_one_base(found: list[Found]) -> dict[bytes, list[Found]]:
    """Return the base names that several files have, with those files."""
    if len({one[0] for one in found}) == len(found):
        return {}
    by_base: dict[bytes, list[Found]] = {}
    for one in found:
        by_base.setdefault(one[0], []).append(one)
    return {base: several for base, several in by_base.items() if len(several) > 1}


def in_order(found: list[Found]) -> list[Found]:
    """Return the files in message order: by delivery time, then by base name; twins by unique-id."""
    if names.have_usual_times([one[0] for one in found]):
        return sorted(found)
    return sorted(found, key=lambda one: (names.order_key(one[0]), one))


class Messages:
    """Messages in message order, being completed; one entry per message in each list."""

    __slots__ = ("flags", "found", "octets")

    def __init__(self, found: list[Found], octets: list[int], flags: list[int]) -> None:
        self.found = found
        self.octets = octets
        self.flags = flags

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
        )


def recall(known: Known, found: list[Found]) -> Messages:
    """
    Return the messages with what is known of their octets: from the cache, else from `W=`.

    What the cache has goes first, since it may be a correction of a `W=` that lies. Nothing
    is believed of a twin: its name's `W=` is that of the other one, too.
    """
    memory = {
        (names.base_name(name) if mark & NAMED else shown): (octets, mark & REMEMBERED)
        for shown, octets, mark, name in zip(known.ids, known.octets, known.flags, known.names, strict=True)
        if not mark & (TWIN | ESTIMATED)
    }
    all_octets: list[int] = []
    all_flags: list[int] = []
    for base, _twin, _name, mark in found:
        if mark & TWIN:
            octets, remembered = UNMEASURED, 0
        elif base in memory:
            octets, remembered = memory[base]
        else:
            octets, remembered = names.wire_octets(base), 0
        all_octets.append(octets)
        all_flags.append(mark | remembered)
    return Messages(found, all_octets, all_flags)


def rendered(messages: Messages, before: Columns) -> Columns:
    """Return the messages in the form in which the cache holds them, to follow those in `before`."""
    bases = [one[0] for one in messages.found]
    twins = {index: one[1] for index, one in enumerate(messages.found) if one[1]}
    ids = names.unique_ids(bases, twins)
    flags = [
        mark if shown == base else mark | NAMED
        for mark, shown, base in zip(messages.flags, ids, bases, strict=True)
    ]
    return statcache.render(before, ids, messages.octets, flags, [one[2] for one in messages.found])


def needs_both_folders(messages: Messages) -> bool:
    """Whether a later refresh has to look at everything: there are twins, links or unreadable files."""
    return any(mark & (TWIN | LINKED | ESTIMATED) for mark in messages.flags)


# The usual refresh: nothing but new mail


def additions(known: Known, listings: dict[int, list[bytes]]) -> list[Found] | None:
    """
    Return the messages to append to what is known, in order, if that is all there is to do.

    None if something known is gone or has another name, or if a new message does not
    follow the known ones in message order: then everything has to be put together anew.
    """
    added: list[Found] = []
    for folder, listed in listings.items():
        names_now, names_then = set(listed), known.names_in(folder)
        if not names_now.issuperset(names_then):
            return None
        added += gathered(folder, names_now.difference(names_then))
    added = in_order(added)
    if of_one_base(added):
        return None
    if added and known.names:
        # Strictly after all the known: so it can't have the base name of one of them either.
        last = names.base_name(known.names[-1])
        if names.order_key(added[0][0]) <= names.order_key(last):
            return None
    return added


def may_share_id(added: list[Found], columns: Columns) -> bool:
    """Whether a message to append may have the unique-id of a known one, which takes a hash on one side."""
    for base, _twin, _name, _mark in added:
        shown = names.unique_id(base)
        if names.looks_hashed(shown) and b" %b\r\n" % shown in columns.uidl:
            return True
    return False
