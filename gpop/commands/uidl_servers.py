"""
What `gpop uidl import --from-server` and `gpop uidl verify` share: options for servers and users, and the
round.

Options say where a server is, whom it believes and as whom to log in; passwords come from files and
standard input only, because a command line is everybody's to read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from gpop.events import printable, printable_text
from gpop.maildrop.errors import MaildropInUse
from gpop.migration import each_user, servers
from gpop.migration.each_user import Report
from gpop.migration.pop3_client import Client, ConversationFailed
from gpop.migration.servers import LoginForm, Master, NotUsable, Server, TlsChoice
from gpop.migration.users import UserList
from gpop.privsep import credentials

SILENCE_S = 120.0
USER_TIMEOUT_S = 3600.0
# What was only not possible at the moment is tried once more, not before this time has passed.
AGAIN_AFTER_S = 5.0
MOST_AT_ONCE = 10_000
LONGEST_S = 7 * 86400
NOBODY = "nobody"


def add_server_arguments(parser: argparse.ArgumentParser, side: str, what: str) -> None:
    """Add the options that say how to speak to one server; `side` is "", "old-" or "new-"."""
    group = parser.add_argument_group(f"how to log in to {what}")
    group.add_argument(
        f"--{side}login-as",
        metavar="TEMPLATE",
        help="login name made from {user} and {master}, e.g. '{user}@example.org' "
        "(default: '{user}', with a master user '{user}*{master}')",
    )
    group.add_argument(
        f"--{side}master-user", metavar="NAME", help="log in as this master user for everybody"
    )
    group.add_argument(
        f"--{side}master-password-file", metavar="FILE", help="the master user's password, in its first line"
    )
    group.add_argument(
        f"--{side}master-by-authzid",
        action="store_true",
        help="name the user in AUTH PLAIN beside the master user (Cyrus), not in the login name",
    )
    group.add_argument(f"--{side}ca-file", metavar="FILE", default="", help="certificates to believe")
    group.add_argument(
        f"--{side}no-certificate-check",
        action="store_true",
        help="believe any certificate: anybody may listen",
    )
    group.add_argument(
        f"--{side}ancient-tls",
        action="store_true",
        help="also take TLS 1.0 and 1.1 and the ciphers of that time",
    )
    group.add_argument(
        f"--{side}cleartext",
        action="store_true",
        help="with pop3://, no STLS: passwords go over the network as they are",
    )


def add_user_arguments(parser: argparse._ArgumentGroup, required: bool) -> None:
    """Add the options about users: who they are, and how long each may take."""
    parser.add_argument(
        "--users",
        metavar="FILE",
        required=required,
        help="a line NAME:PASSWORD for each user, or NAME where a master user logs in; - is standard input",
    )
    parser.add_argument(
        "--silence-s",
        type=seconds,
        default=SILENCE_S,
        metavar="S",
        help="give up on a server that says nothing for so long (default: %(default)g)",
    )
    parser.add_argument(
        "--user-timeout-s",
        type=seconds,
        default=USER_TIMEOUT_S,
        metavar="S",
        help="give up on a user who takes longer than this altogether (default: %(default)g)",
    )


def positive(text: str) -> int:
    """Return the number that an option gives, from 1 on."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_AT_ONCE:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_AT_ONCE}")
    return int(text)


def seconds(text: str) -> float:
    """Return the time that an option gives."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= LONGEST_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, up to {LONGEST_S} (a week)")


def server_of(args: argparse.Namespace, url: str, side: str) -> tuple[Server, LoginForm]:
    """
    Return the server that the options describe, and how to log in there.

    Raises:
        NotUsable: they describe none.
    """

    def option(name: str) -> str:
        value: str = getattr(args, (side + name).replace("-", "_"))
        return value

    choice = TlsChoice(
        option("ca-file"),
        not option("no-certificate-check"),
        bool(option("cleartext")),
        bool(option("ancient-tls")),
    )
    name, path, by_authzid = (
        option("master-user"),
        option("master-password-file"),
        option("master-by-authzid"),
    )
    if bool(name) != bool(path) or (by_authzid and not name):
        raise NotUsable(f"--{side}master-user and --{side}master-password-file go together")
    master = Master(name, servers.read_password(path), bool(by_authzid)) if name else None
    template = option("login-as") or ("{user}*{master}" if master and not by_authzid else "{user}")
    if "{user}" not in template:
        raise NotUsable(f"--{side}login-as {template}: there is no {{user}} in it")
    return servers.locate(url, choice), LoginForm(template, master)


@contextlib.contextmanager
def empty_directory() -> Iterator[str]:
    """An empty directory of root's, for `become_nobody`; "" where there is no root."""
    if os.geteuid() != 0:
        yield ""
        return
    path = tempfile.mkdtemp(prefix="gpop-uidl-")
    try:
        yield path
    finally:
        os.rmdir(path)


def become_nobody(directory: str) -> None:
    """If this is root, become `nobody`, locked in an `empty_directory`: root listens to no stranger."""
    if directory:
        nobody = pwd.getpwnam(NOBODY)
        credentials.become_service(nobody.pw_uid, nobody.pw_gid, directory)


def session(
    server: Server, form: LoginForm, user: bytes, password: bytes, args: argparse.Namespace, deadline: float
) -> Client:
    """Return a client that is logged in as a user of the list. Raises ConversationFailed."""
    client = Client(server, args.silence_s, deadline)
    try:
        client.login(*form.login(user, password))
    except ConversationFailed:
        client.close()
        raise
    return client


def go_round(
    listed: UserList, wanted: list[int], work: Callable[[int], Report], args: argparse.Namespace
) -> Iterator[tuple[bytes, Report]]:
    """
    Yield the name and the report of each user whose index is `wanted`, as they end.

    A report with "temporary" is put aside, and the user tried once more after all the others.
    """
    keep = [listed.fileno()]
    again: list[int] = []
    for index, report in each_user.for_each(wanted, work, args.at_once, args.user_timeout_s, keep):
        if report.get("temporary"):
            again.append(index)
        else:
            yield listed.users[index].name, report
    if again:
        time.sleep(AGAIN_AFTER_S)
    for index, report in each_user.for_each(again, work, args.at_once, args.user_timeout_s, keep):
        yield listed.users[index].name, report


def failure(error: Exception) -> Report:
    """Return the report of a user with whom something foreseen went wrong."""
    return {
        "failed": str(error),
        "temporary": isinstance(error, MaildropInUse) or getattr(error, "temporary", False),
    }


def shown_name(name: bytes) -> str:
    """Return a user's name as it can be printed."""
    return printable(name, 255)


def complain(text: str) -> None:
    """Say on standard error what keeps a command from doing anything."""
    for line in text.splitlines():
        print(f"gpop uidl: {printable_text(line)}", file=sys.stderr)
