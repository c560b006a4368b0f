"""
EDGE: the tallies of a server: made by the broker, lent to its processes, shown to the metrics process.

Executed by the broker, as root. It makes memory and hands descriptors on; what others count it does not
look at. Whoever is started later counts on in the tally of one that has ended: so no number goes down, and
there are no more tallies than processes at the same time.
"""

from __future__ import annotations

import fcntl
import os

from gpop import signals, tally
from gpop.privsep import channel, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gpop.broker.supervision import Process

# From linux/fcntl.h. Nobody can make it smaller, under others who have it in their memory, or larger.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# So long after a look no other one may be had: no metrics process keeps anybody busy.
LOOK_AGAIN_S = 0.1


class Lent:
    """One tally: its kind, its descriptor, and one with which it can only be read."""

    __slots__ = ("fd", "kind", "reading_fd")

    def __init__(self, kind: str, fd: int, reading_fd: int) -> None:
        self.kind = kind
        self.fd = fd
        self.reading_fd = reading_fd

    @classmethod
    def made(cls, kind: str) -> Lent:
        """Make one. Raises OSError."""
        fd = os.memfd_create(f"gpop-tally-{kind}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, tally.SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(kind, fd, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            os.close(fd)
            raise

    def belongs_to(self, pid: int) -> None:
        """Note whose it is, 0: nobody's; with that nothing is the case any more that was at the moment."""
        os.pwrite(self.fd, tally.HEAD.pack(tally.KINDS.index(self.kind), pid), 0)
        if pid == 0:
            os.pwrite(self.fd, bytes(8 * len(tally.GAUGES[self.kind])), 8 * tally.FIRST)


class Tallies:
    """All of them, and the metrics processes that read them."""

    __slots__ = ("_free", "_looked", "all", "brokers", "readers")

    def __init__(self, before: Sequence[Lent] = ()) -> None:
        """`before`: those of the broker whose place we take, its own first. Raises OSError."""
        self.all: list[Lent] = [*before]
        self._free: dict[str, list[Lent]] = {}
        self._looked = 0.0
        self.readers: list[Process] = []
        self.brokers = before[0] if before else self.lend("broker")

    def lend(self, kind: str) -> Lent:
        """Return a tally for a process to come. Raises OSError."""
        free = self._free.get(kind)
        if free:
            return free.pop()
        lent = Lent.made(kind)
        self.all.append(lent)
        for reader in self.readers:
            _show(lent, reader)
        return lent

    def find_free(self, lent_out: Collection[Lent]) -> None:
        """Those that are nobody's, of all that were taken over, may be lent again."""
        for lent in self.all:
            if lent is not self.brokers and lent not in lent_out:
                self._free.setdefault(lent.kind, []).append(lent)

    def take_back(self, lent: Lent) -> None:
        """The process that had it has ended."""
        lent.belongs_to(0)
        self._free.setdefault(lent.kind, []).append(lent)

    def add_reader(self, process: Process) -> None:
        """Show everything to a metrics process, now and as it comes."""
        self.readers.append(process)
        for lent in self.all:
            _show(lent, process)

    def may_look(self, now: float) -> bool:
        """Whether processes may be asked again if they are at work."""
        if now - self._looked < LOOK_AGAIN_S:
            return False
        self._looked = now
        return True


def _show(lent: Lent, reader: Process) -> None:
    try:
        channel.send(reader.control, messages.encode(messages.TALLY), [lent.reading_fd])
    except OSError:
        # It reads nothing. The next one is shown everything again.
        os.kill(reader.pid, signals.KILL)
