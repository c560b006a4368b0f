"""
EDGE: unique-ids from a server that still serves the maildrop, brought to the files in the Maildir.

First the server's lists and headers, then the Maildir: a server may move files from new/ to cur/ when
somebody logs in. What the server sends becomes numbers, ids and digests at once. Executed by `gpop uidl
import`, as the Maildir's owner, in a process for this user alone: the server is a stranger, and here it
could do to the mail what it could do to its own copy.
"""

from __future__ import annotations

import os

from gpop.maildrop import names
from gpop.maildrop.maildir import Maildir
from gpop.migration import matching
from gpop.migration.files import files_of
from gpop.migration.fingerprint import Fingerprint
from gpop.migration.matching import Listed, Matched, Stored
from gpop.migration.pop3_client import PIECE_OCTETS, Client


class MaildirChanging(Exception):
    """A file was gone before it was looked at: somebody works on the Maildir, who may be done later."""

    temporary = True

    def __str__(self) -> str:
        return "a file was gone before it was looked at; somebody else works on this Maildir"


def messages_of(client: Client) -> list[Listed]:
    """Return what the server lists, with the digest of each header. Raises ConversationFailed."""
    count, _ = client.drop_listing()
    octets = client.scan_listings(count)
    unique_ids = client.unique_ids(count)
    headers = client.headers(octets)
    every = zip(octets, unique_ids, headers, strict=True)
    return [Listed(number, *message) for number, message in enumerate(every, 1)]


class Files:
    """The messages in a Maildir: `files` as a plan wants them, `stored` as they are matched."""

    def __init__(self, dir_fd: int) -> None:
        """
        List them, and look into each.

        Raises:
            MaildropUnavailable: a folder can't be listed.
            MaildirChanging: one of them is gone.
            MessageUnreadable, OSError: one of them can't be read.
        """
        self._folders = Maildir(dir_fd)
        # A file that moves while folders are listed is met twice, and is one message.
        by_inode = {(names.base_name(file.name), file.inode): file for file in files_of(dir_fd)}
        self.files = list(by_inode.values())
        self.stored = [self._stored(index) for index in range(len(self.files))]

    def close(self) -> None:
        """Close the folders."""
        self._folders.close()

    def _stored(self, index: int) -> Stored:
        name, _, folder = self.files[index]
        base = names.base_name(name)
        fd, size = self._opened(index)
        with open(fd, "rb", PIECE_OCTETS) as file:
            fingerprint = Fingerprint()
            while fingerprint.in_header and (piece := file.readline(PIECE_OCTETS)):
                fingerprint.feed(piece)
            if fingerprint.in_header:
                fingerprint.end()
            is_ended = not size or os.pread(fd, 1, size - 1) == b"\n"
        octets = names.wire_octets(base)
        if octets < 0:
            try:
                octets, _, _, _ = self._folders.measure(folder, name)
            except FileNotFoundError:
                raise MaildirChanging from None
        return Stored(index, base, matching.sizes_of(size, octets, is_ended), fingerprint.header())

    def content(self, index: int) -> bytes:
        """Return the digest of a file's content. Raises as making this does."""
        fd, _ = self._opened(index)
        with open(fd, "rb", PIECE_OCTETS) as file:
            fingerprint = Fingerprint()
            while piece := file.readline(PIECE_OCTETS):
                fingerprint.feed(piece)
        fingerprint.end()
        return fingerprint.content()

    def _opened(self, index: int) -> tuple[int, int]:
        """Return a file's descriptor and size."""
        try:
            fd, status = self._folders.open_message(self.files[index].folder, self.files[index].name)
        except FileNotFoundError:
            raise MaildirChanging from None
        return fd, status.st_size


def match(client: Client, files: Files, listed: list[Listed]) -> Matched:
    """
    Return which file is which message, reading contents on both sides where that is needed.

    Raises:
        ConversationFailed: the server's side of it.
        MaildirChanging, MessageUnreadable, OSError: the Maildir's.
    """
    groups = matching.by_header(listed, files.stored)
    messages, stored = matching.to_compare(groups)
    of_messages = {one.number: client.content(one.number, one.octets) for one in messages}
    of_files = {one.index: files.content(one.index) for one in stored}
    return matching.matched(groups, of_messages, of_files)
