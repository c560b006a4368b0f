"""
`gpop log ACCOUNT --debug on|off`: have an account's dialogue logged for a while, passwords hidden.

An entry of `gpop user`, with an end: nobody has to remember to switch it off. Takes effect with
the account's next login. Executed by an administrator.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys

from gpop.commands import asking, user
from gpop.events import printable

DEFAULT_MINUTES = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop log`."""
    asking.add_config_argument(parser)
    parser.add_argument("account", metavar="ACCOUNT", help="as `account` in the log")
    parser.add_argument("--debug", choices=("on", "off"), required=True, help="log its dialogue, or no more")
    text = "for so many minutes (default: %(default)s)"
    parser.add_argument("--minutes", type=int, default=DEFAULT_MINUTES, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the entry; returns the exit status."""
    account = os.fsencode(args.account)
    try:
        path = asking.setting(args.config, "user_settings")
        if args.debug == "off":
            user.change(path, account, [], [b"dialogue_until"])
            return 0
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=args.minutes)
        until = end.strftime("%Y-%m-%dT%H:%M:%SZ")
        user.change(path, account, [b"dialogue_until=" + until.encode()], [])
    except (asking.CommandFailed, OSError, OverflowError) as error:
        print(f"gpop log: {error}", file=sys.stderr)
        return 1
    print(f"the dialogue of {printable(account)} is logged from its next login on, until {until}")
    return 0
