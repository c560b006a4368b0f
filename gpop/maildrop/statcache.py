"""
The format of a .statcache: its header, parsed with limits, and a whole cache put together.

Pure: knows the format (docs/statcache.md has it octet by octet), not where the octets come
from. They lie where their user can write, so they are input: every field of the header is
checked here, and what is decoded later is checked in `model`, one message at a time, or in `table`,
all of them. Executed by the session, as the mail user.

    header | unique-id listing | scan listing | table | tails
             ready to be sent    ready to be sent

The table is column by column, so that it is read and written whole without a look at each
message. A message's tail is what follows its unique-id in its file name (":2,S"), or the
whole name where the unique-id is not the base name.
"""

from __future__ import annotations

import struct
from zlib import crc32

from gpop.maildrop import names
from gpop.maildrop.listing import CHECKSUM_OCTETS
from gpop.maildrop.names import CUR, NEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.table import Columns

    # Octets of a column: written ones, or a view of those in the old cache.
    Octets = bytes | memoryview
    # A folder's device, inode, mtime_ns and ctime_ns.
    Signature = tuple[int, int, int, int]

MAGIC = b"gpopstat"
VERSION = 2
HEADER = struct.Struct("<8sHHI36sIIIQqQQqqQQqqIIII8s8sQQqqI40xI")
HEADER_OCTETS = HEADER.size
CHECKED_OCTETS = HEADER_OCTETS - 4  # what the header's own crc covers
FORMAT_MARK = struct.pack("<8sHH", MAGIC, VERSION, HEADER_OCTETS)  # what every cache begins with
# The table: octets 8; three starts, inode and stamp 4 each; flags 1. Starts have an end each.
TABLE_OCTETS_EACH, TABLE_OCTETS_MORE = 29, 12
NO_IMPORT = (0, 0, 0, 0)  # in place of the signature of imported unique-ids: there is no such file
NOTHING_LISTED = (bytes(CHECKSUM_OCTETS), bytes(CHECKSUM_OCTETS))
MIN_STAMP_NS, MAX_STAMP_NS = -1 << 63, (1 << 63) - 1  # in the years 1677 and 2262
MAX_OCTETS = (1 << 64) - 1
# Offsets are 32 bits wide; so many messages stay below that with the longest names.
MAX_MESSAGES = 2_000_000

# Header flags
RACY_NEW, RACY_CUR = 1, 2  # a change of this folder may have left its signature as it is
LIST_BOTH = 4  # a refresh must list both folders: what is here does not say all about either
RACY_IDS = 8  # the file of imported unique-ids may have changed, and its signature not
RACY_ANY = RACY_NEW | RACY_CUR | RACY_IDS
KNOWN_FLAGS = RACY_ANY | LIST_BOTH
RACY = (RACY_NEW, RACY_CUR)  # by folder

# A message's flags in the table. Its folder (NEW, CUR) is the lowest bit.
FORM_SHIFT = 1  # two bits: one of encoding.FORM_*
FORM_BITS = 0b110
MEASURED = 0x08  # its octets were counted in the file; else they are a name's W=
ESTIMATED = 0x10  # it can't be read: its octets are S= or the file size
NAMED = 0x20  # its tail is the whole name: the unique-id is not the base name
TWIN = 0x40  # other files have its base name: the unique-id is made of its content
LINKED = 0x80  # its file has further names in the maildrop
UNNAMED = bytes(mark for mark in range(256) if not mark & NAMED)
ELSEWHERE = [bytes(mark for mark in range(256) if mark & CUR != folder) for folder in (NEW, CUR)]

UIDL_STATUS = b"+OK unique-id listing follows\r\n"
LIST_STATUS = b"+OK scan listing follows\r\n"
TERMINATOR = b".\r\n"

# The longest lines: message-number, a space, unique-id or octets, CRLF.
MAX_UIDL_LINE_OCTETS = 7 + 1 + names.MAX_UNIQUE_ID_OCTETS + 2
MAX_LIST_LINE_OCTETS = 7 + 1 + 20 + 2
MIN_LINE_OCTETS = len(b"1 0\r\n")


