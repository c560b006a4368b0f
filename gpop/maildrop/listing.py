"""
What readdir says of a folder: the names of its messages and their inodes, in its order.

Pure: made by `maildir`, kept in `stock`, brought together with the cache by `reconcile`. As
long as nothing but a name or two is wanted, names stay as the interpreter gives them, because
there may be 100,000. Executed by the session, as the mail user.
"""

from __future__ import annotations

import struct
import sys
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKSUM_OCTETS = 8
# So much of an inode number is kept in the statcache's table.
INODE_BITS = 0xFFFFFFFF
# So many files go into a checksum at a time.
PART = 500


class Listing:
    """
    Messages of one folder; the same index in both lists is the same file.

    Attributes:
        names: as `os` has them, decoded. inodes: of which the table keeps the low 32 bits.
    """

    __slots__ = ("inodes", "names")

    def __init__(self, file_names: list[str], inodes: list[int]) -> None:
        self.names = file_names
        self.inodes = inodes

    def encoded(self) -> list[bytes]:
        """Return the names as octets."""
        return _joined(self.names).split(b"/") if self.names else []

    def files(self) -> Iterator[tuple[bytes, int]]:
        """Return the names and inodes, as the table keeps them."""
        inodes = self.inodes
        if max(inodes, default=0) > INODE_BITS:
            inodes = [inode & INODE_BITS for inode in inodes]
        return zip(self.encoded(), inodes, strict=True)

    def add(self, name: bytes, inode: int) -> None:
        self.names.append(decoded(name))
        self.inodes.append(inode)

    def parted(self, indexes: list[int]) -> tuple[Listing, Listing]:
        """Return the files at these indexes, which are ascending, and all others."""
        chosen = Listing([self.names[index] for index in indexes], [self.inodes[index] for index in indexes])
        others = Listing([], [])
        after = 0
        for index in [*indexes, len(self.names)]:  # few; so what is between them is copied whole
            others.names += self.names[after:index]
            others.inodes += self.inodes[after:index]
            after = index + 1
        return chosen, others

    def checksum(self) -> bytes:
        """
        Return what another set of files has not, nor the same in another order: 64 bits.

        File systems list the files that stay in the order in which they had them before.
        """
        of_names = of_inodes = 0
        # Some at a time: memory for all of them costs a session more than the work.
        for first in range(0, len(self.names), PART):
            inodes = self.inodes[first : first + PART]
            of_names = crc32(_joined([*self.names[first : first + PART], ""]), of_names)
            of_inodes = crc32(struct.pack(f"<{len(inodes)}Q", *inodes), of_inodes)
        return struct.pack("<II", of_names, of_inodes)


def _joined(file_names: list[str]) -> bytes:
    # Many at once, because there may be 100,000; no name can hold a slash.
    return "/".join(file_names).encode(sys.getfilesystemencoding(), "surrogateescape")


def decoded(name: bytes) -> str:
    """Return a file name as `os` has it."""
    return name.decode(sys.getfilesystemencoding(), "surrogateescape")
