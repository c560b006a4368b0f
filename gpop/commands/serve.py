"""`gpop serve`: its arguments. What it does is in `launch`."""

from __future__ import annotations

import argparse
import sys

from gpop.commands import launch, surroundings
from gpop.config import DEFAULT_PATH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gpop serve` takes."""
    parser.add_argument("--config", default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Become the broker; returns only if it can't."""
    try:
        given = surroundings.of_service_manager()
    except surroundings.Unusable as error:
        print(f"gpop: {error}", file=sys.stderr)
        return 2
    return launch.serve(args.config, given)
