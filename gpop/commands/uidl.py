"""
`gpop uidl ACTION`: unique-ids that another server gave, and what becomes of them.

Each action is a module of its own with `add_arguments(parser)` and `run(args)`.
"""

from __future__ import annotations

import argparse
import importlib

# action: (module, one line of help)
ACTIONS = {
    "import": ("gpop.commands.uidl_import", "keep the unique-ids that another server has given"),
    "unhide": ("gpop.commands.uidl_unhide", "show messages again that were removed and kept, hidden"),
    "show": ("gpop.commands.uidl_show", "list the messages of a Maildir with their unique-ids"),
    "verify": ("gpop.commands.uidl_verify", "compare what two servers list, user by user"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, (module, text) in ACTIONS.items():
        described = actions.add_parser(action, help=text, description=text)
        importlib.import_module(module).add_arguments(described)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; returns the exit status."""
    status: int = importlib.import_module(ACTIONS[args.action][0]).run(args)
    return status
