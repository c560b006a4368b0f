"""
EDGE: signals, as the broker and the sessions have them: handlers that stay through every fork.

What they do is a table of this process: a session replaces the broker's entries with its
own. Installing handlers anew in each session would cost more than opening its maildrop
(`signal.signal` turns numbers into enum members and back, by way of exceptions). For the same
reason this is `_signal`, which `signal` wraps: plain numbers, and no enum to load.

A signal with no entry is ignored. Executed by the broker and the sessions.
"""

from __future__ import annotations

import _signal
from _signal import SIG_DFL, SIG_IGN, pthread_sigmask, set_wakeup_fd
from _signal import signal as handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SIG_DFL", "SIG_IGN", "handle", "set_wakeup_fd"]

TERM, INT, HUP, KILL = _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGKILL
USR1, USR2, CHLD = _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGCHLD
ALL = (TERM, INT, HUP, USR1, USR2)
# These end a session, or may; UPDATE is not to be interrupted by them.
ENDING = (TERM, USR1, USR2)

# By number; those that have two go by the one that POSIX gives them.
SECOND_NAMES = ("SIGCLD", "SIGIOT", "SIGPOLL")
NAMES: dict[int, str] = {
    number: name
    for name, number in vars(_signal).items()
    if name[:3] == "SIG" and name[3] != "_" and name not in SECOND_NAMES
}


def name_of(number: int) -> str:
    """Return the name of a signal; few real-time ones have one, and any of them may end a process."""
    return NAMES.get(number, f"SIG{number}")


# What this process does about a signal.
actions: dict[int, Callable[[int], None]] = {}


def _act(number: int, _frame: object) -> None:
    action = actions.get(number)
    if action:
        action(number)


def install() -> None:
    """Install the handlers, for this process and all that will be forked from it."""
    for number in ALL:
        handle(number, _act)
    # The launcher, or the broker before an upgrade, has let them wait until they can be heeded.
    unblock_all()


def block_all() -> None:
    """Let every signal that has a handler wait, across an exec, until `install`."""
    pthread_sigmask(_signal.SIG_BLOCK, ALL)


def unblock_all() -> None:
    """Let them come again: there was no exec."""
    pthread_sigmask(_signal.SIG_UNBLOCK, ALL)


def block_ending() -> None:
    """Let the signals that end a session wait from now on."""
    pthread_sigmask(_signal.SIG_BLOCK, ENDING)


def unblock_ending() -> None:
    """Let them come again, for the next session of a process that is reused."""
    pthread_sigmask(_signal.SIG_UNBLOCK, ENDING)


def hold() -> dict[int, Callable[[int], None]]:
    """Let every signal that has an action wait, for the time of a rehearsal; returns the actions."""
    pthread_sigmask(_signal.SIG_BLOCK, ALL)
    return actions.copy()


def release(kept: dict[int, Callable[[int], None]]) -> None:
    """Bring back what `hold` returned, and act on what has waited."""
    actions.clear()
    actions.update(kept)
    pthread_sigmask(_signal.SIG_UNBLOCK, ALL)
