"""
EDGE: a Maildir's folders and files: looked at, listed, measured, opened.

Everything goes through descriptors of the Maildir and of its folders, no link is ever
followed, and only regular files count. This knows nothing of the statcache, and removes
nothing (`update` does). Executed by the session, as the mail user.
"""

from __future__ import annotations

import errno
import os
from _blake2 import blake2b
from stat import S_ISDIR, S_ISREG

from gpop.maildrop import names, system
from gpop.maildrop.errors import MaildropUnavailable, MessageUnreadable
from gpop.maildrop.listing import Listing
from gpop.maildrop.names import CUR, FOLDERS, NEW
from gpop.pop3 import encoding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.statcache import Signature

    # Base name -> (folder, name) of each file that has it.
    Places = dict[bytes, list[tuple[int, bytes]]]

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that was put in a message's place must not wait for its writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# A draft is nobody's yet: what lies under its name, a link too, is not written to.
DRAFT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
CHUNK_OCTETS = 65536

# What opening or reading one file may answer when only that file is at fault. Anything else
# (no descriptors, no memory) is a fault of the moment, and no reason to guess at sizes.
FILE_FAULTS = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ELOOP,
    errno.ENXIO,
    errno.EISDIR,
    # A file system has found this file damaged: ext4 and XFS say the one or the other.
    errno.EUCLEAN,
    errno.EBADMSG,
)


def open_own(dir_fd: int, name: str) -> tuple[int, os.stat_result]:
    """
    Open a file that gpop keeps in the Maildir; returns a descriptor, which is the caller's, and its status.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be opened, or is no regular file of the user's own.
    """
    fd = system.open_file(name, FILE_FLAGS, dir_fd=dir_fd)
    try:
        status = system.fstat(fd)
        if not S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"{name} is no regular file of the user's own")
    except OSError:
        os.close(fd)
        raise
    return fd, status


class OpenMessage:
    """An open file of a message; who asked for it closes `fd`."""

    __slots__ = ("fd", "file_size", "form", "is_new", "listed_octets")

    def __init__(self, fd: int, file_size: int, form: int, listed_octets: int, is_new: bool) -> None:
        self.fd = fd
        self.file_size = file_size
        self.form = form
        self.listed_octets = listed_octets
        self.is_new = is_new  # it was in new/ when the maildrop was opened


