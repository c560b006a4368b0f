"""
Where every gpop process starts: `python -m gpop`, and the processes the broker starts.

Those are started by this file's path: the broker without `site`, whose pages every session
would pay for, and all of them without the current directory in the import path.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the process or command that the first argument names."""
    process = sys.argv[1] if len(sys.argv) > 1 else ""
    # An import here is the process: the broker must load nothing that the others need.
    if process == "broker":
        from gpop.broker import broker

        return broker.main(sys.argv[2:])
    if process == "auth-process":
        from gpop.auth import auth

        return auth.main(sys.argv[2:])
    if process == "front-process":
        from gpop.front import front

        return front.main(sys.argv[2:])
    if process == "log-process":
        from gpop.log import log

        return log.main(sys.argv[2:])
    if process == "metrics-process":
        from gpop.metrics import metrics

        return metrics.main(sys.argv[2:])
    if process == "read-config":
        from gpop.config import reading

        return reading.main(sys.argv[2:])
    from gpop import cli

    return cli.main()


if __name__ == "__main__":
    if not __package__:
        sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.exit(main())
