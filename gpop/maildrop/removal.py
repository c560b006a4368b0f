"""
EDGE: what becomes of a message's file when UPDATE removes the message.

Its name goes; or it moves to a folder of the same Maildir (Maildir++), where IMAP and webmail show it, and
no POP session does. With the third word, HIDE, it stays where it is, and `.unique-ids` has an entry that
no session is to show it; that is `Update`'s. Executed by the session, as the mail user, for UPDATE alone.
"""

from __future__ import annotations

import errno
import os

from gpop.maildrop import system
from gpop.maildrop.maildir import DIRECTORY_FLAGS

UNLINK, HIDE = "unlink", "hide"
FOLDER_MODE = 0o700
FILE_MODE = 0o600
# By this file Maildir++ tells a folder from anything else that begins with a dot.
FOLDER_MARK = "maildirfolder"
MARK_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Removal:
    """
    A way to remove: `word` is "unlink", or the name of a folder of the Maildir `dir_fd`, with its dot.

    Raises:
        OSError: the folder can't be made, or is not a directory of the user's own.
    """

    __slots__ = ("_cur_fd",)

    def __init__(self, word: str, dir_fd: int) -> None:
        self._cur_fd = -1 if word == UNLINK else _open_cur(word, dir_fd)

    def close(self) -> None:
        """Give up what was opened."""
        if self._cur_fd >= 0:
            os.close(self._cur_fd)

    def remove(self, name: bytes, folder_fd: int) -> None:
        """
        Take a message's file out of new/ or cur/.

        Raises:
            OSError: it is there still; or (FileNotFoundError) it was not.
        """
        if self._cur_fd >= 0:
            self._link(name, folder_fd)
        system.unlink(name, dir_fd=folder_fd)

    def _link(self, name: bytes, folder_fd: int) -> None:
        # Not renamed: if there is another message of that name in the folder, that would destroy it.
        moved = name if b":" in name else name + b":2,"
        try:
            system.link(name, moved, src_dir_fd=folder_fd, dst_dir_fd=self._cur_fd, follow_symlinks=False)
        except FileExistsError:
            there = system.stat(moved, dir_fd=self._cur_fd, follow_symlinks=False)
            if not os.path.samestat(there, system.stat(name, dir_fd=folder_fd, follow_symlinks=False)):
                raise
            # Another name of the same file, or a session that was killed between the two calls.


def _open_cur(folder: str, dir_fd: int) -> int:
    """Return a descriptor of a folder's cur/; both are made if they are not there. Raises OSError."""
    _make_directory(folder, dir_fd)
    folder_fd = system.open_file(folder, DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        if system.fstat(folder_fd).st_uid != os.geteuid():
            raise OSError(errno.EPERM, "the folder for removed messages is another user's")
        for name in ("tmp", "new", "cur"):
            _make_directory(name, folder_fd)
        os.close(system.open_file(FOLDER_MARK, MARK_FLAGS, FILE_MODE, dir_fd=folder_fd))
        return system.open_file("cur", DIRECTORY_FLAGS, dir_fd=folder_fd)
    finally:
        os.close(folder_fd)


def _make_directory(name: str, dir_fd: int) -> None:
    try:
        system.mkdir(name, FOLDER_MODE, dir_fd=dir_fd)
    except FileExistsError:
        return