class Maildir:
    """
    A Maildir, through its descriptor, which stays its owner's.

    Attributes:
        skipped: entries met by `files` that are no regular files, by folder.
    """

    __slots__ = ("_folder_fds", "dir_fd", "skipped")

    def __init__(self, dir_fd: int) -> None:
        self.dir_fd = dir_fd
        self.skipped = [0, 0]
        self._folder_fds = [-1, -1]

    def close(self) -> None:
        """Close the folders; the Maildir's own descriptor stays open."""
        for folder in (NEW, CUR):
            if self._folder_fds[folder] >= 0:
                self._close_folder(folder)

    def _close_folder(self, folder: int) -> None:
        os.close(self._folder_fds[folder])
        self._folder_fds[folder] = -1

    # Folders

    def signatures(self) -> tuple[Signature, Signature]:
        """
        Return what tells whether new/ and cur/ have changed.

        Raises:
            MaildropUnavailable: one is missing, or no directory.
        """
        folder = NEW
        try:
            new = system.stat(FOLDERS[NEW], dir_fd=self.dir_fd, follow_symlinks=False)
            folder = CUR
            cur = system.stat(FOLDERS[CUR], dir_fd=self.dir_fd, follow_symlinks=False)
        except OSError as error:
            raise _unavailable(folder, error.errno) from error
        if not (S_ISDIR(new.st_mode) and S_ISDIR(cur.st_mode)):
            raise _unavailable(CUR if S_ISDIR(new.st_mode) else NEW, errno.ENOTDIR)
        return (
            (new.st_dev, new.st_ino, new.st_mtime_ns, new.st_ctime_ns),
            (cur.st_dev, cur.st_ino, cur.st_mtime_ns, cur.st_ctime_ns),
        )

    def folder_fd(self, folder: int) -> int:
        """Return a descriptor of a folder, kept open for later."""
        fd = self._folder_fds[folder]
        if fd < 0:
            try:
                fd = system.open_file(FOLDERS[folder], DIRECTORY_FLAGS, dir_fd=self.dir_fd)
            except OSError as error:
                raise _unavailable(folder, error.errno) from error
            self._folder_fds[folder] = fd
        return fd

    def files(self, folder: int) -> Listing:
        """
        Return a folder's messages, its regular files but for dot files: names, and low bits of inodes.

        Where the file system tells type and inode with the name, no file is looked at.

        Raises:
            MaildropUnavailable: the folder can't be listed.
        """
        if self._folder_fds[folder] >= 0:
            self._close_folder(folder)  # it may be another directory by now
        listing = Listing([], [])
        add_name, add_inode = listing.names.append, listing.inodes.append
        skipped = 0
        try:
            with system.scandir(self.folder_fd(folder)) as entries:
                for entry in entries:  # not kept: they take more memory than all that is made of them
                    if entry.is_file(follow_symlinks=False):
                        add_name(entry.name)
                        add_inode(entry.inode())
                    elif entry.name[0] != ".":
                        skipped += 1
        except OSError as error:
            raise _unavailable(folder, error.errno) from error
        self.skipped[folder] = skipped
        hidden = [index for index, name in enumerate(listing.names) if name[0] == "."]
        return listing.parted(hidden)[1] if hidden else listing

    def places(self, wanted: set[bytes] | None = None) -> Places:
        """
        Return where the files with these base names are, or all files.

        Readdir may miss what is being renamed: whether one is gone that is not here, `stock.look_for` knows.
        """
        places: Places = {}
        for folder in (NEW, CUR):  # in this order: a file moved meanwhile is seen twice, never missed
            for name in self.files(folder).encoded():
                base = names.base_name(name)
                if wanted is None or base in wanted:
                    places.setdefault(base, []).append((folder, name))
        return places

    # Files

    def measure(self, folder: int, name: bytes) -> tuple[int, int, int, int]:
        """
        Read a file; return its octets on the wire, its form, and its mtime (ns) and size before it was read.

        Raises:
            OSError: it can't be read.
        """
        fd = system.open_file(name, FILE_FLAGS, dir_fd=self.folder_fd(folder))
        try:
            status = system.fstat(fd)
            # One octet more than there are: a whole message is then known to be whole.
            wanted = status.st_size + 1 if status.st_size < CHUNK_OCTETS else CHUNK_OCTETS
            chunk = system.read(fd, wanted)
            if len(chunk) < wanted:
                octets, form = encoding.measure(chunk)
            else:
                measure = encoding.Measure()
                while chunk:
                    measure.feed(chunk)
                    chunk = system.read(fd, CHUNK_OCTETS)
                octets, form = measure.result()
            return octets, form, status.st_mtime_ns, status.st_size
        finally:
            os.close(fd)

    def content_digest(self, folder: int, name: bytes) -> bytes:
        """Return the BLAKE2b-256 of a file's octets as stored. Raises OSError."""
        fd = system.open_file(name, FILE_FLAGS, dir_fd=self.folder_fd(folder))
        try:
            return digest_of(fd)
        finally:
            os.close(fd)

    def status(self, folder: int, name: bytes) -> os.stat_result:
        """Return the status of an entry, never of what it links to. Raises OSError."""
        return system.stat(name, dir_fd=self.folder_fd(folder), follow_symlinks=False)

    def inode(self, folder: int, name: bytes) -> tuple[int, int] | None:
        """Return a regular file's device and inode; None if it is gone or no such file."""
        try:
            status = self.status(folder, name)
        except FileNotFoundError:
            return None
        return (status.st_dev, status.st_ino) if S_ISREG(status.st_mode) else None

    def open_message(self, folder: int, name: bytes) -> tuple[int, os.stat_result]:
        """
        Return a descriptor of a message's file, and the status of that.

        Raises:
            FileNotFoundError: there is none under this name.
            MessageUnreadable: it can't be opened, or is no regular file any more.
        """
        folder_fd = self.folder_fd(folder)
        fd = -1
        try:
            fd = system.open_file(name, FILE_FLAGS, dir_fd=folder_fd)
            status = system.fstat(fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise MessageUnreadable("a message's file can't be opened", error.errno) from error
        if not S_ISREG(status.st_mode):
            os.close(fd)
            raise MessageUnreadable("a message's file is no regular file any more")
        return fd, status


def digest_of(fd: int) -> bytes:
    """Return the BLAKE2b-256 of an open file; where it is read from next does not change. Raises OSError."""
    digest = blake2b(digest_size=names.CONTENT_DIGEST_OCTETS)
    at = 0
    while chunk := system.pread(fd, CHUNK_OCTETS, at):
        digest.update(chunk)
        at += len(chunk)
    octets: bytes = digest.digest()
    return octets


def _unavailable(folder: int, error_number: int | None) -> MaildropUnavailable:
    what = f"{FOLDERS[folder]}/ can't be read: {os.strerror(error_number or 0)}"
    return MaildropUnavailable(what, error_number)
