"""
`gpop uidl unhide MAILDIR [UNIQUE-ID ...]`: show messages again that were removed under removal=hide.

They come back with the unique-ids that they had. Executed by an administrator, as root or as the owner.
"""

from __future__ import annotations

import argparse
import os
import sys

from gpop.commands import owner
from gpop.commands.owner import Refused
from gpop.maildrop import errors, importfile
from gpop.maildrop.imported import BadImport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("maildir", metavar="MAILDIR", help="the Maildir that holds new/ and cur/")
    text = "only these (default: all that are hidden)"
    parser.add_argument("unique_ids", nargs="*", metavar="UNIQUE-ID", help=text)


def run(args: argparse.Namespace) -> int:
    """Say how many messages are shown again; 1 if none was hidden, or it could not be done."""
    wanted = {os.fsencode(unique_id) for unique_id in args.unique_ids}
    try:
        dir_fd = owner.enter(args.maildir)
        try:
            count = importfile.unhide(dir_fd, wanted or None)
        finally:
            os.close(dir_fd)
    except (Refused, OSError, BadImport, errors.MaildropError) as error:
        words = owner.words_of(error, args.maildir)
        print(f"gpop uidl: {owner.shown(args.maildir)}: {words}", file=sys.stderr)
        return 1
    if not count:
        print(f"gpop uidl: {owner.shown(args.maildir)}: no such message is hidden", file=sys.stderr)
        return 1
    print(f"{count} message{'' if count == 1 else 's'} shown again")
    return 0
