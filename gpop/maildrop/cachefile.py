"""
EDGE: the file .statcache: bounded reading, atomic replacement, and the clock it brings along.

Its directory is its user's, so what is found under its name is not trusted: it is opened
without following links and without waiting, has to be a regular file of the same user, and
what it holds is checked by `statcache`. Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno
import os
import time
from stat import S_ISREG
from zlib import crc32

from gpop.maildrop import statcache, system
from gpop.maildrop.errors import MaildropUnavailable
from gpop.maildrop.maildir import FILE_FLAGS
from gpop.maildrop.statcache import HEADER_OCTETS, BadCache, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.statcache import Facts, Octets

CACHE_NAME = ".statcache"
DRAFT_PREFIX = CACHE_NAME + "."
# A draft older than this has no writer any more.
DRAFT_LIFE_S = 3600
WRITE_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
DRAFT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What opening may answer that says more than that it can't be read.
OPEN_FAILURES = {errno.ENOENT: "absent", errno.ELOOP: "not_a_file", errno.ENXIO: "not_a_file"}

# A body up to this size is read with the header and its crc checked, whoever wrote it when.
SMALL_BODY_OCTETS = 256 * 1024


class Image:
    """
    A cache that is being served.

    Attributes:
        header: parsed and checked.
        octets: the whole of it, if it is in memory, else None.
        fd: the file with the same octets, or -1 if there is none.
    """

    __slots__ = ("fd", "header", "octets")

    def __init__(self, header: Header, octets: bytes | None, fd: int) -> None:
        self.header = header
        self.octets = octets
        self.fd = fd

    def read(self, offset: int, length: int) -> bytes:
        """
        Return exactly `length` octets from `offset`.

        Raises:
            MaildropUnavailable: they are not there, though the header says they are.
        """
        if self.octets is not None:
            piece = self.octets[offset : offset + length]
        else:
            try:
                piece = system.pread(self.fd, length, offset)
            except OSError as error:
                raise MaildropUnavailable("the statcache can't be read", error.errno) from error
        if len(piece) != length:
            raise MaildropUnavailable("the statcache became shorter while it was in use", errno.EIO)
        return piece

    def load(self) -> bytes:
        """
        Return the whole of it, its body crc checked.

        Raises:
            BadCache: it can't be read to its end, or the crc differs.
        """
        if self.octets is not None:
            return self.octets  # checked when it was read
        try:
            octets = system.pread(self.fd, self.header.end, 0)  # the kernel reads 2 GB at once
        except OSError:
            raise BadCache("unreadable") from None
        if len(octets) != self.header.end:
            raise BadCache("truncated")
        if crc32(memoryview(octets)[HEADER_OCTETS:]) != self.header.body_crc:
            raise BadCache("body_damaged")
        return octets

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_image(dir_fd: int) -> Image:
    """
    Open the Maildir's cache: one read, of the header and, if it is small, the body.

    Raises:
        BadCache: there is none ("absent"), or none that can be used, with the reason.
    """
    fd = -1
    try:
        fd = system.open_file(CACHE_NAME, FILE_FLAGS, dir_fd=dir_fd)
        status = system.fstat(fd)
        if not S_ISREG(status.st_mode):
            raise BadCache("not_a_file")
        if status.st_uid != os.geteuid():
            raise BadCache("other_owner")
        small = status.st_size <= HEADER_OCTETS + SMALL_BODY_OCTETS
        octets = system.pread(fd, status.st_size if small else HEADER_OCTETS, 0)
        header = statcache.parse_header(octets, status.st_size)
        if not small:
            return Image(header, None, fd)
        if len(octets) != status.st_size:
            raise BadCache("truncated")
        if crc32(memoryview(octets)[HEADER_OCTETS:]) != header.body_crc:
            raise BadCache("body_damaged")
        return Image(header, octets, fd)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise BadCache(OPEN_FAILURES.get(error.errno or 0, "unreadable")) from None
        raise


def is_current(dir_fd: int, image: Image) -> bool:
    """Whether the file that `image` was read from still is the Maildir's cache."""
    if image.fd < 0:
        return False
    try:
        there = system.stat(CACHE_NAME, dir_fd=dir_fd, follow_symlinks=False)
        ours = system.fstat(image.fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def note_removed(dir_fd: int, image: Image, count: int) -> None:
    """
    Have the header of the Maildir's cache, if it still is `image`, say that `count` messages were removed.

    In place, and so that whoever reads it meanwhile sees the one or the other. It is for the alarm
    alone, so to fail is no fault.
    """
    facts = image.header.facts()
    facts.removed = min(facts.removed + count, image.header.count)
    try:
        fd = system.open_file(CACHE_NAME, WRITE_FLAGS, dir_fd=dir_fd)
        try:
            if is_current(dir_fd, image):
                system.pwrite(fd, statcache.reseal(image.header, facts), 0)
        finally:
            os.close(fd)
    except OSError:
        return


class Draft:
    """
    A new cache on its way: created, then filled and renamed into place, or discarded.

    It exists before the folders are looked at, because its ctime is the file system's own
    clock: the one that stamps deliveries, too.
    """

    __slots__ = ("_dir_fd", "_fd", "_name")

    def __init__(self, dir_fd: int) -> None:
        """Create it. Raises OSError: the Maildir can't be written."""
        self._dir_fd = dir_fd
        self._name = f"{DRAFT_PREFIX}{os.getpid()}.{time.time_ns():x}"
        self._fd = system.open_file(self._name, DRAFT_FLAGS, 0o600, dir_fd=dir_fd)

    def clock_ns(self) -> int:
        """Return the file system's clock when the draft was created or last touched. Raises OSError."""
        return system.fstat(self._fd).st_ctime_ns

    def touch(self) -> None:
        """Have the file system read its clock again. Raises OSError."""
        system.touch(self._fd)

    def publish(self, pieces: list[Octets]) -> int:
        """
        Put `pieces` in the cache's place; returns a descriptor of it, which the caller owns.

        A crash at any moment leaves the old cache, the new one, or one that is seen to be torn: small
        bodies are checked whenever they are read, so only large ones are waited for until the disk has them.

        Raises:
            OSError: they can't be written; the draft is still to be discarded.
        """
        size = sum(map(len, pieces))
        written = system.writev(self._fd, pieces)
        if written < size:  # the disk is full, or a limit reached: the next write says so
            view = memoryview(b"".join(pieces))
            while written < size:
                written += system.write(self._fd, view[written:])
        if size > HEADER_OCTETS + SMALL_BODY_OCTETS:
            system.fdatasync(self._fd)
        system.rename(self._name, CACHE_NAME, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        fd, self._fd = self._fd, -1
        return fd

    def discard(self) -> None:
        """Remove what was not published; nothing happens after `publish`."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        try:
            system.unlink(self._name, dir_fd=self._dir_fd)
        except OSError:
            return  # `remove_old_drafts` will, in an hour


def remove_old_drafts(dir_fd: int, clock_ns: int, prefix: str = DRAFT_PREFIX) -> None:
    """Remove the drafts of writers that crashed long before `clock_ns`."""
    try:
        with system.scandir(dir_fd) as entries:
            drafts = [entry.name for entry in entries if entry.name.startswith(prefix)]
        for name in drafts:
            status = system.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if S_ISREG(status.st_mode) and status.st_mtime_ns < clock_ns - DRAFT_LIFE_S * 1_000_000_000:
                system.unlink(name, dir_fd=dir_fd)
    except OSError:
        return  # they cost a little space, and the next rebuild tries again


def write_cache(draft: Draft, pieces: list[Octets]) -> Image:
    """
    Publish a cache and return its image, small ones in memory, large ones on disk only.

    The first of its pieces is the header.

    Raises:
        OSError: it can't be written.
    """
    fd = draft.publish(pieces)
    header = Header(pieces[0])
    small = header.end <= HEADER_OCTETS + SMALL_BODY_OCTETS
    return Image(header, b"".join(pieces) if small else None, fd)


def with_facts(octets: bytes, facts: Facts) -> list[Octets]:
    """Return a whole cache with the same body and other facts."""
    return [statcache.reseal(Header(octets), facts), memoryview(octets)[HEADER_OCTETS:]]
