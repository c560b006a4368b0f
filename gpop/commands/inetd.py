"""`gpop inetd`: its arguments. What it does is in `surroundings` and `launch`."""

from __future__ import annotations

import argparse
import sys

from gpop.commands import launch, surroundings
from gpop.config import DEFAULT_PATH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `gpop inetd` takes."""
    parser.add_argument("--config", default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--tls", action="store_true", help="TLS begins at once, as on port 995")
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="append a log to standard output to FILE; default: standard error, unless that is the client",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the connection on descriptor 0; returns only if that can't be."""
    try:
        given = surroundings.of_inetd(args.tls, args.log)
    except surroundings.Unusable as error:
        surroundings.complain(str(error))
        print(f"gpop: {error}", file=sys.stderr)
        return 2
    return launch.serve(args.config, given)
