"""
EDGE: the pipes by which those without rights write to the log, and who reads them.

A front and the metrics process hold no log: each writes to a pipe, which the log process of its generation
reads. The broker holds the end that is read as well, so that a log process which takes another one's place
goes on where that was, and says whose each pipe is, so that nobody has to be believed. It reads none itself.

Executed by the broker, as root.
"""

from __future__ import annotations

import fcntl
import os
import select

from gpop import signals
from gpop.privsep import channel, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpop.broker.supervision import Process

    # The end of a pipe that is read; name and process id of whose it is, or was.
    LogPipe = tuple[int, str, int]

WITHOUT_RIGHTS = ("front", "metrics")

# What a front may have written that is not in the log yet. More than a user may have without further ado.
LOG_PIPE_OCTETS = 1 << 20


class LogPipes:
    """
    The log pipes of a generation.

    Attributes:
        reader: its log process, None while there is none.
        unread: pipes of processes that have ended.
    """

    __slots__ = ("reader", "unread")

    def __init__(self) -> None:
        self.reader: Process | None = None
        self.unread: list[LogPipe] = []

    def read_by(self, log: Process, running: Iterable[Process]) -> None:
        """A log process has been started: all pipes are its to read."""
        self.reader = log
        self._hand_over(self.unread + _pipes_of(running))

    def add(self, process: Process) -> None:
        """A process has been started; if it has a log pipe, that is to be read."""
        self._hand_over(_pipes_of([process]))

    def hand_over_again(self, pid: int, running: Iterable[Process]) -> None:
        """The log process had no descriptor for the pipe of that process."""
        self._hand_over([each for each in self.unread + _pipes_of(running) if each[2] == pid])

    def _hand_over(self, pipes: Sequence[LogPipe]) -> None:
        """Have the log process read them. We keep them for the next one, which goes on where it was."""
        if self.reader is None:
            return
        for fd, name, pid in pipes:
            try:
                channel.send(self.reader.control, messages.encode(messages.WRITER, name=name, pid=pid), [fd])
            except OSError:
                # It hangs or ends. The next one gets them all.
                os.kill(self.reader.pid, signals.KILL)
                return

    def ended(self, process: Process) -> None:
        """A process has ended, the log process or one that has left lines unread."""
        if process is self.reader:
            self.reader = None
        if process.log_pipe >= 0:
            self.unread.append((process.log_pipe, process.name, process.pid))
            process.log_pipe = -1

    def forget_what_is_read(self) -> None:
        """Close pipes of processes that have ended, if all that came out of them is in the log."""
        for each in self.unread[:]:
            if _is_read(each[0]):
                os.close(each[0])
                self.unread.remove(each)

    def has_unread_lines(self, running: Iterable[Process]) -> bool:
        """Whether something is in a pipe, or may come."""
        return not all(_is_read(fd) for fd, _, _ in self.unread + _pipes_of(running))


def _pipes_of(processes: Iterable[Process]) -> list[LogPipe]:
    return [(each.log_pipe, each.name, each.pid) for each in processes if each.log_pipe >= 0]


def give_pipes(processes: Iterable[Process]) -> None:
    """
    Give pipes to processes that hold the log and should not: an older broker has started them.

    Raises:
        OSError: as `new_pipe`, or a process can't be told.
    """
    for process in processes:
        if process.name in WITHOUT_RIGHTS and process.holds_log:
            process.log_pipe, log_fd = new_pipe()
            process.holds_log = False
            try:
                channel.send(process.control, messages.encode(messages.LOG), [log_fd])
            finally:
                os.close(log_fd)


def new_pipe() -> tuple[int, int]:
    """
    Make a pipe for lines of the log; returns the end that is read and the end that is written.

    Raises:
        OSError: there can't be another one now.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, LOG_PIPE_OCTETS)
    except OSError:
        return reading, writing  # a smaller one holds the lines of some hundred sessions as well
    return reading, writing


def _is_read(fd: int) -> bool:
    """Whether nothing is in a pipe, and nobody can write to it any more."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    found = poller.poll(0)
    return bool(found) and not found[0][1] & select.POLLIN
