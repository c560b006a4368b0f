"""
The maildrop as one session sees it: fixed message-numbers, deletion marks, totals.

Pure: works on a cache image, which somebody else opened, through its `read`. Nothing per
message is decoded before it is asked for, and what is decoded is checked then, because an
image above a certain size is served without a look at its body (docs/statcache.md).
Executed by the session, as the mail user.

An index is 0..n-1 and is used from here on down; message-number n is index n - 1.
"""

from __future__ import annotations

import struct

from gpop.maildrop import names, statcache
from gpop.maildrop.errors import MaildropUnavailable, MessageChanged
from gpop.maildrop.statcache import HEADER_OCTETS, LIST_STATUS, TERMINATOR, UIDL_STATUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import Protocol

    class Image(Protocol):
        """A cache, in memory or in a file."""

        header: statcache.Header

        def read(self, offset: int, length: int) -> bytes:
            """Return exactly `length` octets from `offset`, or raise MaildropUnavailable."""


# What the table has of a message.
OCTETS = struct.Struct("<Q")
STAMP = struct.Struct("<I")
SPAN = struct.Struct("<II")  # where something starts, and where the next does


class Location:
    """
    Where a message's file was when the maildrop was looked at, its name checked against its unique-id.

    Attributes:
        octets: of the message on the wire, as listed.
        stamp: of the file that its form was seen in.
    """

    __slots__ = ("base", "flags", "folder", "name", "octets", "stamp", "unique_id")

    def __init__(self, unique_id: bytes, octets: int, stamp: int, flags: int, name: bytes) -> None:
        self.unique_id = unique_id
        self.octets = octets
        self.stamp = stamp
        self.flags = flags
        self.folder = flags & names.CUR
        self.name = name
        self.base = names.base_name(name)

    @property
    def form(self) -> int:
        """How the message's octets go on the wire: one of encoding.FORM_*."""
        return (self.flags & statcache.FORM_BITS) >> statcache.FORM_SHIFT

    @property
    def is_twin(self) -> bool:
        """Whether only the file's content can show that it has this unique-id."""
        return bool(self.flags & statcache.TWIN)


