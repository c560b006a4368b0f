"""
EDGE: the UPDATE state: removes what was marked, files away what was retrieved.

Nothing is removed whose file can't be shown to be the message whose unique-id was shown,
nothing is written over, and no failure stops the rest: the caller has one reply to give,
and gives it after the work. Signals are blocked by then. Executed by the session, as the
mail user, and only for a QUIT that was received.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISREG

from gpop.maildrop import imported, importfile, names, system
from gpop.maildrop.errors import MaildropError
from gpop.maildrop.imported import BadImport
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.removal import HIDE, UNLINK, Removal
from gpop.maildrop.statcache import LINKED
from gpop.maildrop.stock import look_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpop.maildrop.maildir import Maildir
    from gpop.maildrop.model import Location, Maildrop

    # A marked message: its octets as listed, and where it was.
    Marked = tuple[int, Location]

# So many times files that others renamed meanwhile are looked for under other names.
RELOCATE_TRIES = 3
# And so long the clock of the file system is waited for then, to be sure of what is gone: it steps every few
# ms, or every second.
CLOCK_WAIT_S = 1.2
QUOTA_FILE = "maildirsize"
# Opened for appending only, never created, never through a link, never waiting for a FIFO's reader.
QUOTA_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UpdateResult:
    """
    What UPDATE did.

    Attributes:
        removed: marked messages that are gone now, those that others had removed included.
        removed_octets: their octets, as listed.
        failed: marked messages that are still there.
        moved: retrieved messages that went from new/ to cur/.
        expired: messages that retention has marked, and not the client.
    """

    __slots__ = ("expired", "failed", "moved", "removed", "removed_octets")

    def __init__(self) -> None:
        self.removed = 0
        self.removed_octets = 0
        self.failed = 0
        self.moved = 0
        self.expired = 0


class Update:
    """
    One UPDATE, step by step; `warnings` gets the events worth a line in the log.

    `removal` is how messages are removed (`removal.Removal`). `note_removed` is called for each that
    was: with the place it was at, its octets, and how.
    """

    __slots__ = (
        "_faults",
        "_folders",
        "_maildrop",
        "_note_removed",
        "_quota",
        "_removal",
        "_removal_word",
        "_unlinked",
        "_warnings",
        "result",
    )

    def __init__(
        self,
        folders: Maildir,
        maildrop: Maildrop,
        warnings: list[tuple[str, dict[str, int | str]]],
        removal: str = UNLINK,
        note_removed: Callable[[Location, int, str], object] | None = None,
    ) -> None:
        self._folders = folders
        self._maildrop = maildrop
        self._warnings = warnings
        self._removal_word = removal
        self._removal: Removal
        self._note_removed = note_removed
        self._quota: QuotaFile | None = None
        self._unlinked = (0, 0)  # files, and their sizes together
        self._faults: list[int] = []  # the errno of each failure in the current step
        self.result = UpdateResult()

    # Removing

    def remove_marked(self) -> None:
        """Remove the marked messages in the way that was asked for."""
        marked = self._maildrop.marked()
        if marked:
            located = self._located(marked)
            if self._removal_word == HIDE:
                self._hide(located)
            else:
                self._take_out(located)
            self._warn("removal_failed", self._faults)

    def _hide(self, located: list[Marked]) -> None:
        """Have the messages shown no more; their files stay."""
        shown = {}
        for _, location in located:
            # Twins have one base name: which of them is meant only their content says. And `.unique-ids`
            # has no place for a message without one.
            if not location.is_twin and imported.is_base(location.base):
                shown[location.base] = location.unique_id
        error_number: int | None = errno.ESTALE
        try:
            places, certain = look_for(self._folders, None, CLOCK_WAIT_S)
            importfile.hide(self._folders.dir_fd, shown, places if certain else None)
        except (BadImport, ValueError):
            # The second: somebody has put one of these ids there meanwhile, for another message.
            error_number, shown = errno.EBADMSG, {}
        except (OSError, MaildropError) as error:
            error_number, shown = error.errno, {}
        for octets, location in located:
            if location.base in shown:
                self._removed(octets, location, HIDE)
            else:
                self._fail(error_number)

    def _take_out(self, located: list[Marked]) -> None:
        """Take the messages' files out of the folders, and tell the Maildir++ quota file."""
        try:
            self._removal = Removal(self._removal_word, self._folders.dir_fd)
        except OSError as error:
            for _ in located:
                self._fail(error.errno)
            return
        try:
            # What moves to another folder stays in the Maildir, and in its quota.
            if self._removal_word == UNLINK:
                self._quota = QuotaFile.open(self._folders.dir_fd)
        except OSError as error:
            self._warn("maildirsize_failed", [error.errno or 0])
        self._remove(located)
        self._removal.close()
        if self._quota:
            try:
                if self._unlinked[0]:
                    self._quota.subtract(*self._unlinked)
            except OSError as error:
                self._warn("maildirsize_failed", [error.errno or 0])
            finally:
                self._quota.close()

    def _located(self, marked: list[int]) -> list[Marked]:
        """Return the octets and places of messages; those whose name does not agree have failed."""
        located = []
        for index in marked:
            try:
                located.append((self._maildrop.octets(index), self._maildrop.location(index)))
            except MaildropError as error:
                self._fail(error.errno)
        return located

    def _remove(self, located: list[Marked]) -> None:
        pending = []
        for octets, location in located:
            linked = location.flags & LINKED
            if linked or not self._unlink(octets, location, [(location.folder, location.name)]):
                pending.append((octets, location))
        for _ in range(RELOCATE_TRIES):
            if not pending:
                return
            try:
                bases = {location.base for _, location in pending}
                places, certain = look_for(self._folders, bases, CLOCK_WAIT_S)
            except MaildropError:
                break  # not to know where a message is does not mean that it is gone
            pending = [
                (octets, location)
                for octets, location in pending
                if not self._remove_elsewhere(octets, location, places.get(location.base, []), certain)
            ]
        for _ in pending:
            self._fail(errno.ENOENT)

    def _remove_elsewhere(
        self, octets: int, location: Location, found: list[tuple[int, bytes]], certain: bool
    ) -> bool:
        """
        Remove a message that has several names, or was renamed; False if it has to be looked for again.

        All names of its file go, else it would be there again in the next session.
        """
        if not found:
            if certain:
                self._removed(octets, location, "gone")  # another program was faster
            return certain
        try:
            files = self._files(found)
        except (OSError, MaildropError) as error:
            self._fail(error.errno)
            return True
        recorded = (location.folder, location.name)
        own = [file for file in files if recorded in file]
        if not own and (len(files) > 1 or location.is_twin):
            # Which of them was shown can't be told by the name, so neither is removed.
            self._fail(errno.ESTALE)
            return True
        return bool(files) and self._unlink(octets, location, own[0] if own else files[0])

    def _files(self, found: list[tuple[int, bytes]]) -> list[list[tuple[int, bytes]]]:
        """Return places sorted out by file. Raises OSError, MaildropError."""
        by_inode: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for folder, name in found:
            inode = self._folders.inode(folder, name)
            if inode:
                by_inode.setdefault(inode, []).append((folder, name))
        return list(by_inode.values())

    def _unlink(self, octets: int, location: Location, file: list[tuple[int, bytes]]) -> bool:
        """Remove a message's file from all these places; False if it is in none of them."""
        unlinked = 0
        try:
            if location.is_twin and not self._is_shown_twin(location, *file[0]):
                self._fail(errno.ESTALE)
                return True
            size = self._file_size(location, *file[0])
            for folder, name in file:
                try:
                    self._removal.remove(name, self._folders.folder_fd(folder))
                    unlinked += 1
                except FileNotFoundError:
                    continue
        except FileNotFoundError:
            return False
        except (OSError, MaildropError) as error:
            self._fail(error.errno)
            return True
        if unlinked:
            self._unlinked = (self._unlinked[0] + 1, self._unlinked[1] + size)
            self._removed(octets, location, self._removal_word)
        return unlinked > 0

    def _is_shown_twin(self, location: Location, folder: int, name: bytes) -> bool:
        digest = self._folders.content_digest(folder, name)
        return names.is_derived(location.unique_id, names.twin_id(location.base, digest))

    def _file_size(self, location: Location, folder: int, name: bytes) -> int:
        """Return what the quota file counts for a message; 0 where nobody asks."""
        if self._quota is None:
            return 0
        claimed = names.file_octets(location.base)
        return claimed if claimed >= 0 else self._folders.status(folder, name).st_size

    def _removed(self, octets: int, location: Location, how: str) -> None:
        self.result.removed += 1
        self.result.removed_octets += octets
        if self._note_removed:
            self._note_removed(location, octets, how)

    def _fail(self, error_number: int | None) -> None:
        self.result.failed += 1
        self._faults.append(error_number or 0)

    # Moving

    def move_retrieved(self) -> None:
        """Move messages that were retrieved, and are still there, from new/ to cur/ with the S flag."""
        self._faults = []
        for index in sorted(self._maildrop.retrieved):
            if self._maildrop.is_marked(index) and self._removal_word != HIDE:
                continue
            try:
                location = self._maildrop.location(index)
                if location.folder == NEW and self._move(location.name, names.seen_name(location.name)):
                    self.result.moved += 1
            except FileNotFoundError:
                continue  # another program was faster
            except (OSError, MaildropError) as error:
                self._faults.append(error.errno or 0)
        self._warn("move_failed", self._faults)

    def _move(self, name: bytes, seen: bytes) -> bool:
        """Move one file; False if another file has that name in cur/, which a rename would destroy."""
        new, cur = self._folders.folder_fd(NEW), self._folders.folder_fd(CUR)
        is_ours = True
        try:
            system.link(name, seen, src_dir_fd=new, dst_dir_fd=cur, follow_symlinks=False)
        except FileExistsError:
            inode = self._folders.inode(NEW, name)
            if inode is None or inode != self._folders.inode(CUR, seen):
                self._faults.append(errno.EEXIST)
                return False
            is_ours = False  # it is the same file: whoever moved it before did not come to this point
        try:
            system.unlink(name, dir_fd=new)
        except FileNotFoundError:
            if is_ours:
                self._give_way(seen)
            raise
        return True

    def _give_way(self, seen: bytes) -> None:
        """Take our name of a message in cur/ away again if another program has moved it there meanwhile."""
        base, inode = names.base_name(seen), self._folders.inode(CUR, seen)
        places = self._folders.places({base}).get(base, [])
        others = [place for place in places if place != (CUR, seen) and self._folders.inode(*place) == inode]
        if inode and others:
            system.unlink(seen, dir_fd=self._folders.folder_fd(CUR))

    def _warn(self, event: str, faults: list[int]) -> None:
        """Have an event logged, once for all failures of a kind, with the first one's error."""
        if faults:
            reason = errno.errorcode.get(faults[0], "changed")
            self._warnings.append((event, {"messages": len(faults), "reason": reason}))


class QuotaFile:
    """An open `maildirsize` (Maildir++): a line appended to it says by how much the maildrop changed."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, dir_fd: int) -> QuotaFile | None:
        """
        Open the quota file; None if there is none.

        Raises:
            OSError: it is there and is not a regular file of the user's own, or can't be written.
        """
        try:
            fd = system.open_file(QUOTA_FILE, QUOTA_FLAGS, dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        try:
            status = system.fstat(fd)
            if not S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
                raise OSError(errno.EPERM, "the quota file is no regular file of the user's own")
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def subtract(self, files: int, octets: int) -> None:
        """Append one line: so many files and octets less. Raises OSError."""
        line = b"-%d -%d\n" % (octets, files)
        if system.write(self._fd, line) != len(line):
            raise OSError(errno.ENOSPC, "the quota file could only be written in part")

    def close(self) -> None:
        os.close(self._fd)
