"""
EDGE: signal handlers that are installed once, by the broker, and stay through every fork.

What they do is a table of this process: a session replaces the broker's entries with its
own. Installing handlers anew in each session would cost more than opening its maildrop
(`signal.signal` turns numbers into enum members and back, by way of exceptions).

A signal with no entry is ignored. Executed by the broker and the sessions.
"""

from __future__ import annotations

import signal
from _signal import pthread_sigmask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TERM, INT, HUP, USR1 = map(int, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
# These end a session, or may; UPDATE is not to be interrupted by them.
ENDING = (TERM, USR1)

# What this process does about a signal.
actions: dict[int, Callable[[], None]] = {}


def _act(number: int, _frame: object) -> None:
    action = actions.get(number)
    if action:
        action()


def install() -> None:
    """Install the handlers, for this process and all that will be forked from it."""
    for number in (TERM, INT, HUP, USR1):
        signal.signal(number, _act)
    # The launcher has let it wait until it can be heeded.
    pthread_sigmask(signal.SIG_UNBLOCK, (HUP,))


def block_ending() -> None:
    """Let the signals that end a session wait from now on."""
    pthread_sigmask(signal.SIG_BLOCK, ENDING)


def unblock_ending() -> None:
    """Let them through again."""
    pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
