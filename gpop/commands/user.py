"""
`gpop user list|set|unset`: settings of single accounts, in the file that accounts.user_settings names.

Takes effect with the next login of the account. Executed by an administrator, who may write there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable

from gpop.accounts.user_settings import EVERYBODY, LineNotUsable, parse_line
from gpop.commands import asking
from gpop.commands.asking import CommandFailed
from gpop.commands.editing import FileEdit
from gpop.events import printable

NAME_HELP = "the account, as `account` in the log; * for all that have no line"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop user`."""
    asking.add_config_argument(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "list", "show the file's lines, those that can't be used on standard error")
    change = _action(actions, "set", "set something for an account; what else is set for it stays")
    change.add_argument("account", metavar="ACCOUNT", help=NAME_HELP)
    text = "pop3=on|off, removal=unlink|hide|.FOLDER, dialogue_until=TIME"
    change.add_argument("settings", nargs="+", metavar="KEY=VALUE", help=text)
    unset = _action(actions, "unset", "forget what is set for an account")
    unset.add_argument("account", metavar="ACCOUNT", help=NAME_HELP)
    unset.add_argument("keys", nargs="*", metavar="KEY", help="only these (default: its whole line)")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=text, description=text)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    path = ""
    try:
        path = asking.settings(args.config)["user_settings"]
        return ACTIONS[args.action](path, args)
    except CommandFailed as error:
        asking.complain("user", error)
    except OSError as error:
        print(f"gpop user: {path}: {error.strerror or error}", file=sys.stderr)
    return 1


def _list(path: str, _args: argparse.Namespace) -> int:
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0  # nothing is set
    status = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            parse_line(line)
        except LineNotUsable as error:
            print(f"gpop user: {path}:{number}: {error}", file=sys.stderr)
            status = 1
        else:
            print(printable(b" ".join(line.split())))
    return status


def _set(path: str, args: argparse.Namespace) -> int:
    put(path, os.fsencode(args.account), [os.fsencode(word) for word in args.settings])
    return 0


def _unset(path: str, args: argparse.Namespace) -> int:
    name = os.fsencode(args.account)
    keys = [os.fsencode(key) for key in args.keys]
    if not forget(path, name, keys):
        raise CommandFailed(f"{path} has no line for {args.account}")
    return 0


ACTIONS: dict[str, Callable[[str, argparse.Namespace], int]] = {"list": _list, "set": _set, "unset": _unset}


def put(path: str, account: bytes, words: list[bytes]) -> None:
    """
    Set `words` (KEY=VALUE) for an account; what else is set for it stays.

    An account that gets its first line has had what `*` says, and no longer would: that is put into its line.

    Raises:
        CommandFailed: the line would not be usable, so nothing was changed.
    """
    if not account or any(octet <= 0x20 or octet == 0x7F for octet in account) or account.startswith(b"#"):
        raise CommandFailed("an account's name has no blanks and no control characters, and no # first")
    with FileEdit(path, create=True) as edit:
        place = _place_of(edit.lines, account)
        held_by = _place_of(edit.lines, EVERYBODY) if place is None else place
        had = [] if held_by is None else edit.lines[held_by].split()[1:]
        line = b" ".join([account, *_without(had, map(_key, words)), *words])
        try:
            parse_line(line)
        except LineNotUsable as error:
            raise CommandFailed(f"{error}; nothing was changed") from None
        if place is None:
            edit.lines.append(line)
        else:
            edit.lines[place] = line
        edit.write()


def forget(path: str, account: bytes, keys: list[bytes]) -> bool:
    """
    Forget what is set for an account under these keys, under all if there are none; False: it has no line.

    A line in which nothing is left goes: `*` holds for that account again.
    """
    try:
        with FileEdit(path) as edit:
            place = _place_of(edit.lines, account)
            if place is None:
                return False
            kept = _without(edit.lines[place].split()[1:], keys) if keys else []
            edit.lines[place : place + 1] = [b" ".join([account, *kept])] if kept else []
            edit.write()
    except FileNotFoundError:
        return False  # nothing is set for anybody
    return True


def _without(words: list[bytes], keys: Iterable[bytes]) -> list[bytes]:
    dropped = set(keys)
    return [word for word in words if _key(word) not in dropped]


def _key(word: bytes) -> bytes:
    return word.partition(b"=")[0]


def _place_of(lines: list[bytes], account: bytes) -> int | None:
    """Return the place of the line of an account, None if there is none."""
    return next((place for place, line in enumerate(lines) if line.split(None, 1)[:1] == [account]), None)