class BadCache(Exception):
    """These octets are no usable cache; `reason` is the word for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Facts:
    """What a cache says of itself beside its messages; all but `clock_ns` decides whether it is a hit."""

    __slots__ = (
        "boot_id", "clock_ns", "cur", "flags", "imported", "listed", "max_messages", "new", "removed",
    )  # fmt: skip

    def __init__(
        self,
        boot_id: bytes,
        max_messages: int,
        clock_ns: int,
        flags: int,
        new: Signature,
        cur: Signature,
        listed: tuple[bytes, bytes] = NOTHING_LISTED,
        imported: Signature = NO_IMPORT,
        removed: int = 0,
    ) -> None:
        self.boot_id = boot_id
        self.max_messages = max_messages
        self.clock_ns = clock_ns  # the file system's own clock before the folders were looked at
        self.flags = flags
        self.new = new
        self.cur = cur
        # By folder, the checksum of its listing, if the cache has the files in that and no others, else NULs.
        self.listed = listed
        self.imported = imported  # the signature of the file of imported unique-ids
        self.removed = removed  # messages in it that POP3 has removed since: for the alarm alone


class Header:
    """
    A parsed header, and the layout that follows from it.

    All offsets are from the start of the file. The unique-id listing starts at
    HEADER_OCTETS, and each section where the one before it ends.
    """

    __slots__ = (
        "body_crc",
        "boot_id",
        "clock_ns",
        "count",
        "cur",
        "end",
        "flags",
        "imported",
        "list_end",
        "listed",
        "max_messages",
        "new",
        "octets",
        "own_crc",
        "removed",
        "table_end",
        "uidl_end",
    )

    flags: int
    boot_id: bytes
    max_messages: int
    count: int
    body_crc: int
    octets: int
    clock_ns: int
    new: Signature
    cur: Signature
    listed: tuple[bytes, bytes]
    imported: Signature
    removed: int
    uidl_end: int
    list_end: int
    table_end: int
    end: int
    own_crc: int

    def __init__(self, octets: Octets) -> None:
        fields = HEADER.unpack_from(octets)
        self.flags, boot_id, self.max_messages, self.count, self.body_crc = fields[3:8]
        self.boot_id = boot_id.rstrip(b"\0")
        self.octets, self.clock_ns = fields[8:10]
        self.new, self.cur = fields[10:14], fields[14:18]
        self.uidl_end, self.list_end, self.table_end, self.end = fields[18:22]
        self.listed, self.imported = fields[22:24], fields[24:28]
        self.removed, self.own_crc = fields[28:30]

    def facts(self) -> Facts:
        looked_at = (self.clock_ns, self.flags, self.new, self.cur, self.listed, self.imported)
        return Facts(self.boot_id, self.max_messages, *looked_at, self.removed)

    # Where the columns of the table are

    def message_at(self, index: int) -> tuple[int, int, int, int]:
        """Return the offsets of one message's octets, tail start, stamp and flags."""
        at, count = self.list_end, self.count
        return (
            at + 8 * index,
            at + 16 * count + 8 + 4 * index,
            at + 24 * count + 12 + 4 * index,
            at + 28 * count + 12 + index,
        )

    def octets_at(self, index: int) -> int:
        return self.list_end + 8 * index

    def uidl_start_at(self, index: int) -> int:
        return self.list_end + 8 * self.count + 4 * index

    def list_start_at(self, index: int) -> int:
        return self.list_end + 12 * self.count + 4 + 4 * index

    def tail_start_at(self, index: int) -> int:
        return self.list_end + 16 * self.count + 8 + 4 * index

    def inodes_at(self, index: int) -> int:
        return self.list_end + 20 * self.count + 12 + 4 * index

    def stamps_at(self, index: int) -> int:
        return self.list_end + 24 * self.count + 12 + 4 * index

    def flags_at(self, index: int) -> int:
        return self.list_end + 28 * self.count + 12 + index


def parse_header(octets: bytes, file_size: int) -> Header:
    """
    Return the header of a cache of `file_size` octets that begins with `octets`.

    Raises:
        BadCache: anything about it is not as `assemble` writes it.
    """
    if len(octets) < HEADER_OCTETS:
        raise BadCache("truncated")
    if not octets.startswith(MAGIC):
        raise BadCache("wrong_magic")
    if not octets.startswith(FORMAT_MARK):
        raise BadCache("other_version")
    header = Header(octets)
    if crc32(memoryview(octets)[:CHECKED_OCTETS]) != header.own_crc:
        raise BadCache("header_damaged")
    if header.end != file_size:
        raise BadCache("truncated" if file_size < header.end else "too_long")
    layout = (header.uidl_end, header.list_end, header.table_end, header.end)
    if not is_plausible(header.flags, header.count, *layout):
        raise BadCache("header_damaged")
    return header


