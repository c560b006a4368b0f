"""
`gpop`: which process or command to be, and the exit status. Nothing else.

Exit statuses: 0 done; 1 it failed, or found what it was to look for; 2 the command line
or the config is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from gpop import __version__

# command: (module with add_arguments(parser) and run(args) -> int, one line of help)
COMMANDS = {
    "serve": ("gpop.commands.serve", "serve POP3 in the foreground, log on standard output"),
    "check-config": ("gpop.commands.check_config", "check a config and say all that is wrong with it"),
    "demo": ("gpop.commands.demo", "serve a demo maildrop on loopback, without root"),
    "passwd": ("gpop.commands.passwd", "add, change and list the accounts of a passwd-file"),
    "who": ("gpop.commands.who", "list the sessions that run"),
    "kick": ("gpop.commands.kick", "end the sessions of an account"),
    "user": ("gpop.commands.user", "switch POP3 off, or keep removed mail, for single accounts"),
    "log": ("gpop.commands.log", "have the dialogue of an account logged for a while"),
    "cache": ("gpop.commands.cache", "explain, verify or rebuild the statcache of a Maildir"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="gpop", description="A POP3 server for Maildir stores.")
    parser.add_argument("--version", action="version", version=f"gpop {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = [name for name in COMMANDS if name in (sys.argv[1:] if arguments is None else arguments)]
    for name, (module, text) in COMMANDS.items():
        described = commands.add_parser(name, help=text, description=text)
        # Only the command that was asked for is loaded.
        if name in wanted:
            importlib.import_module(module).add_arguments(described)
    parsed = parser.parse_args(arguments)
    status: int = importlib.import_module(COMMANDS[parsed.command][0]).run(parsed)
    return status
