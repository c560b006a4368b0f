"""
The messages of a .statcache: as they lie in it, column by column, and as lists to work on.

Pure: between the two writings of the same messages, `Columns` and `Known`; the header, and how a whole
cache is made of columns, are `statcache`'s. The octets are input, as all of it: `take_apart` believes
no name. Executed by the session, as the mail user.
"""

from __future__ import annotations

import struct

from gpop.maildrop import names
from gpop.maildrop.names import CUR
from gpop.maildrop.statcache import (
    HEADER_OCTETS,
    LIST_STATUS,
    NAMED,
    TERMINATOR,
    UIDL_STATUS,
    UNNAMED,
    BadCache,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpop.maildrop.statcache import Header, Octets


class Columns:
    """
    Consecutive messages in the form in which the cache holds them.

    `uidl` and `scan` are listing lines; the starts are little-endian 32-bit numbers relative
    to their section; each tail is followed by a NUL, which no name can hold. What comes from an
    old cache are views of it, because most of it goes into the new one as it lies there.
    """

    __slots__ = (
        "flags", "inodes", "list_starts", "octets", "scan", "stamps", "tail_starts", "tails", "uidl",
        "uidl_starts",
    )  # fmt: skip

    def __init__(
        self,
        uidl: Octets,
        scan: Octets,
        octets: Octets,
        starts: tuple[Octets, Octets, Octets],
        files: tuple[Octets, Octets],
        flags: bytes,
        tails: Octets,
    ) -> None:
        self.uidl = uidl
        self.scan = scan
        self.octets = octets
        self.uidl_starts, self.list_starts, self.tail_starts = starts
        self.inodes, self.stamps = files
        self.flags = flags
        self.tails = tails


NOTHING = Columns(b"", b"", b"", (b"", b"", b""), (b"", b""), b"", b"")


def cut(header: Header, octets: bytes) -> Columns:
    """Return all messages of a whole cache whose header and body crc were checked."""
    image = memoryview(octets)
    return Columns(
        image[HEADER_OCTETS + len(UIDL_STATUS) : header.uidl_end - len(TERMINATOR)],
        image[header.uidl_end + len(LIST_STATUS) : header.list_end - len(TERMINATOR)],
        image[header.list_end : header.uidl_start_at(0)],
        (
            image[header.uidl_start_at(0) : header.list_start_at(0) - 4],
            image[header.list_start_at(0) : header.tail_start_at(0) - 4],
            image[header.tail_start_at(0) : header.inodes_at(0) - 4],
        ),
        (
            image[header.inodes_at(0) : header.stamps_at(0)],
            image[header.stamps_at(0) : header.flags_at(0)],
        ),
        octets[header.flags_at(0) : header.table_end],
        image[header.table_end : header.end],
    )


class Known:
    """
    Messages in message order, in the form in which they are worked on: one entry each in every list.

    Attributes:
        ids, octets, names: as they say.
        flags: folder, form and the rest; NAMED if a unique-id is not the base name.
        inodes: the low 32 bits of what readdir said, to tell another file under the same name.
        stamps: of the files that octets and forms were seen in (`reconcile.file_stamp`), 0 if in none.
    """

    __slots__ = ("flags", "ids", "inodes", "names", "octets", "stamps")

    def __init__(
        self,
        ids: list[bytes],
        octets: Sequence[int],
        flags: Sequence[int],
        file_names: list[bytes],
        inodes: Sequence[int],
        stamps: Sequence[int],
    ) -> None:
        self.ids = ids
        self.octets = octets
        self.flags = flags
        self.names = file_names
        self.inodes = inodes
        self.stamps = stamps

    def files_in(self, folder: int) -> dict[bytes, int]:
        """Return the names of all messages in one folder, with their inodes."""
        files = zip(self.names, self.inodes, self.flags, strict=True)
        return {name: inode for name, inode, mark in files if mark & CUR == folder}


NOTHING_KNOWN = Known([], (), b"", [], (), ())


def render(before: Columns, known: Known) -> Columns:
    """Return the columns of further messages, which follow those in `before`."""
    ids, count = known.ids, len(known.ids)
    numbers = range(len(before.flags) + 1, len(before.flags) + 1 + count)
    # One after the other, so that what one is made of has its memory used again by the next.
    uidl, uidl_starts = _laid_out(
        [b"%d %b\r\n" % line for line in zip(numbers, ids, strict=True)], len(UIDL_STATUS) + len(before.uidl)
    )
    scan, list_starts = _laid_out(
        [b"%d %d\r\n" % line for line in zip(numbers, known.octets, strict=True)],
        len(LIST_STATUS) + len(before.scan),
    )
    named = zip(known.names, known.flags, ids, strict=True)
    tails, tail_starts = _laid_out(
        [name if mark & NAMED else name[len(shown) :] for name, mark, shown in named],
        len(before.tails),
        b"\0",
    )
    return Columns(
        uidl,
        scan,
        struct.pack(f"<{count}Q", *known.octets),
        (uidl_starts, list_starts, tail_starts),
        (struct.pack(f"<{count}I", *known.inodes), struct.pack(f"<{count}I", *known.stamps)),
        bytes(known.flags),
        tails,
    )


def _laid_out(pieces: list[bytes], at: int, end: bytes = b"") -> tuple[bytes, bytes]:
    """Return pieces, each with an end, in one, and the column of their starts; the first is at `at`."""
    starts = []
    for octets in map(len, pieces):
        starts.append(at)
        at += octets + len(end)
    return end.join([*pieces, b""]), struct.pack(f"<{len(starts)}I", *starts)


def take_apart(columns: Columns) -> Known:
    """
    Return the messages of a cache as lists.

    Raises:
        BadCache: the octets, though their crc fits, are not what `render` writes.
    """
    count = len(columns.flags)
    uidl, together = bytes(columns.uidl), bytes(columns.tails)
    ids = _without_numbers(uidl.split(b"\r\n"))
    tails = together.split(b"\0")[:-1]
    if len(ids) != count or len(tails) != count or not _are_names(ids, uidl, columns.flags, together):
        raise BadCache("table_damaged")
    if columns.flags.translate(None, UNNAMED):
        marked = zip(ids, columns.flags, tails, strict=True)
        file_names = [tail if mark & NAMED else shown + tail for shown, mark, tail in marked]
    else:
        file_names = [shown + tail for shown, tail in zip(ids, tails, strict=True)]
    octets = struct.unpack(f"<{count}Q", columns.octets)
    inodes, stamps = (struct.unpack(f"<{count}I", column) for column in (columns.inodes, columns.stamps))
    return Known(ids, octets, columns.flags, file_names, inodes, stamps)


def _are_names(ids: list[bytes], uidl: bytes, flags: bytes, tails: bytes) -> bool:
    """Whether no name in there begins with a dot, holds a slash or is empty: looked for in all at once."""
    # rfind is twice as fast as `in` where one of two octets is everywhere.
    if b"/" in tails or tails.rfind(b"\0.") >= 0:
        return False
    if uidl.rfind(b"\0") >= 0:
        return False
    # Not in `uidl`: in a forged one anything may stand where the space behind a message-number belongs.
    together = b"\0".join([b"", *ids, b""])
    if together.rfind(b"\0\0") >= 0:  # a unique-id that is none at all
        return False
    if (b"/" in together or together.rfind(b"\0.") >= 0) and any(
        # Another server's unique-id may look like this, as long as it is no part of a name.
        not mark & NAMED and (b"/" in shown or shown.startswith(b"."))
        for shown, mark in zip(ids, flags, strict=True)
    ):
        return False
    return not (tails.startswith(b".") or _has_empty_name(flags, tails))


def _has_empty_name(flags: bytes, tails: bytes) -> bool:
    # The tail of an unnamed message may be empty, which is usual; that of a named one never is.
    if not flags.translate(None, UNNAMED):
        return False
    return any(mark & NAMED and not tail for mark, tail in zip(flags, tails.split(b"\0"), strict=False))


def _without_numbers(lines: list[bytes]) -> list[bytes]:
    """Cut the message-numbers off listing lines, those of one width at a time."""
    ids: list[bytes] = []
    count = len(lines) - 1  # the last line, too, ended with a CRLF
    first, width = 1, len(b"1 ")
    while first <= count:
        ids += [line[width:] for line in lines[first - 1 : min(10 * first - 1, count)]]
        first, width = 10 * first, width + 1
    return ids


def last_name(columns: Columns) -> bytes:
    """Return the name of the last of some messages. Raises BadCache, as `take_apart`."""
    (line_at,) = struct.unpack("<I", columns.uidl_starts[-4:])
    (tail_at,) = struct.unpack("<I", columns.tail_starts[-4:])
    shown = bytes(columns.uidl[max(0, line_at - len(UIDL_STATUS)) :]).partition(b" ")[2].removesuffix(b"\r\n")
    tail = bytes(columns.tails[tail_at:-1])
    name = tail if columns.flags[-1] & NAMED else shown + tail
    if not names.is_message_name(name):
        raise BadCache("table_damaged")
    return name
