"""
An orderly end, whenever it comes: the first signal ends the run, none disturbs what is being removed.

A bench that is killed halfway leaves servers, control groups and gigabytes of mail behind, and people press
Ctrl-C twice. So a signal only ends what says that it may be ended, and once: making a thing and noting that
it has to be removed are one step, and so is removing it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked for the end; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


class Ending:
    """Turns the first signal into `Interrupted`, where that may happen; others are noted, no more."""

    def __init__(self) -> None:
        self.arrived = 0  # the first signal
        self._interruptible = False
        self._held = 0

    def heed(self) -> None:
        """From here on signals are ours."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def ignore(self) -> None:
        """From here on they are nobody's; else the interpreter would let one kill it while it ends."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.arrived = self.arrived or number
        self._raise()

    def _raise(self) -> None:
        if self.arrived and self._interruptible and not self._held:
            self._interruptible = False  # before the raise: whoever catches it is removing things
            raise Interrupted(self.arrived)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """
        What happens in here may end at any moment, other than what is in `held`.

        Raises:
            Interrupted: from anywhere within.
        """
        self._interruptible = True
        try:
            self._raise()
            yield
        finally:
            self._interruptible = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """
        What happens in here happens to its end.

        Raises:
            Interrupted: afterwards, if a signal came meanwhile.
        """
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()


# Signals belong to the process, so there is one.
ending = Ending()
