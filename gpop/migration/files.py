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
            listed = zip(listing.encoded(), listing.inodes, strict=True)
            found += [MaildirFile(name, (device, inode), folder) for name, inode in listed]
        return found
    finally:
        folders.close()
