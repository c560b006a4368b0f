"""
`gpop kick ACCOUNT`: end the sessions of an account, as if the client had vanished.

Nothing is removed: without a QUIT there is no UPDATE. The client may log in again at once;
`gpop user set ACCOUNT pop3=off` keeps it out. Executed by an administrator, as root or as the
user who has started gpop.
"""

from __future__ import annotations

import argparse
import os
import sys

from gpop.commands import asking
from gpop.events import printable
from gpop.privsep import messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop kick`."""
    asking.add_config_argument(parser)
    parser.add_argument("account", metavar="ACCOUNT", help="as `gpop who` shows it")


def run(args: argparse.Namespace) -> int:
    """Say how many sessions were told to end; 1 if there were none, or gpop can't be asked."""
    account = os.fsencode(args.account)
    try:
        frame, _ = asking.ask(args.config, messages.KICK, account=account)
    except asking.CommandFailed as error:
        asking.complain("kick", error)
        return 1
    count: int = frame.fields["sessions"]
    if count == 0:
        print(f"gpop kick: {printable(account)} has no session", file=sys.stderr)
        return 1
    print(f"{count} session{'' if count == 1 else 's'} of {printable(account)} told to end")
    return 0
