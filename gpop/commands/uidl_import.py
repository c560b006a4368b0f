"""
`gpop uidl import --from SERVER MAILDIR...`: keep the unique-ids that another server has given.

Each Maildir has a process that becomes its owner before it looks at anything in there. A Maildir in which
any message is in doubt is left as it is, whole. What is imported already is left alone, so the same
command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator

from gpop.commands import owner, uidl_live
from gpop.commands.uidl_servers import complain, positive
from gpop.commands.uidl_table import Table, report_of
from gpop.maildrop import importfile
from gpop.maildrop.errors import MaildropError
from gpop.maildrop.imported import BadImport, ImportConflict
from gpop.migration import fake_uids, plan, sources
from gpop.migration.each_user import Report, for_each
from gpop.migration.files import files_of
from gpop.migration.progress import Progress
from gpop.migration.sources import SOURCES, Foreign, StateMissing, StateNotUsable, Wanted
from gpop.migration.uidl_format import WELL_KNOWN, BadFormat, Format

# To read the header of every message in a large maildrop on a slow disk takes its time.
TIMEOUT_S = 3600.0
AT_ONCE = 4
FORESEEN = (owner.Refused, StateNotUsable, MaildropError, ImportConflict, BadImport, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Keep the unique-ids that another server has given.\n\nservers:\n" + "".join(
        f"  {name:<14} {text}\n" for name, (_, text) in SOURCES.items()
    )
    parser.add_argument(
        "maildirs", nargs="*", metavar="MAILDIR", help="a Maildir, or a pattern ('/home/*/Maildir')"
    )
    parser.add_argument("--from", dest="source", choices=SOURCES, metavar="SERVER", help="see the list above")
    parser.add_argument("--list", metavar="FILE", help="a file with one Maildir a line; - for standard input")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    parser.add_argument(
        "--verbose", action="store_true", help="a line for every message, not only for doubts"
    )
    parser.add_argument(
        "--state",
        metavar="PATH",
        help="the other server's file, from the Maildir on (default: the usual name in it)",
    )
    parser.add_argument(
        "--uidl-format",
        metavar="FORMAT",
        help=f"Dovecot's pop3_uidl_format, or one of {', '.join(WELL_KNOWN)}".replace("%", "%%"),
    )
    parser.add_argument(
        "--reuse-x-uidl",
        action="store_true",
        help="Dovecot had pop3_reuse_xuidl: X-UIDL goes before the format",
    )
    parser.add_argument(
        "--replace-unusable",
        action="store_true",
        help="a message whose id no client may be told (RFC 1939: 1 to 70 octets, no space, ASCII) is no "
        "doubt: it gets gpop's default id, in its old place",
    )
    parser.add_argument(
        "--fake-uid-max",
        type=int,
        default=fake_uids.FAKE_UID_MAX,
        metavar="N",
        help="nupop's FAKE_UID_MAX (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once",
        type=positive,
        default=AT_ONCE,
        metavar="N",
        help="Maildirs at the same time (default: %(default)s)",
    )
    uidl_live.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Import; 1 if there was a doubt or a problem anywhere, 2 if the command line can't be understood."""
    if args.from_server:
        return uidl_live.run(args)
    try:
        maildirs = [*_maildirs(args)]
        problem = _problem(args, maildirs)
    except OSError as error:
        problem = f"{args.list}: {error.strerror}"
    if problem:
        complain(problem)
        return 2
    wanted = Wanted(args.state, args.uidl_format, args.reuse_x_uidl, args.fake_uid_max)

    def work(index: int) -> Report:
        return _import(maildirs[index], args, wanted)

    table = Table(args)
    with table.run(), Progress(len(maildirs), "importing", "Maildirs") as progress:
        for index, report in for_each(range(len(maildirs)), work, args.at_once, TIMEOUT_S):
            progress.advance(table.add(maildirs[index], report))
    table.finish(len(maildirs))
    if table.missing == len(maildirs):
        # Of everybody that can't be true.
        complain(
            "the other server's file is in none of them; if it is elsewhere (CONTROL=), --state says where"
        )
        return 1
    return 1 if table.problems else 0


def _maildirs(args: argparse.Namespace) -> Iterator[str]:
    for path in args.maildirs:
        yield from [path] if os.path.lexists(path) else sorted(glob.glob(path)) or [path]
    if args.list:
        listed = 0 if args.list == "-" else args.list
        with open(listed, encoding="utf-8", errors="surrogateescape", closefd=listed != 0) as file:
            for line in file:
                if line.strip():
                    yield line.rstrip("\n")


def _problem(args: argparse.Namespace, maildirs: list[str]) -> str:
    """Return what is wrong with the command line, if anything."""
    if not args.source:
        return f"--from is missing: one of {', '.join(SOURCES)}; or --from-server"
    if not maildirs:
        return "no Maildir is named"
    if args.fake_uid_max < 1:
        return "--fake-uid-max is a number from 1"
    if args.uidl_format:
        try:
            Format(args.uidl_format)
        except BadFormat as error:
            return f"--uidl-format: {error}"
    return ""


# One Maildir, in its owner's process


def _import(maildir: str, args: argparse.Namespace, wanted: Wanted) -> Report:
    """Do what is to be done, and report it."""
    try:
        dir_fd = owner.enter(maildir)
        files = files_of(dir_fd)
        missing = ""
        try:
            foreign = sources.find(args.source, dir_fd, files, wanted)
        except StateMissing as absent:
            # Nobody was ever told an id here, so gpop's own are right.
            foreign, missing = Foreign(), absent.name
        ids = [*map(plan.usable, foreign.ids)] if args.replace_unusable else foreign.ids
        made = plan.plan(files, ids, importfile.read(dir_fd), foreign.doubts)
        if made.added and not args.dry_run:
            importfile.add(dir_fd, made.added)
    except FORESEEN as error:
        return {"failed": owner.words_of(error, maildir)}
    return report_of(made, args.verbose, missing)
