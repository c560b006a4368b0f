"""
EDGE: the short way to a hit: is the statcache true as it stands? In one function, for the poll.

It says yes only where `opening.judge` would say `hit, unchanged`; at the least doubt it says
nothing, and the long way finds out what is the matter. One function with local variables,
because every function that is called and every object that is made has its page copied for
the session (docs/performance.md). Executed by the session, as the mail user.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISREG
from zlib import crc32

from gpop.maildrop import system
from gpop.maildrop.cachefile import CACHE_NAME, SMALL_BODY_OCTETS
from gpop.maildrop.importfile import IMPORT_NAME
from gpop.maildrop.maildir import FILE_FLAGS
from gpop.maildrop.statcache import (
    CHECKED_OCTETS,
    FORMAT_MARK,
    HEADER,
    HEADER_OCTETS,
    RACY_ANY,
    is_plausible,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Messages, octets, end of the UIDL and of the LIST response in the file, its body or b"", its descriptor.
    Hit = tuple[int, int, int, int, bytes, int]


def look(dir_fd: int, max_messages: int, boot_id: bytes) -> Hit | None:
    """
    Return what a poll needs of the statcache, if the maildrop has not changed; None to go the long way.

    The descriptor, of an open cache, is the caller's. Changes nothing.
    """
    fd = -1
    found = None
    try:
        fd = system.open_file(CACHE_NAME, FILE_FLAGS, dir_fd=dir_fd)
        status = system.fstat(fd)
        size = status.st_size
        small = size <= HEADER_OCTETS + SMALL_BODY_OCTETS
        header = system.pread(fd, HEADER_OCTETS, 0)
        body = system.pread(fd, max(0, size - HEADER_OCTETS), HEADER_OCTETS) if small else b""
        new = system.stat("new", dir_fd=dir_fd, follow_symlinks=False)
        cur = system.stat("cur", dir_fd=dir_fd, follow_symlinks=False)
        if len(header) < HEADER_OCTETS or not header.startswith(FORMAT_MARK):
            return None
        (
            _magic, _version, _header_octets, flags, writers_boot_id, limit, count, body_crc, octets,
            _clock_ns, new_device, new_inode, new_mtime_ns, new_ctime_ns, cur_device, cur_inode,
            cur_mtime_ns, cur_ctime_ns, uidl_end, list_end, table_end, end, _new_files, _cur_files,
            ids_device, ids_inode, ids_mtime_ns, ids_ctime_ns, _removed, own_crc,
        ) = HEADER.unpack_from(header)  # fmt: skip
        if ids_inode:
            ids = system.stat(IMPORT_NAME, dir_fd=dir_fd, follow_symlinks=False)
            if (
                ids.st_dev != ids_device
                or ids.st_ino != ids_inode
                or ids.st_mtime_ns != ids_mtime_ns
                or ids.st_ctime_ns != ids_ctime_ns
            ):
                return None
        # Half the price of a `stat` that fails; and no maildrop costs less than the one without imported ids.
        elif (
            ids_device
            or ids_mtime_ns
            or ids_ctime_ns
            or system.access(IMPORT_NAME, os.F_OK, dir_fd=dir_fd, follow_symlinks=False)
        ):
            return None
        if (
            crc32(header[:CHECKED_OCTETS]) == own_crc
            and limit == max_messages
            and not flags & RACY_ANY
            and end == size
            and is_plausible(flags, count, uidl_end, list_end, table_end, end)
            and S_ISREG(status.st_mode)
            and status.st_uid == os.geteuid()
            and S_ISDIR(new.st_mode)
            and S_ISDIR(cur.st_mode)
            and new.st_mtime_ns == new_mtime_ns
            and cur.st_mtime_ns == cur_mtime_ns
            and new.st_ctime_ns == new_ctime_ns
            and cur.st_ctime_ns == cur_ctime_ns
            and new.st_ino == new_inode
            and cur.st_ino == cur_inode
            and new.st_dev == new_device
            and cur.st_dev == cur_device
            # What another run of the kernel wrote may be torn by a crash; a large body is not looked at.
            and (
                HEADER_OCTETS + len(body) == size and crc32(body) == body_crc
                if small
                else boot_id and writers_boot_id.rstrip(b"\0") == boot_id
            )
        ):
            found = count, octets, uidl_end, list_end, body, fd
        return found
    except OSError:
        return None
    finally:
        if fd >= 0 and found is None:
            os.close(fd)
