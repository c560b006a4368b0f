"""
`gpop log`: where the log is, and whose dialogue is in it; `gpop log ACCOUNT --debug on|off`: have it there.

An account's dialogue, passwords hidden, is an entry of `gpop user` with an end: nobody has to
remember to switch it off. Takes effect with the account's next login. Executed by an administrator.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Iterator

from gpop.accounts.user_settings import LineNotUsable, parse_line
from gpop.commands import asking, user
from gpop.events import printable

DEFAULT_MINUTES = 60
MOST_MINUTES = 366 * 24 * 60
EPILOG = """\
  gpop log                     where the log is, and whose dialogue is being logged
  gpop log anna --debug on     anna's dialogue is in the log from her next login on, passwords hidden

docs/log.md has the events and fields; `gpop report` makes tables of a log.
"""
# By log.target: where the log is, and how to look at it.
PLACES = {
    "stdout": """\
The log is the standard output of `gpop serve` (log.target = "stdout"); the service manager keeps it:
  journalctl -u gpop -o cat -f             systemd
  tail -F /var/log/gpop/stdout.log         supervisord, with conf/supervisord.conf""",
    "file": """\
The log is {log_path} (log.target = "file"):
  tail -F {log_path}
  gpop report {log_path}""",
    "syslog": """\
The log goes to the syslog daemon at {log_syslog_socket} (log.target = "syslog"), with facility \
{log_syslog_facility}.""",
}
EVERYBODY = 'the dialogue of everybody is logged (log.level = "debug")'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `gpop log`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    asking.add_config_argument(parser)
    text = "as `account` in the log; without --debug: say whether its dialogue is being logged"
    parser.add_argument("account", metavar="ACCOUNT", nargs="?", help=text)
    parser.add_argument("--debug", choices=("on", "off"), help="log its dialogue, or no more")
    text = "for so many minutes (default: %(default)s)"
    parser.add_argument("--minutes", type=_minutes, default=DEFAULT_MINUTES, metavar="N", help=text)


def _minutes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_MINUTES} (a year)")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Write the entry, or say what there is; returns the exit status."""
    try:
        if args.debug and args.account is None:
            print("gpop log: --debug needs an ACCOUNT, whose dialogue it is about", file=sys.stderr)
            return 2
        if args.debug:
            _set(args.config, os.fsencode(args.account), args.debug == "on", args.minutes)
        else:
            _show(args.config, args.account)
    except OSError as error:
        print(f"gpop log: {error.filename or args.config}: {error.strerror or error}", file=sys.stderr)
        return 1
    except asking.CommandFailed as error:
        asking.complain("log", error)
        return 1
    return 0


def _set(config_path: str, account: bytes, on: bool, minutes: int) -> None:
    path = asking.settings(config_path)["user_settings"]
    if not on:
        user.forget(path, account, [b"dialogue_until"])
        return
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    until = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    user.put(path, account, [b"dialogue_until=" + until.encode()])
    print(f"the dialogue of {printable(account)} is logged from its next login on, until {until}")


def _show(config_path: str, name: str | None) -> None:
    values = asking.settings(config_path)
    if name is None:
        print(PLACES[values["log_target"]].format_map(values))
    if values["log_level"] == "debug":
        print(EVERYBODY)
        return
    logged = dict(_logged_now(values["user_settings"]))
    if name is not None:
        account = os.fsencode(name)
        if account not in logged:
            print(f"the dialogue of {printable(account)} is not logged; `--debug on` has it logged")
        logged = {account: logged[account]} if account in logged else {}
    for account, until in logged.items():
        print(f"the dialogue of {printable(account)} is logged until {until:%Y-%m-%dT%H:%M:%SZ}")


def _logged_now(path: str) -> Iterator[tuple[bytes, datetime.datetime]]:
    """Whose dialogue is logged, and until when. Lines that can't be used are `gpop user list`'s to name."""
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return  # nothing is set
    for line in lines:
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            account, settings = parse_line(line)
        except LineNotUsable:
            continue
        if settings.dialogue_until_s > time.time():
            yield account, datetime.datetime.fromtimestamp(settings.dialogue_until_s, datetime.UTC)
