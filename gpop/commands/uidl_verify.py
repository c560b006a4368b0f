"""
`gpop uidl verify`: whether two servers list the same maildrops with the same unique-ids, user by user.

It needs no Maildir and no root. Started by root, each user's process becomes `nobody` in an empty directory
before it connects: what two servers say is no business of root's.

Exit statuses are those of diff(1): 0 nothing differs, 1 something does, 2 somebody could not be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator

from gpop.commands import uidl_servers
from gpop.commands.uidl_servers import complain, failure, shown_name
from gpop.events import printable, printable_text
from gpop.migration import comparing
from gpop.migration.comparing import Comparison, Difference, Listing
from gpop.migration.each_user import Report, orderly_end
from gpop.migration.pop3_client import ConversationFailed
from gpop.migration.progress import Progress
from gpop.migration.servers import LoginForm, NotUsable, Server
from gpop.migration.users import ListNotUsable, User, UserList

AT_ONCE = 8
SIDES = ("old", "new")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for side in SIDES:
        parser.add_argument(
            f"--{side}",
            required=True,
            metavar="URL",
            help=f"the {side} server: pop3s://HOST[:PORT], or pop3://HOST[:PORT] for STLS",
        )
    parser.add_argument(
        "--ignore-sizes",
        action="store_true",
        help="compare unique-ids and order only; some servers (qmail-pop3d) do not count CRs in sizes",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="take messages that only the new server has, at the end, for a difference too",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each user")
    parser.add_argument(
        "--show",
        type=uidl_servers.positive,
        default=10,
        metavar="N",
        help="print so many differences of each kind for each user (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once",
        type=uidl_servers.positive,
        default=AT_ONCE,
        metavar="N",
        help="users at the same time (default: %(default)s)",
    )
    uidl_servers.add_user_arguments(parser.add_argument_group("users"), required=True)
    for side in SIDES:
        uidl_servers.add_server_arguments(parser, f"{side}-", f"the {side} server")


def run(args: argparse.Namespace) -> int:
    """Compare, print what differs and a summary."""
    try:
        sides = [uidl_servers.server_of(args, getattr(args, side), f"{side}-") for side in SIDES]
        listed = UserList(args.users, any(form.needs_password() for _, form in sides))
    except (NotUsable, ListNotUsable) as error:
        complain(str(error))
        return 2
    totals: Counter[str] = Counter()
    with uidl_servers.empty_directory() as jail:
        comparer = Comparer(listed, sides, args, jail)
        wanted = list(range(len(listed.users)))
        try:
            with orderly_end(), Progress(len(wanted), "comparing") as progress:
                for name, report in uidl_servers.go_round(listed, wanted, comparer.compare, args):
                    counted, lines = _told(name, report, args)
                    totals.update(counted)
                    for line in lines:
                        print(printable_text(line), flush=True)
                    progress.advance(not counted["identical"])
        except KeyboardInterrupt:
            complain("ended before everybody was compared")
            totals["failed"] += 1
    print(json.dumps({"summary": dict(totals)}) if args.json else _summary(totals))
    return 2 if totals["failed"] else 1 if totals["different"] else 0


class Comparer:
    """What a user's process does."""

    def __init__(
        self,
        listed: UserList,
        sides: list[tuple[Server, LoginForm]],
        args: argparse.Namespace,
        jail: str,
    ) -> None:
        self._listed = listed
        self._sides = sides
        self._args = args
        self._jail = jail

    def compare(self, index: int) -> Report:
        """Ask both servers about one user."""
        user = self._listed.users[index]
        try:
            password = self._listed.password(user)
        except ListNotUsable as error:
            return failure(error)
        self._listed.close()
        uidl_servers.become_nobody(self._jail)
        deadline = time.monotonic() + self._args.user_timeout_s
        listings = []
        for side, (server, form) in zip(SIDES, self._sides, strict=True):
            try:
                listings.append(self._listing(server, form, user, password, deadline))
            except ConversationFailed as error:
                return failure(error) | {"side": side}
        found = comparing.compare(listings[0], listings[1], not self._args.ignore_sizes, self._args.show)
        return _report(found, self._args.exact)

    def _listing(
        self, server: Server, form: LoginForm, user: User, password: bytes, deadline: float
    ) -> Listing:
        client = uidl_servers.session(server, form, user.name, password, self._args, deadline)
        with contextlib.closing(client):
            totals = client.drop_listing()
            listing = Listing(client.scan_listings(totals[0]), client.unique_ids(totals[0]), totals)
            client.quit()
        return listing


