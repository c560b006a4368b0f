"""
EDGE: whether fronts and auth are at work, and not only there: they are asked, again and again.

A process that ends is noticed by its end. One that hangs (a loop, a library that waits for ever, a
stopped process) is noticed by nothing else than that it does not answer.

Executed by the broker, as root.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpop.broker.supervision import Process

# So often in the time that a process has for its answer.
LOOKS = 3
# Loading gevent, PAM and certificates takes about a second on a busy machine.
START_TIMEOUT_S = 60.0


class Liveness:
    """
    When the next look is due, and which processes are stuck.

    It counts looks, not seconds: after a machine, or the broker, has slept for a while everybody
    is late, and nobody is stuck.

    Attributes:
        look_s: how often is looked.
    """

    __slots__ = ("_looked", "_most_missed", "look_s")

    def __init__(self) -> None:
        self._looked = 0.0
        self.adopt(30.0, 0.0)

    def adopt(self, answer_timeout_s: float, watchdog_s: float) -> None:
        """Take over how long an answer may take; `watchdog_s`: the service manager's patience, 0: no end."""
        self.look_s = answer_timeout_s / LOOKS
        if watchdog_s:
            self.look_s = min(self.look_s, watchdog_s / LOOKS)
        self._most_missed = round(answer_timeout_s / self.look_s)

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again."""
        return now - self._looked >= self.look_s

    def look(self, processes: Iterable[Process], now: float) -> list[Process]:
        """Ask all that have answered; return those that have not, or are not ready, for too long."""
        self._looked = now
        stuck = []
        for process in processes:
            if not process.ready:
                if now - process.started > START_TIMEOUT_S:
                    stuck.append(process)
            elif not process.asked:
                process.ask()
            elif process.missed < self._most_missed:
                process.missed += 1
            else:
                stuck.append(process)
        return stuck
