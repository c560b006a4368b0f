"""`gpop serve`: its arguments. What it does is in `launch`."""

from __future__ import annotations

import argparse

from gpop.commands import launch
from gpop.config import DEFAULT_PATH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gpop serve` takes."""
    parser.add_argument("--config", default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Become the broker; returns only if it can't."""
    return launch.serve(args.config)
