"""
`gpop passwd`: add, change, delete and list the accounts of a passwd-file.

Rewrites the file whole and atomically, under its own owner and mode, and touches no other
line: comments, blank lines and lines that gpop can't use stay as they are, octet for octet.
Passwords come from a prompt or standard input, never from the command line, where every
local user could read them.
"""

from __future__ import annotations

import argparse
import getpass
import os
import pwd
import sys
from collections.abc import Callable

from gpop.accounts import hashes
from gpop.accounts.account import MaildirNotUnderstood, resolve_maildir
from gpop.accounts.passwdfile import LineNotUsable, parse_line
from gpop.commands import owner
from gpop.commands.editing import FileEdit
from gpop.events import printable, printable_text


class CommandFailed(Exception):
    """What keeps the command from being done, in words for whoever typed it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop passwd`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = _action(actions, "add", "add an account (and make the file, if there is none yet)")
    add.add_argument("--uid", type=int, help="who owns the mail (default: as the system's USER, or you)")
    add.add_argument("--gid", type=int, help="group id (default: as for --uid)")
    add.add_argument("--home", help="absolute path of the home (default: as for --uid)")
    add.add_argument("--maildir", help="the Maildir, if not the usual one: a path, or ~/PATH in the home")
    _action(actions, "change", "give an account a new password")
    _action(actions, "delete", "take an account out of the file; its mail stays")
    _action(actions, "list", "show the accounts, without their hashes", user=False)


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, user: bool = True
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.add_argument("file", metavar="FILE", help="the passwd-file")
    if user:
        parser.add_argument("user", metavar="USER", help="the name to log in with")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    try:
        return ACTIONS[args.action](args)
    except CommandFailed as error:
        print(f"gpop passwd: {printable_text(str(error))}", file=sys.stderr)
    except OSError as error:
        print(f"gpop passwd: {args.file}: {error.strerror or error}", file=sys.stderr)
    return 1


def _add(args: argparse.Namespace) -> int:
    name = os.fsencode(args.user)
    uid, gid, home = _identity(args)
    extra = b"maildir=" + os.fsencode(args.maildir) if args.maildir else b""
    with FileEdit(args.file, create=True) as edit:
        if _place_of(edit, name) is not None:
            raise CommandFailed(f"{args.file} has a user {args.user} already; `change` gives a new password")
        rest = b":".join((b"%d" % uid, b"%d" % gid, b"", home, b"", extra))
        # Everything but the password is checked before anybody is asked for one.
        if b":" in name + home or any(octet in name + home + extra for octet in b"\r\n"):
            raise CommandFailed("a user name and a home have no ':' in them, nothing has line ends")
        _check_line(b":".join((name, b"*", rest)), args.maildir)
        edit.lines.append(b":".join((name, _new_hash(args.user), rest)))
        edit.write()
    return 0


def _identity(args: argparse.Namespace) -> tuple[int, int, bytes]:
    """Return uid, gid and home: as told, else those of the system's user, else one's own."""
    entry = None
    if None in (args.uid, args.gid, args.home):
        try:
            entry = pwd.getpwnam(args.user)
        except KeyError:
            if os.geteuid() == 0:
                raise CommandFailed(
                    f"the system has no user {args.user}: say --uid, --gid and --home"
                ) from None
            entry = pwd.getpwuid(os.geteuid())
    uid = args.uid if entry is None or args.uid is not None else entry.pw_uid
    gid = args.gid if entry is None or args.gid is not None else entry.pw_gid
    home = args.home if entry is None or args.home is not None else entry.pw_dir
    return uid, gid, os.fsencode(home)


def _check_line(line: bytes, maildir: str | None) -> None:
    try:
        entry = parse_line(line)
        if entry.maildir is not None:
            resolve_maildir(entry.maildir, entry.home)
    except (LineNotUsable, MaildirNotUnderstood) as error:
        raise CommandFailed(str(error)) from None
    if entry.maildir != (None if maildir is None else os.fsencode(maildir)):
        raise CommandFailed("a --maildir has no blanks in it: they separate the extra fields")


def _change(args: argparse.Namespace) -> int:
    with FileEdit(args.file) as edit:
        index = _index_of(edit, args)
        name, _, *rest = edit.lines[index].split(b":", 2)
        if not rest:
            raise CommandFailed(
                f"{args.file}:{index + 1}: the line has nothing after the password; mend it first"
            )
        edit.lines[index] = b":".join((name, _new_hash(args.user), *rest))
        edit.write()
    return 0


def _delete(args: argparse.Namespace) -> int:
    with FileEdit(args.file) as edit:
        del edit.lines[_index_of(edit, args)]
        edit.write()
    return 0


def _index_of(edit: FileEdit, args: argparse.Namespace) -> int:
    index = _place_of(edit, os.fsencode(args.user))
    if index is None:
        raise CommandFailed(f"{args.file} has no user {args.user}")
    return index


def _place_of(edit: FileEdit, name: bytes) -> int | None:
    """Return the place of the first line of `name`, the one that holds; None if there is none."""
    for index, line in enumerate(edit.lines):
        if line.startswith(name + b":") and not line.startswith(b"#"):
            return index
    return None


def _list(args: argparse.Namespace) -> int:
    """Print name, uid, gid, home and maildir of each account; lines that can't be used are named."""
    status = 0
    with open(args.file, "rb") as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix(b"\r")
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            entry = parse_line(line)
        except LineNotUsable as error:
            print(f"gpop passwd: {args.file}:{number}: {error}", file=sys.stderr)
            status = 1
            continue
        paths = [entry.home, *([] if entry.maildir is None else [b"maildir=" + entry.maildir])]
        shown = [printable(octets, owner.MAX_PATH_OCTETS) for octets in (entry.name, *paths)]
        print(shown[0], entry.uid, entry.gid, *shown[1:])
    return status


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": _add,
    "change": _change,
    "delete": _delete,
    "list": _list,
}


def _new_hash(user: str) -> bytes:
    """Ask for a password, twice where somebody types it, and return its hash."""
    if sys.stdin.isatty():
        password = os.fsencode(getpass.getpass(f"Password for {user}: "))
        if password != os.fsencode(getpass.getpass("Again: ")):
            raise CommandFailed("the two are not the same; nothing was changed")
    else:
        line = sys.stdin.buffer.readline(hashes.MAX_PASSWORD_OCTETS + 3)
        password = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return hashes.make(password)
    except hashes.HashNotUsable as error:
        raise CommandFailed(str(error)) from None
