"""
PROCESS: the session. Forked from the broker; becomes the mail user, jailed in the maildrop.

Speaks TRANSACTION and UPDATE with blocking calls, then ends. Until `become_user` returns
this runs as root, and touches nothing but the account it was given. It decides nothing
about the protocol (`pop3.transaction` does) and nothing about files (`maildrop` does); it
moves octets between them and the client's stream.

Nothing is removed unless a QUIT was received: every other way out of `Session.converse`
is an exception, and only the QUIT reaches `_update`.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import mmap
import os
import select
import signal
import struct
import termios
import time

from gpop import signals
from gpop.maildrop import maildir, opening
from gpop.pop3 import decisions, encoding, wire
from gpop.pop3.transaction import Transaction
from gpop.privsep import channel, credentials, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from gpop.config import SessionSettings

RECEIVE_OCTETS = 4096
# What is sent at a time: large enough that C does the work, small enough to be nothing in memory.
CHUNK_OCTETS = 65536
# Replies to pipelined commands are sent together, up to this size.
BATCH_OCTETS = 32768
# A client that sent QUIT has this long to read the reply and close (see `_say_goodbye`).
GOODBYE_TIMEOUT_MS = 2000
MAX_GOODBYE_READS = 16

# Exit status of a session whose front was gone when it ended.
EXIT_UNREPORTED = 3
# Exit status where a login's descriptors, or its frame, are not what they have to be.
EXIT_BAD_LOGIN = 4

TOTALS_AT_START: dict[str, Any] = {
    field: 0 if kind == messages.INT else "" for field, kind, _ in messages.FRAMES[messages.TOTALS].fields
}

SERVING = messages.encode(messages.SERVING)
UNAVAILABLE = wire.err("The maildrop can't be opened, please try again later", "SYS/TEMP")
IN_USE = wire.err("The maildrop is in use by another session", "IN-USE")
NOT_REMOVED = wire.err("Some deleted messages not removed")
VANISHED = wire.err("That message is gone")
UNREADABLE = wire.err("That message can't be read", "SYS/PERM")
CHANGED = wire.err("That message has changed on disk, please try again later", "SYS/TEMP")


class SessionEnd(Exception):
    """The session ends without UPDATE; `reason` is its close_reason in the log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Stream:
    """
    The client's stream, from here on this process's alone: blocking, with a time-out.

    The time-out counts a silent client, not a busy one: while octets that were sent are
    still being taken, the client is at work (RFC 1939 §3 is about inactivity).
    """

    __slots__ = ("active", "batch", "batched", "fd", "octets_sent", "timeout_s")

    def __init__(self, fd: int, timeout_s: float) -> None:
        self.fd = fd
        self.timeout_s = timeout_s
        self.batch: list[bytes] = []
        self.batched = 0
        self.octets_sent = 0
        self.active = time.monotonic()

    def adopt(self) -> None:
        """Make the socket blocking, with the time-out on both directions."""
        sock = _stream_socket(self.fd)
        sock.setblocking(True)
        seconds = int(self.timeout_s)
        timeout = struct.pack("@ll", seconds, int((self.timeout_s - seconds) * 1_000_000))
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeout)
        sock.detach()

    def receive(self) -> bytes:
        """
        Send what is batched, then return the next octets from the client.

        Raises:
            SessionEnd: the client left, or was silent for the time-out.
        """
        self.flush()
        while True:
            unsent = self._unsent() if self.octets_sent > CHUNK_OCTETS else 0
            try:
                octets = os.read(self.fd, RECEIVE_OCTETS)
            except BlockingIOError:
                if unsent and self._unsent() < unsent:
                    continue
                raise SessionEnd("autologout") from None
            except OSError:
                raise SessionEnd("disconnect") from None
            if not octets:
                raise SessionEnd("disconnect")
            self.active = time.monotonic()
            return octets

    def seconds_silent(self) -> float:
        """Seconds since the client sent or took anything; 0 while it still has octets to take."""
        return 0.0 if self._unsent() else time.monotonic() - self.active

    def _unsent(self) -> int:
        """Octets that the kernel has accepted and the client has not taken yet."""
        answer: int = struct.unpack("i", fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        return answer

    def send(self, octets: bytes) -> None:
        """Add octets to the batch, which is sent when it is large or the client is waited for."""
        self.batch.append(octets)
        self.batched += len(octets)
        if self.batched >= BATCH_OCTETS:
            self.flush()

    def flush(self) -> None:
        """Send the batch in one write."""
        if self.batched:
            octets = self.batch[0] if len(self.batch) == 1 else b"".join(self.batch)
            self.batch = []
            self.batched = 0
            self._write(octets)

    def _write(self, octets: bytes) -> None:
        total = len(octets)
        sent = self._waiting(os.write, octets)
        while sent < total:
            sent += self._waiting(os.write, memoryview(octets)[sent:])

    def send_file(self, fd: int, offset: int, length: int) -> None:
        """
        Send a piece of a file as it is.

        Raises:
            OSError: (EIO) the file ends before the piece does.
        """
        self.flush()
        while length:
            sent = self._waiting(os.sendfile, fd, offset, min(length, 1 << 24))
            if sent == 0:
                raise OSError(errno.EIO, "a file became shorter while it was sent")
            offset += sent
            length -= sent

    def _waiting(self, call: Any, *arguments: Any) -> int:
        """Do a system call that sends; a client that takes nothing for the time-out is gone."""
        try:
            sent: int = call(self.fd, *arguments)
        except BlockingIOError:
            raise SessionEnd("autologout") from None
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT):
                raise SessionEnd("disconnect") from None
            raise
        self.octets_sent += sent
        self.active = time.monotonic()
        return sent

    def say_goodbye(self) -> None:
        """
        Half-close and wait briefly for the client's end.

        Octets that were never read make the kernel answer with a reset when the socket is
        closed, and a reset may destroy the reply before the client has read it.
        """
        try:
            sock = _stream_socket(self.fd)
            sock.shutdown(_socket.SHUT_WR)
            sock.detach()
            poller = select.poll()
            poller.register(self.fd, select.POLLIN)
            for _ in range(MAX_GOODBYE_READS):
                if not poller.poll(GOODBYE_TIMEOUT_MS) or not os.read(self.fd, CHUNK_OCTETS):
                    return
        except OSError:
            return