class Maildrop:
    """
    The messages of one session, frozen at login.

    Attributes:
        count: messages, marked ones included.
        retrieved: indexes of messages that were sent completely, for UPDATE. The session adds those in
            new/ to it, and where there is retention all.

    Everything that reads the image may raise MaildropUnavailable: it was damaged meanwhile.
    """

    __slots__ = ("_image", "_is_imported", "_marked", "_octets_left", "count", "header", "retrieved")

    def __init__(self, image: Image, is_imported: Callable[[bytes, bytes], bool] | None = None) -> None:
        """`is_imported`: whether a unique-id was imported for a base name; None where none was."""
        self._image = image
        self._is_imported = is_imported
        self.header = image.header
        self.count: int = image.header.count
        self._octets_left: int = image.header.octets
        self._marked: set[int] = set()
        self.retrieved: set[int] = set()

    # Totals and marks

    def stat(self) -> tuple[int, int]:
        """Return how many messages there are and their octets, without the marked ones (RFC 1939 §5)."""
        return self.count - len(self._marked), self._octets_left

    def is_marked(self, index: int) -> bool:
        return index in self._marked

    def mark_deleted(self, index: int) -> None:
        if index not in self._marked:
            self._octets_left -= self.octets(index)
            self._marked.add(index)

    def unmark_all(self) -> None:
        self._marked.clear()
        self._octets_left = self.header.octets

    def marked(self) -> list[int]:
        """Return the indexes of marked messages, ascending."""
        return sorted(self._marked)

    # One message

    def octets(self, index: int) -> int:
        """Return the octets of a message on the wire as listed: CRLF counted, byte-stuffing not."""
        (octets,) = OCTETS.unpack(self._image.read(self.header.octets_at(index), 8))
        return int(octets)

    def scan_line(self, index: int) -> bytes:
        """Return a message's scan listing, without CRLF."""
        start_at, section = self.header.list_start_at(index), self.header.uidl_end
        return self._line(index, start_at, section, statcache.MAX_LIST_LINE_OCTETS)

    def unique_id_line(self, index: int) -> bytes:
        """Return a message's unique-id listing, without CRLF."""
        start_at = self.header.uidl_start_at(index)
        return self._line(index, start_at, HEADER_OCTETS, statcache.MAX_UIDL_LINE_OCTETS)

    def unique_id(self, index: int) -> bytes:
        start_at = self.header.uidl_start_at(index)
        line = self._line(index, start_at, HEADER_OCTETS, statcache.MAX_UIDL_LINE_OCTETS)
        shown = line.partition(b" ")[2]
        if not names.is_literal(shown):
            raise _damaged()
        return shown

    def location(self, index: int) -> Location:
        """
        Return where a message's file was.

        A twin's name is any that a message can have: who opens or removes the file has to
        compare its content with the unique-id first.

        Raises:
            MessageChanged: the name does not belong to the unique-id that was shown.
        """
        read, header = self._image.read, self.header
        shown = self.unique_id(index)
        octets_at, tail_start_at, stamp_at, flags_at = header.message_at(index)
        start, end = SPAN.unpack(read(tail_start_at, 8))
        if not 0 <= start < end <= header.end - header.table_end or end - start > names.MAX_NAME_OCTETS + 1:
            raise _damaged()
        tail = read(header.table_end + start, end - start)[:-1]
        (octets,) = OCTETS.unpack(read(octets_at, 8))
        (stamp,) = STAMP.unpack(read(stamp_at, 4))
        flags = read(flags_at, 1)[0]
        name = tail if flags & statcache.NAMED else shown + tail
        location = Location(shown, octets, stamp, flags, name)
        if not (names.is_message_name(location.name) and self._agrees(location)):
            raise MessageChanged("the statcache's name for a message is not that of its unique-id")
        return location

    def _agrees(self, location: Location) -> bool:
        """Whether a unique-id belongs to a base name, as far as a name and what was imported can tell."""
        if not location.flags & statcache.NAMED:
            return location.base == location.unique_id
        if location.is_twin or names.is_default(location.unique_id, location.base):
            return True
        return self._is_imported is not None and self._is_imported(location.unique_id, location.base)

    def _line(self, index: int, start_at: int, section: int, max_octets: int) -> bytes:
        start, end = SPAN.unpack(self._image.read(start_at, 8))
        if not 0 < end - start <= max_octets:
            raise _damaged()
        line = self._image.read(section + start, end - start)
        if not (line.startswith(b"%d " % (index + 1)) and line.endswith(b"\r\n")):
            raise _damaged()
        return line[:-2]

    # Listings

    def indexes_of(self, unique_ids: Container[bytes]) -> dict[bytes, int]:
        """Return the indexes of those messages that have one of these unique-ids, by unique-id."""
        section = self._image.read(HEADER_OCTETS, self.header.uidl_end - HEADER_OCTETS)
        shown = [line.partition(b" ")[2] for line in section.split(b"\r\n")[1 : self.count + 1]]
        found = {unique_id: index for index, unique_id in enumerate(shown) if unique_id in unique_ids}
        # A large image's body was not looked at when it was opened: lines and index have to agree.
        if any(self.unique_id(index) != unique_id for unique_id, index in found.items()):
            raise _damaged()
        return found

    def listing_segments(self, kind: str) -> list[tuple[int, int]]:
        """
        Return the (offset, length) of the pieces of the image that are a whole multi-line response.

        `kind` is "LIST" or "UIDL". Without marks that is one piece; the lines of marked
        messages are left out.
        """
        header = self.header
        if kind == "UIDL":
            section, end, status = HEADER_OCTETS, header.uidl_end, UIDL_STATUS
            start_at = header.uidl_start_at(0)
        else:
            section, end, status = header.uidl_end, header.list_end, LIST_STATUS
            start_at = header.list_start_at(0)
        if not self._marked:
            return [(section, end - section)]
        starts = struct.unpack(f"<{self.count + 1}I", self._image.read(start_at, 4 * self.count + 4))
        segments = []
        at = 0
        for index in self.marked():
            # Damaged starts must not lead out of the section, nor backwards.
            start, following = starts[index], starts[index + 1]
            if not max(at, len(status)) <= start < following <= end - section - len(TERMINATOR):
                raise _damaged()
            if start > at:
                segments.append((section + at, start - at))
            at = following
        segments.append((section + at, end - section - at))
        return segments


def _damaged() -> MaildropUnavailable:
    return MaildropUnavailable("the statcache was damaged while it was in use")
