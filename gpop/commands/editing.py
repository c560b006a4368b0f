"""
EDGE: a file that a command edits line by line: locked, and replaced whole or not at all.

Lines that nobody asked to change stay as they are, octet for octet, and so do owner and mode.
Executed by administrators' commands.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat

NEW_FILE_MODE = 0o600  # some hold password hashes


class FileEdit:
    """
    A file of lines being edited: `lines` without their ends; `write` puts them in its place.

    Locked against other edits of this kind as long as the context lasts. A symbolic link is
    followed, so that it stays one.
    """

    def __init__(self, path: str, create: bool = False) -> None:
        self.path = os.path.realpath(path)
        self.lines: list[bytes] = []
        self._create = create
        self._fd = -1
        self._is_new = False

    def __enter__(self) -> FileEdit:
        self._fd = self._open_locked()
        with open(self._fd, "rb", closefd=False) as file:
            octets = file.read()
        self.lines = octets.split(b"\n")
        if self.lines[-1] == b"":
            self.lines.pop()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._is_new:
            os.unlink(self.path)  # made only to be locked, and nothing came of it
        os.close(self._fd)

    def _open_locked(self) -> int:
        while True:
            try:
                fd, self._is_new = self._open_or_create()
            except FileExistsError:
                continue  # another edit has made it in the meantime
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)  # /dev/null, say, in whose place nothing may be put
                raise OSError(errno.EINVAL, "not a regular file", self.path)
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                replaced = not os.path.samestat(os.fstat(fd), os.stat(self.path))
            except FileNotFoundError:
                replaced = True
            if not replaced:
                return fd
            os.close(fd)  # another edit has just put a new file in its place

    def _open_or_create(self) -> tuple[int, bool]:
        """Return the file's descriptor, and whether it was made here."""
        try:
            return os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK), False
        except FileNotFoundError:
            if not self._create:
                raise
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        return os.open(self.path, flags, NEW_FILE_MODE), True

    def write(self) -> None:
        """Put `lines` in the file's place: complete, or not at all."""
        status = os.fstat(self._fd)
        temporary = f"{self.path}.{secrets.token_hex(6)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_FILE_MODE)
        try:
            with open(fd, "wb") as file:
                file.write(b"".join(line + b"\n" for line in self.lines))
                file.flush()
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, status.st_uid, status.st_gid)
                os.fchmod(fd, status.st_mode & 0o7777)
                os.fsync(fd)
            os.rename(temporary, self.path)
            self._is_new = False
        except BaseException:
            os.unlink(temporary)
            raise
        self._sync_directory()

    def _sync_directory(self) -> None:
        directory = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