def _stream_socket(fd: int) -> _socket.socket:
    """Return a socket object for the stream; its family only matters for addresses, which nobody asks for."""
    return _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)


class Report:
    """What the front is told of this session: notes for the log on the way, the totals at the end."""

    __slots__ = ("channel_fd", "dialogue", "totals")

    def __init__(self, channel_fd: int, dialogue: bool) -> None:
        self.channel_fd = channel_fd
        self.dialogue = dialogue
        self.totals: dict[str, Any] = TOTALS_AT_START.copy()

    def note(self, event: str, detail: str) -> None:
        """Have the front write an event; one that it can't take at once is lost."""
        octets = messages.encode(messages.NOTED, event=event, detail=detail[:500])
        sock = _channel(self.channel_fd)
        try:
            sock.send(octets, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:
            return
        finally:
            sock.detach()

    def note_dialogue(self, event: str, line: bytes | wire.LineError) -> None:
        """Have one line of the dialogue logged, where that was asked for."""
        if self.dialogue:
            octets = line if isinstance(line, bytes) else line.name.encode()
            self.note(event, octets.decode("ascii", "backslashreplace"))

    def note_warnings(self, opened: opening.Opened) -> None:
        """Pass on what the maildrop had to say."""
        for event, fields in opened.warnings:
            self.note(event, " ".join(f"{name}={value}" for name, value in fields.items()))
        opened.warnings.clear()

    def opened(self, opened: opening.Opened) -> None:
        """Enter what was opened into the totals."""
        count, octets = opened.maildrop.stat()
        totals = self.totals
        totals["cache"] = opened.outcome
        totals["cache_reason"] = opened.reason
        totals["cache_us"] = int(opened.cache_ms * 1000)
        totals["messages"] = count
        totals["octets"] = octets
        self.note_warnings(opened)

    def send(self, octets_sent: int) -> bool:
        """Send the totals; returns whether there still was a front to take them."""
        self.totals["octets_sent"] = octets_sent
        try:
            self.tell(messages.encode(messages.TOTALS, **self.totals))
        except OSError:
            return False
        return True

    def tell(self, octets: bytes) -> None:
        """Send a frame: on a SOCK_SEQPACKET socket one write is one message."""
        os.write(self.channel_fd, octets)


class Session:
    """The conversation over an open maildrop."""

    __slots__ = ("opened", "reader", "report", "stream", "transaction")

    def __init__(self, stream: Stream, report: Report, opened: opening.Opened) -> None:
        self.stream = stream
        self.report = report
        self.opened = opened
        self.reader = wire.LineReader()
        self.transaction = Transaction(opened.maildrop)

    # Speaking

    def converse(self, unread: bytes) -> None:
        """
        Answer commands, those in `unread` first, until QUIT has been received and carried out.

        Raises:
            SessionEnd: the session ended in another way.
        """
        reader, stream = self.reader, self.stream
        reader.feed(unread)
        while True:
            line = reader.next_line()
            if line is None:
                reader.feed(stream.receive())
                continue
            self.report.note_dialogue("command_received", line)
            decision = self.transaction.handle(line)
            if isinstance(decision, decisions.Reply):
                self._reply(decision.octets)
            elif isinstance(decision, decisions.SendListing):
                self._send_listing(decision.kind)
            elif isinstance(decision, decisions.SendMessage):
                self._send_message(decision.index, decision.line_count)
            else:
                self._update()
                return

    def _reply(self, octets: bytes) -> None:
        self.report.note_dialogue("reply_sent", octets.partition(b"\r\n")[0])
        self.stream.send(octets)

    def _send_listing(self, kind: str) -> None:
        image = self.opened.image
        for offset, length in self.opened.maildrop.listing_segments(kind):
            if image.octets:
                self.stream.send(image.octets[offset : offset + length])
            else:
                self.stream.send_file(image.fd, offset, length)

    def _send_message(self, index: int, line_count: int | None) -> None:
        try:
            message = self.opened.message(index)
        except maildir.MessageVanished:
            self._reply(VANISHED)
        except maildir.MessageUnreadable:
            self._reply(UNREADABLE)
        except maildir.MessageChanged:
            self._reply(CHANGED)
        else:
            try:
                if line_count is None:
                    self._retr(index, message)
                else:
                    self._top(message, line_count)
            finally:
                os.close(message.fd)

    def _retr(self, index: int, message: maildir.OpenMessage) -> None:
        """Send a whole message, counting its octets as LIST counts them (RFC 1939 §11)."""
        before = self.stream.octets_sent + self.stream.batched
        self._reply(b"+OK %d octets\r\n" % message.listed_octets)
        octets, form = self._send_encoded(message)
        self.report.totals["retr"] += 1
        self.report.totals["retr_octets"] += self.stream.octets_sent + self.stream.batched - before
        if octets != message.listed_octets or form != message.form:
            self.opened.learned(index, octets, form)
            self.report.note_warnings(self.opened)
        self.opened.maildrop.retrieved.add(index)

    def _send_encoded(self, message: maildir.OpenMessage) -> tuple[int, int]:
        """Send a message on the way that its form allows; returns its true octets and form."""
        stream, size = self.stream, message.file_size
        if message.form == encoding.FORM_WIRE:
            stream.send_file(message.fd, 0, size)
            stream.send(b".\r\n")
            return size, message.form
        if message.form == encoding.FORM_PLAIN_LF:
            octets = 0
            for chunk in _chunks(message.fd, size):
                encoded = encoding.encode_plain(chunk)
                octets += len(encoded)
                stream.send(encoded)
            stream.send(b".\r\n")
            return octets, message.form
        measure = encoding.Measure()
        at = encoding.LinePosition.LINE_START
        for chunk in _chunks(message.fd, size):
            measure.feed(chunk)
            encoded, at = encoding.encode(chunk, at)
            stream.send(encoded)
        stream.send(encoding.terminator(at))
        return measure.result()

    def _top(self, message: maildir.OpenMessage, line_count: int) -> None:
        before = self.stream.octets_sent + self.stream.batched
        self._reply(b"+OK top of message follows\r\n")
        encoder = encoding.TopEncoder(line_count)
        for chunk in _chunks(message.fd, message.file_size):
            self.stream.send(encoder.feed(chunk))
            if encoder.done:
                break
        self.stream.send(encoder.finish())
        self.report.totals["top"] += 1
        self.report.totals["top_octets"] += self.stream.octets_sent + self.stream.batched - before

    # Ending

    def _update(self) -> None:
        """The UPDATE state: QUIT has been received, so it is carried out, then answered, once."""
        signals.block_ending()
        totals = self.report.totals
        totals["marked"] = len(self.opened.maildrop.marked())
        result = self.opened.update()
        totals["close_reason"] = "quit"
        totals["removed"] = result.removed
        totals["not_removed"] = result.failed
        self.report.note_warnings(self.opened)
        # The lock goes before the reply: who reads the reply may log in again at once.
        self.opened.close()
        try:
            self._reply(NOT_REMOVED if result.failed else b"+OK bye\r\n")
            self.stream.flush()
        except SessionEnd:
            return  # the QUIT was received, that is what counts (RFC 1939 §6)


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    """
    Yield a file of `size` octets in chunks.

    Up to one chunk it is read; above that it is mapped, and a file that another program
    makes shorter meanwhile ends this process with SIGBUS, which is what we want: nothing
    is removed, and the broker reports it.
    """
    if size <= CHUNK_OCTETS:
        octets = os.read(fd, size) if size else b""
        if len(octets) != size:
            raise OSError(errno.EIO, "a message became shorter while it was sent")
        if octets:
            yield octets
        return
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        for start in range(0, size, CHUNK_OCTETS):
            yield mapped[start : start + CHUNK_OCTETS]
            # Pages that were sent are given back: a 50 MB message costs one chunk, not 50 MB.
            mapped.madvise(mmap.MADV_DONTNEED, start, min(CHUNK_OCTETS, size - start))


def maildrop_options(settings: SessionSettings, boot_id: bytes) -> opening.Options:
    """Return how maildrops are opened: made once, in the broker, for all sessions to come."""
    return opening.Options(
        cache=settings.statcache,
        max_messages=settings.max_messages,
        move_to_cur=settings.move_to_cur,
        boot_id=boot_id,
    )


def _close_all_but(first: int, second: int) -> None:
    """Close every descriptor above 2 but these two: nobody else's may reach the mail user."""
    low, high = sorted((first, second))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 1 << 20)


