"""
`gpop virtusers lookup NAME`: which account a login name means, step by step; `build FILE`: a compiled map.

`lookup` goes the way of a login, in the code of a login, but for the password: name rules, maps,
sources. It changes nothing and asks PAM nothing. `build` makes of a text an LMDB file that
gpop and Postfix read. Executed by an administrator.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from gpop.accounts.account import Accepted, Limits, Refused, SourceUnavailable
from gpop.accounts.maps import grammar, lmdbfile
from gpop.accounts.maps.apart import run_apart
from gpop.accounts.maps.compiled import CompiledMap
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.resolving import Asked, Became, Rejected
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.sources import PasswdFileSource, Request, limits_of
from gpop.commands import check_config
from gpop.config import DEFAULT_PATH, AuthSettings, reading
from gpop.events import printable, printable_text

LMDB_ENDING = ".lmdb"
# Of a text that is compiled; some ten million entries.
MAX_TEXT_OCTETS = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop virtusers`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "show each step from a login name to its account"
    lookup = actions.add_parser("lookup", help=text, description=text)
    lookup.add_argument("name", metavar="NAME", help="the name as a client gives it")
    lookup.add_argument(
        "--local",
        metavar="ADDRESS",
        default="",
        help="the address of this machine that the client connects to (for default_domains)",
    )
    lookup.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help="default: %(default)s")
    text = "compile the text of a map to LMDB, in place of the old one"
    build = actions.add_parser("build", help=text, description=text)
    build.add_argument("source", metavar="FILE", help="the text; a map that is called lmdb:FILE then")
    build.add_argument("--output", metavar="FILE.lmdb", help="default: FILE.lmdb beside it")
    build.add_argument(
        "--sendmail",
        action="store_true",
        help="the text is a virtusertable for makemap, where no entry goes on in the next line",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    try:
        return _lookup(args) if args.action == "lookup" else _build(args)
    except MapError as error:
        print(f"gpop virtusers: {error}", file=sys.stderr)
    except OSError as error:
        print(f"gpop virtusers: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
    return 1


# lookup


def _lookup(args: argparse.Namespace) -> int:
    found = reading.read(args.config)
    if found.errors:
        for line in check_config.report(found.errors, []):
            print(line, file=sys.stderr)
        return 2
    settings = found.config().auth
    virtual = VirtualUsers(settings)
    for each in virtual.refresh():
        if isinstance(each, CompiledMap):
            print(f"warning: {each.map_name.file} is older than its source {each.map_name.source}")
    typed = os.fsencode(args.name)
    name = virtual.rules.login_name(typed, args.local)
    _say("name", printable(typed))
    if name != typed:
        _say("meant", f"{printable(name)} (accounts.virtual: case, separators, default domain)")
    steps, account = run_apart(lambda: _steps(virtual, name))
    for label, text in steps:
        _say(label, text)
    if account is None:
        return 1
    return _ask_sources(settings, account)


def _say(label: str, text: str) -> None:
    print(f"{label:<10} {text}")


def _steps(virtual: VirtualUsers, name: bytes) -> tuple[list[tuple[str, str]], bytes | None]:
    """Return lines to be said, and the account's name; None if there is to be no login."""
    lines: list[tuple[str, str]] = []
    mapped = name

    def trace(step: Asked | Became) -> None:
        nonlocal mapped
        if isinstance(step, Became):
            mapped = step.result
            lines.append(("", f"{printable(step.name)} -> {printable(step.result)}"))
        else:
            value = "no entry" if step.value is None else f'"{printable(step.value)}"'
            lines.append(("asked", f"{step.map_name} for {printable(step.key)}: {value}"))

    try:
        account = virtual.account_name(name, trace)
    except MapError as error:
        return [*lines, ("error", f"{error}; a login is told [SYS/TEMP]")], None
    if isinstance(account, Rejected):
        return [*lines, ("refused", f"{account.reason}: {account.text}")], None
    if account != mapped:
        lines.append(("local", f"{printable(mapped)} -> {printable(account)} (local_domains)"))
    return [*lines, ("account", printable(account))], account


