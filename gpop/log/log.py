"""
PROCESS: log. The service user, jailed in an empty directory; writes the log for processes without rights.

A front, and the metrics process, hold no log but a pipe, which the broker has made: its other end is here,
with the name and the process id of who has the first one. So nobody else's line can come out of
it, half a line goes nowhere, and the file is out of their reach. A line is checked (`lines`), gets
the writer's process id, and is written in the form that is asked for. Who writes what it may not is reported
once and heard no more; the broker ends it.

All that has been written into pipes lies there until it is in the log (`privsep.peeking`), and the broker
holds the pipes as well: if this process is killed, the next one goes on where it was. It ends when the broker
has said that no more writers come, or is gone, and the last pipe has no writer left.

It looks at its pipes, then waits for a moment, so that under load one look serves many lines.
"""

from __future__ import annotations

import _socket
import os
import pwd
import select
import sys
import time

from gpop import events, signals
from gpop.config import LogSettings
from gpop.log import lines
from gpop.privsep import channel, credentials, messages
from gpop.privsep.confinement import Confinement
from gpop.privsep.peeking import Peek
from gpop.privsep.shortage import Shortage
from gpop.programs import read_settings
from gpop.tally import Tally

# A line that comes alone is written at once, one of many after so long at most.
PAUSE_S = 0.02
# Of each writer in one look: some 5 MiB a second, which no front reaches with what it does for clients.
MOST_OCTETS = 1 << 17
# How long is waited for a reader of the log that is slow; one that takes nothing for so long is stalled.
PATIENCE_MS = 50
# Lines may wait in a pipe while this process is started again. What says to be older is not believed.
MOST_AGE_S = 300
MAX_FRAME_OCTETS = 64
# What the form for eyes has at its own places.
HEAD = ("event", "level", "process")


class Writer:
    """A process whose lines come out of the pipe `fd`."""

    __slots__ = ("fd", "name", "pid")

    def __init__(self, fd: int, name: str, pid: int) -> None:
        self.fd = fd
        self.name = name
        self.pid = pid


class PatientLog(events.Log):
    """A log that waits for its reader, for a moment: what comes here comes many lines at a time."""

    __slots__ = ("_stalled",)

    _stalled: bool

    def _put(self, line: str) -> bool:
        if super()._put(line):
            self._stalled = False
            return True
        if getattr(self, "_stalled", False) or self._torn:
            return False
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        self._stalled = not poller.poll(PATIENCE_MS)
        return not self._stalled and super()._put(line)