def _end_on_signals(stream: Stream, takeover_after_s: float) -> None:
    """SIGTERM ends the session; SIGUSR1 (a newer login wants the maildrop) if its client is silent."""

    def end() -> None:
        raise SessionEnd("shutdown")

    def end_if_silent() -> None:
        if stream.seconds_silent() >= takeover_after_s:
            raise SessionEnd("takeover")

    signal.set_wakeup_fd(-1)
    signals.actions.clear()
    signals.actions[signals.TERM] = end
    signals.actions[signals.USR1] = end_if_silent


def _enter(login: dict[str, Any], settings: SessionSettings) -> int:
    """Become the mail user (where there is root to give up); returns the Maildir's descriptor."""
    if os.geteuid() != 0:
        return credentials.open_own_maildir(login["uid"], login["home"], login["maildir"])
    return credentials.become_user(
        login["uid"],
        login["gid"],
        login["groups"],
        login["home"],
        login["maildir"],
        settings.jail,
        (settings.first_valid_uid, settings.first_valid_gid),
    )


def _channel(fd: int) -> _socket.socket:
    """Return a socket object for the channel; with all three given, Python asks the kernel nothing."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def _unread(channel_fd: int) -> bytes:
    """Return what the front had read beyond the login; it lies in the channel from the start."""
    frame = messages.decode(os.read(channel_fd, messages.MAX_FRAME_OCTETS))
    if frame.kind != messages.PIPELINED:
        raise messages.BadFrame(f"{frame!r} where pipelined octets were expected")
    octets: bytes = frame.fields["octets"]
    return octets


def _open(
    enter: Callable[[], int], settings: SessionSettings, options: opening.Options
) -> opening.Opened:
    """Become the mail user, lock and open the maildrop."""
    try:
        directory = enter()
    except credentials.MaildirAbsent:
        return opening.absent_maildrop()
    if settings.lock:
        maildir.lock(directory, settings.lock_wait_s)
    return opening.open_maildrop(directory, options)


def serve(
    stream: Stream,
    report: Report,
    enter: Callable[[], int],
    settings: SessionSettings,
    options: opening.Options,
) -> None:
    """
    Do everything between the fork and the totals; the report says how it ended.

    `enter` gives up root and returns the Maildir's descriptor.
    """
    opened, refusal = None, UNAVAILABLE
    try:
        opened = _open(enter, settings, options)
    except maildir.MaildropInUse:
        refusal = IN_USE
        report.totals["close_reason"] = "in_use"
    except (maildir.MaildropUnavailable, credentials.CredentialsRefused, OSError) as error:
        report.totals["close_reason"] = "unavailable"
        report.totals["fault"] = _described(error)
    unread = _unread(report.channel_fd)
    report.tell(SERVING)
    stream.adopt()
    if opened is None:
        stream.send(refusal)
        stream.flush()
        return
    report.opened(opened)
    try:
        stream.send(b"+OK maildrop locked and ready\r\n")
        Session(stream, report, opened).converse(unread)
    finally:
        # However it ended: what was learned about sizes is kept, and the lock goes.
        signals.block_ending()
        opened.close()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def check_login(octets: bytes, client: int, channel_fd: int) -> dict[str, Any]:
    """
    Return the fields of a SERVE frame, and check the descriptors that came with it.

    Raises:
        BadFrame: they are not what they have to be.
    """
    channel.check_login_descriptors((client, channel_fd))
    return messages.decode(octets).fields


def run(
    octets: bytes,
    client: int,
    channel_fd: int,
    settings: SessionSettings,
    options: opening.Options,
) -> None:
    """
    Be the session of a login, the SERVE frame in `octets`, in a process just forked; never returns.

    Takes over both descriptors. The exit status is 0 if the front was told how it ended,
    else one of EXIT_…; the broker logs those.
    """
    status = 1
    try:
        login = check_login(octets, client, channel_fd)
        stream = Stream(client, settings.autologout_s)
        _end_on_signals(stream, settings.takeover_after_s)
        _close_all_but(client, channel_fd)
        report = Report(channel_fd, bool(login["dialogue"]))
        try:
            serve(stream, report, lambda: _enter(login, settings), settings, options)
        except SessionEnd as end:
            report.totals["close_reason"] = end.reason
        except Exception as error:
            report.totals.update(close_reason="fault", fault=_described(error))
        status = 0 if report.send(stream.octets_sent) else EXIT_UNREPORTED
        stream.say_goodbye()
    except messages.BadFrame:
        status = EXIT_BAD_LOGIN
    finally:
        os._exit(status)
