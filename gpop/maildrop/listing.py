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
        return self._joined().split(b"/") if self.names else []

    def files(self) -> Iterator[tuple[bytes, int]]:
        """Return the names and inodes, as the table keeps them."""
        inodes = self.inodes
        if max(inodes, default=0) > INODE_BITS:
            inodes = [inode & INODE_BITS for inode in inodes]
        return zip(self.encoded(), inodes, strict=True)

    def add(self, name: bytes, inode: int) -> None:
        self.names.append(decoded(name))
        self.inodes.append(inode)

    def take(self, indexes: list[int]) -> Listing:
        """Remove some, given in ascending order; return those."""
        taken = Listing([self.names[index] for index in indexes], [self.inodes[index] for index in indexes])
        for index in reversed(indexes):
            del self.names[index], self.inodes[index]
        return taken

    def checksum(self) -> bytes:
        """
        Return what another set of files has not, nor the same in another order: 64 bits.

        File systems list the files that stay in the order in which they had them before.
        """
        inodes = struct.pack(f"<{len(self.inodes)}Q", *self.inodes)
        return struct.pack("<II", crc32(self._joined()), crc32(inodes))

    def _joined(self) -> bytes:
        # All at once, because there may be many; no name can hold a slash.
        return "/".join(self.names).encode(sys.getfilesystemencoding(), "surrogateescape")


def decoded(name: bytes) -> str:
    """Return a file name as `os` has it."""
    return name.decode(sys.getfilesystemencoding(), "surrogateescape")
