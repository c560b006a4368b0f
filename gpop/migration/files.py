"""
EDGE: the files of a Maildir, as a plan wants to know them: names and inodes. Executed as its owner.
"""

from __future__ import annotations

import os

from gpop.maildrop.maildir import Maildir
from gpop.maildrop.names import CUR, NEW
from gpop.migration.plan import MaildirFile


def files_of(dir_fd: int) -> list[MaildirFile]:
    """
    Return the messages in new/ and cur/: every regular file whose name does not begin with a dot.

    Raises:
        MaildropUnavailable: a folder can't be listed.
    """
    folders = Maildir(dir_fd)
    try:
        found = []
        for folder in (NEW, CUR):  # in this order: what moves meanwhile is met twice, never missed
            listing = folders.files(folder)
            device = os.fstat(folders.folder_fd(folder)).st_dev
            inodes = ((device, inode) for inode in listing.inodes)
            found += [MaildirFile(*file) for file in zip(listing.encoded(), inodes, strict=True)]
        return found
    finally:
        folders.close()
