"""
`gpop uidl show MAILDIR`: every message as a session would number it, its unique-id, and where that is from.

The statcache is neither read nor written: what is shown follows from the files alone.
"""

from __future__ import annotations

import argparse
import os
import sys

from gpop.commands import owner
from gpop.commands.owner import Refused
from gpop.events import printable
from gpop.maildrop import errors, importfile, names, opening
from gpop.maildrop.imported import BadImport
from gpop.maildrop.opening import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("maildir", metavar="MAILDIR", help="the Maildir that holds new/ and cur/")


def run(args: argparse.Namespace) -> int:
    """Print the list; 1 if the maildrop can't be read."""
    try:
        dir_fd = owner.enter(args.maildir)
        try:
            _show(dir_fd)
        finally:
            os.close(dir_fd)
    except (Refused, OSError, BadImport, errors.MaildropError) as error:
        words = owner.words_of(error, args.maildir)
        print(f"gpop uidl: {owner.shown(args.maildir)}: {words}", file=sys.stderr)
        return 1
    return 0


def _show(dir_fd: int) -> None:
    ids = importfile.read(dir_fd)
    opened = opening.open_maildrop(dir_fd, Options(cache=False))
    try:
        for index in range(opened.maildrop.count):
            location = opened.maildrop.location(index)
            known = ids.get(location.base)
            source = "imported" if known and known.unique_id == location.unique_id else "default"
            file = f"{names.FOLDERS[location.folder]}/{printable(location.name, names.MAX_NAME_OCTETS)}"
            print(f"{index + 1} {printable(location.unique_id)} {source} {file}")
    finally:
        opened.close()