class LogProcess:
    """The process: its way to the broker, the pipes that it reads, the log."""

    def __init__(self, control: _socket.socket, log: events.Log) -> None:
        """Raises OSError."""
        self.log = log
        self.shortage = Shortage(log)
        self.control = control
        self.writers: dict[int, Writer] = {}
        self.draining = False
        self._peek = Peek(MOST_OCTETS)
        self._poller = select.poll()
        self._poller.register(control.fileno(), select.POLLIN)

    def serve(self) -> None:
        """Write what comes, until nothing can come any more."""
        channel.send(self.control, messages.encode(messages.READY))
        while self.writers or not self.draining:
            ready = [fd for fd, _ in self._poller.poll()]
            if self.control.fileno() in ready:
                self._obey()
            written = False
            for fd in ready:
                if fd in self.writers:
                    written = self._look_into(self.writers[fd]) or written
            if written:
                time.sleep(PAUSE_S)

    # The broker

    def _obey(self) -> None:
        """Do what the broker says. Without a broker no more writers come."""
        try:
            frame, fds = channel.receive(self.control, MAX_FRAME_OCTETS)
        except channel.ShortOfDescriptors as short:
            self._tell(self.shortage.lost_from_broker(short.octets))
            return
        except (channel.ChannelClosed, OSError, messages.BadFrame):
            self._poller.unregister(self.control.fileno())
            self.control.close()
            self.draining = True
            return
        if frame.kind == messages.WRITER:
            writer = Writer(fds[0], frame.fields["name"], frame.fields["pid"])
            self.writers[writer.fd] = writer
            self._poller.register(writer.fd, select.POLLIN)
        elif frame.kind == messages.LOG:
            self.log.replace(fds[0])
        elif frame.kind == messages.DRAIN:
            self.draining = True
        elif frame.kind == messages.ALIVE:
            if self.log.tally:
                self.log.tally.answer(time.monotonic())
            self._tell(messages.encode(messages.ALIVE))
        else:
            channel.close_all(fds)

    def _tell(self, octets: bytes) -> None:
        if self.control.fileno() >= 0:
            channel.send_at_once(self.control.fileno(), octets)

    # Writers

    def _look_into(self, writer: Writer) -> bool:
        """Write what lies in a pipe, up to a bound; False if that was nothing."""
        octets = self._peek.look(writer.fd)
        if octets is None:
            return False
        if not octets:
            self._forget(writer)
            return False
        whole, end, rest = octets.rpartition(b"\n")
        try:
            if end:
                self._write(writer, whole.split(b"\n"))
            # A line goes into a pipe whole or not at all, so half of one is only where we stopped looking.
            if rest and (not end or len(octets) < self._peek.most):
                raise lines.BadLine("it has no end")
        except lines.BadLine as error:
            self._reject(writer, str(error))
        return True

    def _write(self, writer: Writer, found: list[bytes]) -> None:
        """
        Write lines, as many with one call as are sure to be written whole, and take them out of the pipe.

        Raises:
            BadLine: one is none; those before it have been written.
        """
        now = time.time()
        earliest, latest = events.timestamp(now - MOST_AGE_S), events.timestamp(now)
        texts: list[str] = []
        size = taken = 0
        try:
            for octets in found:
                text = self._rendered(writer, octets, earliest, latest)
                if texts and (size + len(text) >= events.MAX_LINE_OCTETS or self.log.facility >= 0):
                    self._write_out(writer, texts, taken)
                    texts, size, taken = [], 0, 0
                texts.append(text)
                size += len(text) + 1
                taken += len(octets) + 1
        finally:
            if texts:
                self._write_out(writer, texts, taken)

    def _rendered(self, writer: Writer, octets: bytes, earliest: str, latest: str) -> str:
        text, fields = lines.checked(octets, writer.name)
        text, fields = lines.attested(text, fields, writer.pid, earliest, latest)
        if not self.log.console:
            return self.log.head(writer.pid, fields["level"]) + text
        others = {name: value for name, value in fields.items() if name not in ("ts", *HEAD, "pid")}
        event, level, process = (fields[name] for name in HEAD)
        return self.log.console_line(writer.pid, event, level, process, others)

    def _write_out(self, writer: Writer, texts: list[str], taken: int) -> None:
        """Whoever is killed between these two has written some lines that will be written again."""
        self.log.write_line("\n".join(texts), len(texts))
        os.read(writer.fd, taken)

    def _reject(self, writer: Writer, problem: str) -> None:
        """Hear a writer no more that was taken over, or is broken, and have it ended."""
        fields = {"sender": writer.name, "pid": writer.pid, "problem": problem}
        self.log.write("log_line_rejected", "error", **fields)
        self._forget(writer)
        self._tell(messages.encode(messages.CUT_OFF, front=writer.pid))

    def _forget(self, writer: Writer) -> None:
        self._poller.unregister(writer.fd)
        del self.writers[writer.fd]
        os.close(writer.fd)


def main(arguments: list[str]) -> int:
    """Run as the log process, started by the broker (`supervision.Generation.start_process`)."""
    options = dict(argument[2:].partition("=")[::2] for argument in arguments)
    settings = LogSettings(**read_settings(int(options["settings-fd"])))
    facility = int(options["log-facility"])
    log = PatientLog(int(options["log-fd"]), "log", "console" in options, facility=facility)
    if "tally-fd" in options:
        log.tally = Tally(int(options["tally-fd"]), "log")
    # A service manager may send this to everybody; lines of the others come after it.
    signals.handle(signals.TERM, signals.SIG_IGN)
    try:
        process = LogProcess(_socket.socket(fileno=int(options["control-fd"])), log)
        if os.geteuid() == 0:
            user = pwd.getpwnam(settings.user)
            credentials.become_service(user.pw_uid, user.pw_gid, os.path.join(settings.run_dir, "empty"))
        sys.path.clear()
        Confinement(settings.log_calls).enter()
        process.serve()
    except (credentials.CredentialsRefused, KeyError, OSError) as error:
        log.write("process_fault", "error", problem=f"there is no log process: {error}")
        return 1
    return 0