def _ask_sources(settings: AuthSettings, account: bytes) -> int:
    """Say which source knows the account; 1 if none does, or it is not served."""
    limits = limits_of(settings)
    for row in settings.sources:
        try:
            known = (
                _in_passwd_file(row["path"], account, limits) if "path" in row else _in_nss(account, limits)
            )
        except SourceUnavailable as error:
            _say("error", f"{error}; a login is told [SYS/TEMP]")
            return 1
        label = row.get("path") or f"PAM service {row.get('service')}"
        if known is not None:
            _say("source", f"{label}: {known[1]}")
            return 0 if known[0] else 1
        _say("source", f"{label}: unknown")
    return 1


def _in_passwd_file(path: str, account: bytes, limits: Limits) -> tuple[bool, str] | None:
    source = PasswdFileSource(path, limits)
    source.file.refresh()
    verdict = source.decide(Request(account, None, None))
    if isinstance(verdict, Accepted):
        found = verdict.account
        return True, f"uid {found.uid}, gid {found.gid}, {printable(found.maildir)}"
    if isinstance(verdict, Refused):
        return False, f"{verdict.reason} {verdict.detail}".strip()
    return None


def _in_nss(account: bytes, limits: Limits) -> tuple[bool, str] | None:
    # Brings in ctypes, which nobody else here needs.
    from gpop.accounts import nss

    user = nss.lookup(account)
    if user is None:
        return None
    reason = limits.refusal(user.uid, user.gid)
    return not reason, reason or f"uid {user.uid}, gid {user.gid}, home {printable(user.home)}"


# build


def _build(args: argparse.Namespace) -> int:
    # A symbolic link is followed, so that it stays one.
    output = os.path.realpath(args.output or args.source + LMDB_ENDING)
    with open(args.source, "rb") as file:
        octets = file.read(MAX_TEXT_OCTETS + 1)
    problem = _refusal(args.source, output, octets)
    if problem:
        print(f"gpop virtusers: {printable_text(problem)}", file=sys.stderr)
        return 1
    entries = grammar.parse(octets, grammar.SENDMAIL if args.sendmail else grammar.POSTFIX)
    too_long = [key for key in entries.values if len(key) >= lmdbfile.MAX_KEY_OCTETS]
    for line in _problems(args.source, entries, too_long):
        print(line, file=sys.stderr)
    if entries.problem_count > entries.duplicates or too_long:
        print("gpop virtusers: nothing is changed: mend these lines first", file=sys.stderr)
        return 1
    lmdbfile.write(output, entries.values)
    print(f"{printable_text(args.output or args.source + LMDB_ENDING)}: {len(entries.values)} entries")
    return 0


def _refusal(source: str, output: str, octets: bytes) -> str:
    """Return why the map can't be put there, or not be made of these octets; "" if it can."""
    if len(octets) > MAX_TEXT_OCTETS:
        return f"{source}: larger than {MAX_TEXT_OCTETS} octets; nothing is changed"
    if os.path.exists(output) and os.path.samefile(source, output):
        return f"{output}: this is the text itself; --output names another file"
    if os.path.exists(output) and not os.path.isfile(output):
        return f"{output}: not a regular file, in whose place a map could be put"
    return ""


def _problems(source: str, entries: grammar.Entries, too_long: Sequence[bytes]) -> Iterator[str]:
    for line, text in entries.problems:
        yield f"{source}:{line}: {text}"
    left = entries.problem_count - len(entries.problems)
    if left:
        yield f"{source}: and {left} more lines like these"
    for key in too_long[: grammar.MAX_PROBLEMS]:
        most = lmdbfile.MAX_KEY_OCTETS - 1
        yield f"{source}: a key of {len(key)} octets, LMDB takes {most}: {printable(key, 60)}"
