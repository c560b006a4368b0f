"""
`gpop uidl import --from-server URL`: keep the unique-ids that the old server gives, by asking it.

A process for each user becomes the Maildir's owner, and only then connects: what a stranger sends is
never read by root, and a process that is taken over by it has that user's mail and password, both of
which the old server has anyway. Root starts these processes, tells them where the Maildir is, and reads a
few counts.

Users who are done are noted in a journal, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

from gpop.commands import owner, uidl_servers
from gpop.commands.uidl_servers import complain, failure
from gpop.commands.uidl_table import Table, report_of
from gpop.config import DEFAULT_PATH, ConfigErrors, reading
from gpop.maildrop import importfile
from gpop.maildrop.errors import MaildropError
from gpop.maildrop.imported import BadImport, ImportConflict
from gpop.migration import live, places, plan
from gpop.migration.each_user import Report
from gpop.migration.journal import Journal, JournalNotUsable
from gpop.migration.live import MaildirChanging
from gpop.migration.matching import Doubt
from gpop.migration.places import ANY_UID, NoPlace, Place
from gpop.migration.plan import ForeignId, Plan, Verdict
from gpop.migration.pop3_client import Client, ConversationFailed
from gpop.migration.progress import Progress
from gpop.migration.servers import LoginForm, NotUsable, Server
from gpop.migration.users import ListNotUsable, UserList

# What may be wrong with one user and leaves the others as they are.
FORESEEN = (
    owner.Refused, NoPlace, ListNotUsable,
    ConversationFailed, MaildirChanging, MaildropError, ImportConflict, BadImport, OSError,
)  # fmt: skip
JOURNAL_SUFFIX = ".gpop-journal"
# A doubt that a plan does not know: a message of the server's that is nowhere in the Maildir.
NO_FILE = "no file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("from a server that still runs")
    group.add_argument(
        "--from-server",
        metavar="URL",
        help="ask this server: pop3s://HOST[:PORT], or pop3://HOST[:PORT] for STLS",
    )
    group.add_argument(
        "--maildir-of",
        metavar="PATTERN",
        help="where a user's Maildir is: '/srv/mail/%%d/%%n/Maildir' (%%u is the name, %%n is what is before "
        "the @, %%d after it) or '~/Maildir' (default: where the accounts of --config have it)",
    )
    group.add_argument(
        "--config", metavar="FILE", default=DEFAULT_PATH, help="gpop's config file (default: %(default)s)"
    )
    group.add_argument(
        "--journal",
        metavar="FILE",
        help=f"where users who are done are noted (default: as --users, with {JOURNAL_SUFFIX})",
    )
    group.add_argument("--again", action="store_true", help="forget the journal and do everybody again")
    uidl_servers.add_user_arguments(group, required=False)
    uidl_servers.add_server_arguments(parser, "", "that server")


def run(args: argparse.Namespace) -> int:
    """Import for everybody of the list; 1 if somebody is in doubt or failed, 2 if nothing could begin."""
    try:
        _check(args)
        place = _place(args)
        server, form = uidl_servers.server_of(args, args.from_server, "")
        listed = UserList(args.users, form.needs_password())
        journal = _journal(args)
    except (NotUsable, ListNotUsable, JournalNotUsable, NoPlace) as error:
        complain(str(error))
        return 2
    done = journal.done if journal else set()
    wanted = [index for index, user in enumerate(listed.users) if user.name not in done]
    if journal and done:
        left_out = len(listed.users) - len(wanted)
        says = f"{left_out} users were done before, says {journal.path}, and are left out"
        complain(f"{says}; --again does them again")
    table = Table(args, "user")
    with uidl_servers.empty_directory() as jail, table.run():
        importer = Importer(listed, server, form, place, args, jail)
        with Progress(len(wanted), "importing") as progress:
            for name, report in uidl_servers.go_round(listed, wanted, importer.work, args):
                is_problem = table.add(os.fsdecode(name), report)
                if journal and not is_problem:
                    journal.note(name)
                progress.advance(is_problem)
    table.finish(len(wanted))
    return 1 if table.problems else 0


def _check(args: argparse.Namespace) -> None:
    if args.maildirs or args.list or args.source:
        raise NotUsable("--from-server takes --users; not --from, --list or Maildirs")
    if not args.users:
        raise NotUsable("--from-server needs --users, a file with a line for each user")


def _place(args: argparse.Namespace) -> Place:
    if args.maildir_of:
        return places.by_pattern(args.maildir_of)
    try:
        return places.by_accounts(reading.load(args.config))
    except ConfigErrors as errors:
        raise NoPlace(f"{errors}\n--maildir-of says where Maildirs are without a config") from None


def _journal(args: argparse.Namespace) -> Journal | None:
    """Return the journal; None where nothing is done that could be noted, or there is no name for it."""
    path = args.journal or ("" if args.users == "-" else args.users + JOURNAL_SUFFIX)
    if args.dry_run or not path:
        return None
    maildirs = args.maildir_of or f"as the accounts of {os.path.abspath(args.config)} have them"
    return Journal(path, {"server": args.from_server, "maildirs": maildirs}, args.again)


class Importer:
    """What a user's process does."""

    def __init__(
        self,
        listed: UserList,
        server: Server,
        form: LoginForm,
        place: Place,
        args: argparse.Namespace,
        jail: str,
    ) -> None:
        self._listed = listed
        self._server = server
        self._form = form
        self._place = place
        self._args = args
        self._jail = jail

    def work(self, index: int) -> Report:
        """Do one user: become the owner of the Maildir, ask, match, plan, and write if there is no doubt."""
        user = self._listed.users[index]
        try:
            password = self._listed.password(user)
            self._listed.close()
            path, uid = self._place(user.name)
            dir_fd = self._entered(os.fsdecode(path), uid)
            deadline = time.monotonic() + self._args.user_timeout_s
            client = uidl_servers.session(self._server, self._form, user.name, password, self._args, deadline)
            with contextlib.closing(client):
                if dir_fd is None:
                    return _without_maildir(client, path)
                return report_of(self._imported(dir_fd, client), self._args.verbose)
        except FORESEEN as error:
            return failure(error)

    def _entered(self, path: str, uid: int) -> int | None:
        """Become a Maildir's owner, and return its descriptor; nobody, and None, if there is no Maildir."""
        try:
            dir_fd = owner.enter(path)
        except FileNotFoundError:
            uidl_servers.become_nobody(self._jail)
            return None
        if uid not in (ANY_UID, os.geteuid()):
            raise owner.Refused(f"its Maildir belongs to uid {os.geteuid()}, the account is uid {uid}")
        return dir_fd

    def _imported(self, dir_fd: int, client: Client) -> Plan:
        listed = live.messages_of(client)
        files = live.Files(dir_fd)
        found = live.match(client, files, listed)
        client.quit()
        ids = [ForeignId(pair.stored.base, pair.listed.unique_id, pair.listed.number) for pair in found.pairs]
        if self._args.replace_unusable:
            ids = [plan.usable(one) for one in ids]
        made = plan.plan(files.files, ids, importfile.read(dir_fd), map(_verdict, found.doubts))
        if made.added and not self._args.dry_run:
            importfile.add(dir_fd, made.added)
        return made


def _without_maildir(client: Client, path: bytes) -> Report:
    """Of a user who has never got mail there is nothing to keep; anybody else's has to be somewhere."""
    count, _ = client.drop_listing()
    client.quit()
    if count:
        raise owner.Refused(
            f"{owner.shown(os.fsdecode(path))} is not there, and the server has {count} messages"
        )
    return report_of(Plan(), verbose=False, missing="Maildir")


def _verdict(doubt: Doubt) -> Verdict:
    """A message of the server's without a file has no name; its number stands in its place."""
    return Verdict(b"message %d" % doubt.listed.number, NO_FILE, doubt.listed.unique_id, doubt.reason)