def is_plausible(flags: int, count: int, uidl_end: int, list_end: int, table_end: int, end: int) -> bool:
    """Whether so many messages can have such a layout: nothing reaches out of its section."""
    uidl = uidl_end - HEADER_OCTETS - len(UIDL_STATUS) - len(TERMINATOR)
    scan = list_end - uidl_end - len(LIST_STATUS) - len(TERMINATOR)
    return (
        count <= MAX_MESSAGES
        and flags & ~KNOWN_FLAGS == 0
        and count * MIN_LINE_OCTETS <= uidl <= count * MAX_UIDL_LINE_OCTETS
        and count * MIN_LINE_OCTETS <= scan <= count * MAX_LIST_LINE_OCTETS
        and table_end - list_end == count * TABLE_OCTETS_EACH + TABLE_OCTETS_MORE
        and count <= end - table_end <= count * (names.MAX_NAME_OCTETS + 1)
    )


def assemble(first: Columns, second: Columns, octets: int, facts: Facts) -> list[Octets]:
    """
    Return a whole cache of the messages of `first`, then those of `second`, with `octets` together.

    In pieces, the first of which is the header: a large cache is never copied into one piece.

    Raises:
        BadCache: no maildrop has so many octets; some of them are out of a forged cache.
    """
    if octets > MAX_OCTETS:
        raise BadCache("table_damaged")
    uidl_octets = len(UIDL_STATUS) + len(first.uidl) + len(second.uidl) + len(TERMINATOR)
    list_octets = len(LIST_STATUS) + len(first.scan) + len(second.scan) + len(TERMINATOR)
    tail_octets = len(first.tails) + len(second.tails)
    count = len(first.flags) + len(second.flags)
    body = (
        UIDL_STATUS, first.uidl, second.uidl, TERMINATOR,
        LIST_STATUS, first.scan, second.scan, TERMINATOR,
        first.octets, second.octets,
        first.uidl_starts, second.uidl_starts, struct.pack("<I", uidl_octets - len(TERMINATOR)),
        first.list_starts, second.list_starts, struct.pack("<I", list_octets - len(TERMINATOR)),
        first.tail_starts, second.tail_starts, struct.pack("<I", tail_octets),
        first.inodes, second.inodes,
        first.stamps, second.stamps,
        first.flags, second.flags,
        first.tails, second.tails,
    )  # fmt: skip
    crc = 0
    for piece in body:
        crc = crc32(piece, crc)
    uidl_end = HEADER_OCTETS + uidl_octets
    list_end = uidl_end + list_octets
    table_end = list_end + count * TABLE_OCTETS_EACH + TABLE_OCTETS_MORE
    layout = (uidl_end, list_end, table_end, table_end + tail_octets)
    return [_header(facts, count, octets, crc, layout), *body]


def reseal(header: Header, facts: Facts) -> bytes:
    """Return a header for an unchanged body, with other facts."""
    layout = (header.uidl_end, header.list_end, header.table_end, header.end)
    return _header(facts, header.count, header.octets, header.body_crc, layout)


def _header(facts: Facts, count: int, octets: int, crc: int, layout: tuple[int, int, int, int]) -> bytes:
    header = HEADER.pack(
        MAGIC, VERSION, HEADER_OCTETS, facts.flags, facts.boot_id, facts.max_messages,
        count, crc, octets, facts.clock_ns, *_storable(facts.new), *_storable(facts.cur), *layout,
        *facts.listed, *_storable(facts.imported), facts.removed, 0,
    )  # fmt: skip
    checked = header[:CHECKED_OCTETS]
    return checked + struct.pack("<I", crc32(checked))


def _storable(signature: Signature) -> Signature:
    """Return a signature with stamps that fit. One that did not is no hit: it differs from the recorded."""
    device, inode, mtime_ns, ctime_ns = signature
    return device, inode, _storable_stamp(mtime_ns), _storable_stamp(ctime_ns)


def _storable_stamp(stamp_ns: int) -> int:
    return max(MIN_STAMP_NS, min(stamp_ns, MAX_STAMP_NS))


def folder_signature(facts: Facts | Header, folder: int) -> Signature:
    """Return the signature that was recorded of a folder."""
    return facts.new if folder == NEW else facts.cur