def _report(found: Comparison, exact: bool) -> Report:
    return {
        "messages": found.messages,
        "later": found.later,
        "trouble": bool(found.counts) or (exact and found.later > 0),
        "counts": dict(found.counts),
        "differences": [_plain(difference) for difference in found.shown],
    }


def _plain(difference: Difference) -> dict[str, object]:
    return {
        "kind": difference.kind,
        "old_number": difference.old_number,
        "new_number": difference.new_number,
        "old": printable(difference.old),
        "new": printable(difference.new),
    }


# What is printed

EFFECT = {
    comparing.CHANGED: " (clients fetch these again)",
    comparing.ADDED: " (clients fetch these again)",
    comparing.RESIZED: " (no client fetches anything again for that)",
}


def _told(name: bytes, report: Report, args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Return what a report adds to the totals, and its lines: words of a process that may be the servers'."""
    try:
        return _counted(report), list(_lines(name, report, args))
    except (AttributeError, KeyError, TypeError, ValueError):
        nonsense = {"failed": "its process said nonsense"}
        return _counted(nonsense), list(_lines(name, nonsense, args))


def _counted(report: Report) -> Counter[str]:
    """Return what a report adds to the totals."""
    if "failed" in report:
        return Counter(users=1, failed=1)
    word = "different" if report["trouble"] else "identical"
    messages, later = int(report["messages"]), int(report["later"])
    return Counter({"users": 1, word: 1, "messages": messages, "later": later, "users_later": later > 0})


def _lines(name: bytes, report: Report, args: argparse.Namespace) -> Iterator[str]:
    shown = shown_name(name)
    if args.json:
        status = "failed" if "failed" in report else "different" if report["trouble"] else "identical"
        yield json.dumps({"user": shown} | report | {"user": shown, "status": status})
    elif "failed" in report:
        side = f" on the {report['side']} server" if "side" in report else ""
        yield f"{shown}: could not be compared{side}: {report['failed']}"
    elif report["trouble"]:
        yield f"{shown}: differs"
        for kind, count in report["counts"].items():
            yield f"  {kind}: {count}{EFFECT.get(kind, '')}"
            for difference in report["differences"]:
                if difference["kind"] == kind:
                    yield f"    {_sentence(difference)}"
            if count > args.show:
                yield f"    and {count - args.show} more"
        if report["later"]:
            yield f"  at the end of the new server's list: {report['later']} more"


def _sentence(difference: dict[str, object]) -> str:
    numbers = [(side, difference[f"{side}_number"], difference[side]) for side in SIDES]
    return ", ".join(
        " ".join(filter(None, (side, f"message {number}" if number else "", f"{value}")))
        for side, number, value in numbers
        if number or value
    )


def _summary(totals: Counter[str]) -> str:
    users = totals["users"]
    words = [f"{users} user{'' if users == 1 else 's'}", f"{totals['identical']} identical"]
    words += [f"{totals[word]} {text}" for word, text in MORE_TOTALS.items() if totals[word]]
    summary = f"{', '.join(words)}; {totals['messages']} messages are on both sides"
    if totals["later"]:
        summary += (
            f"; {totals['later']} at the end are on the new server only (of {totals['users_later']} users)"
        )
    return summary


MORE_TOTALS = {"different": "different", "failed": "not compared"}
