"""
`gpop`: which process or command to be, and the exit status. Nothing else.

Exit statuses: 0 done; 1 it failed, or found what it was to look for; 2 the command line
or the config is wrong.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Collection
from typing import NoReturn

from gpop import __version__
from gpop.events import printable_text

# command: (module with add_arguments(parser) and run(args) -> int, one line of help)
COMMANDS = {
    "serve": ("gpop.commands.serve", "serve POP3 in the foreground"),
    "inetd": ("gpop.commands.inetd", "serve the one connection that inetd or tcpserver has accepted"),
    "check-config": ("gpop.commands.check_config", "check a config and say all that is wrong with it"),
    "demo": ("gpop.commands.demo", "serve a demo maildrop on loopback, without root"),
    "passwd": ("gpop.commands.passwd", "add, change and list the accounts of a passwd-file"),
    "who": ("gpop.commands.who", "list the sessions that run"),
    "kick": ("gpop.commands.kick", "end the sessions of an account"),
    "user": ("gpop.commands.user", "switch POP3 off, or keep removed mail, for single accounts"),
    "log": ("gpop.commands.log", "say where the log is, or have an account's dialogue logged for a while"),
    "virtusers": ("gpop.commands.virtusers", "show which account a login name means, or compile a map"),
    "report": ("gpop.commands.report", "say from the log how well the cache works, and what it costs whom"),
    "cache": ("gpop.commands.cache", "explain, verify or rebuild the statcache of a Maildir"),
    "uidl": ("gpop.commands.uidl", "take over unique-ids from another server, and show them"),
}


INTERRUPTED = 130  # as a shell has it, by Ctrl-C
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EPILOG = """\
gpop COMMAND --help says more. To see it work: gpop demo. To set it up: /etc/gpop/gpop.toml, then gpop
check-config and gpop serve; README.md and docs/operations.md go through it step by step.
"""


class Parser(argparse.ArgumentParser):
    """A command line; what it complains about may be names that users chose, if a shell made it of them."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and end."""
        super().error(printable_text(message))


def parser(loaded: Collection[str]) -> argparse.ArgumentParser:
    """Return the command line of gpop; of the commands in `loaded` with what they take, which loads them."""
    described = Parser(prog="gpop", description="A POP3 server for Maildir stores.", epilog=EPILOG)
    described.add_argument("--version", action="version", version=f"gpop {__version__}")
    commands = described.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in loaded:
            importlib.import_module(module).add_arguments(command)
    return described


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name."""
    words = sys.argv[1:] if arguments is None else arguments
    # Only the command that was asked for is loaded.
    described = parser([name for name in COMMANDS if name in words])
    parsed = described.parse_args(words)
    if parsed.command is None:
        described.print_help(sys.stderr)
        return 2
    return _carried_out(parsed)


def _carried_out(parsed: argparse.Namespace) -> int:
    """Run a command; Ctrl-C, or what it prints having nowhere to go, is no reason for a traceback."""
    try:
        status: int = importlib.import_module(COMMANDS[parsed.command][0]).run(parsed)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        pass  # whoever read it has seen enough
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"gpop {parsed.command}: what it prints can't be written: {error.strerror}", file=sys.stderr)
    # What is left of it Python would try to write once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1
