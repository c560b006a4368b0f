"""
What a fork costs, and giving up root in it: executed by `micro`, alone in a fresh interpreter.

    python -I -S forker.py bare|lean|heavy HOME UID FORKS

"lean" is an interpreter like the broker's, "bare" one with nothing loaded, "heavy" one like the front's.
Prints JSON: CPU microseconds (parent and child together) and page faults of the child, per fork.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def cost(forks: int, in_child: Callable[[], object]) -> dict[str, float]:
    """Fork so many children that do `in_child` and exit; return what one of them cost."""
    before = usage()
    for _ in range(forks):
        pid = os.fork()
        if pid == 0:
            try:
                in_child()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    after = usage()
    return {
        "cpu_us": (after[0] - before[0]) / forks * 1e6,
        "child_faults": (after[1] - before[1]) / forks,
        "parent_faults": (after[2] - before[2]) / forks,
    }


def usage() -> tuple[float, int, int]:
    """CPU seconds with those of children, page faults of children, page faults of this process."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, children.ru_minflt, own.ru_minflt


def load(variant: str) -> None:
    """Load what that kind of process has loaded."""
    if variant != "bare":
        sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]
        from gpop.broker import broker

        assert broker
    if variant == "heavy":
        import site

        site.main()
        import gevent.socket
        import structlog

        assert gevent.socket
        assert structlog
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> None:
    variant, home, uid, forks = sys.argv[1], os.fsencode(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    load(variant)
    cost(20, lambda: None)
    figures = {"fork, exit": cost(forks, lambda: None)}
    if variant == "lean" and os.geteuid() == 0:
        from gpop.privsep import credentials

        def drop() -> None:
            credentials.become_user(uid, uid, [], home, home + b"/Maildir", "maildir", (1, 1))

        figures["fork, become_user, exit"] = cost(forks, drop)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
