"""
`gpop who [ACCOUNT]`: the sessions that run, of everybody or of one account.

Executed by an administrator, as root or as the user who has started gpop.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from gpop.commands import asking
from gpop.events import printable
from gpop.privsep import messages

HEAD = ("ACCOUNT", "FROM", "SINCE (UTC)", "PID", "MAILDIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop who`."""
    asking.add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a session, a line each")
    parser.add_argument("account", nargs="?", metavar="ACCOUNT", help="only the sessions of this account")


def run(args: argparse.Namespace) -> int:
    """Print a line for each session; 1 if gpop can't be asked."""
    try:
        _, (fd,) = asking.ask(args.config, messages.LIST_SESSIONS)
    except asking.CommandFailed as error:
        asking.complain("who", error)
        return 1
    with open(fd, "rb") as file:
        sessions = [_described(pid, login) for pid, login in _records(file.read())]
    if args.account is not None:
        wanted = printable(os.fsencode(args.account))
        sessions = [session for session in sessions if session["account"] == wanted]
    sessions.sort(key=lambda session: (session["account"], session["since"]))
    if args.json:
        for session in sessions:
            print(json.dumps(session))
    else:
        print("\n".join(_table(sessions)))
    return 0


def _records(octets: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0
    while at < len(octets):
        length, pid = messages.SESSION_RECORD.unpack_from(octets, at)
        at += messages.SESSION_RECORD.size
        yield pid, messages.fields_of(octets[at : at + length], messages.SERVE)
        at += length


def _described(pid: int, login: dict[str, Any]) -> dict[str, Any]:
    # When the password came, on the clock that both of us have.
    ago_s = time.monotonic() - login["received_ms"] / 1000
    return {
        "account": printable(login["account"]),
        "peer": login["peer"],
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago_s)),  # as in the log
        "seconds": int(ago_s),
        "pid": pid,
        "uid": login["uid"],
        "maildir": printable(login["maildir"]),
        "login_id": login["login_id"],
    }


def _table(sessions: list[dict[str, Any]]) -> Iterator[str]:
    rows = [HEAD] + [
        (
            one["account"],
            one["peer"],
            one["since"].replace("T", " ").removesuffix("Z"),
            str(one["pid"]),
            one["maildir"],
        )
        for one in sessions
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD) - 1)]
    for row in rows:
        yield "  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[-1]])
    yield f"{len(sessions)} session{'' if len(sessions) == 1 else 's'}"
