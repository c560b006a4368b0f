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

import errno
import mmap
import os

from gpop import signals
from gpop.maildrop import maildir, opening
from gpop.pop3 import decisions, encoding, wire
from gpop.pop3.transaction import Transaction
from gpop.privsep import channel, credentials, messages
from gpop.report import Report
from gpop.stream import SessionEnd, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from gpop.config import SessionSettings

    BecomeUser = Callable[[int, int, list[int], bytes, bytes, str, tuple[int, int]], int]

# What is read of a message at a time: large enough that C does the work, small enough to be nothing.
CHUNK_OCTETS = 65536
# Exit status of a session whose front was gone when it ended.
EXIT_UNREPORTED = 3
# Exit status where a login's descriptors, or its frame, are not what they have to be.
EXIT_BAD_LOGIN = 4

UNAVAILABLE = wire.err("The maildrop can't be used now, please try again later", "SYS/TEMP")
IN_USE = wire.err("The maildrop is in use by another session", "IN-USE")
NOT_REMOVED = wire.err("Some deleted messages not removed")
VANISHED = wire.err("That message is gone")
UNREADABLE = wire.err("That message can't be read", "SYS/PERM")
CHANGED = wire.err("That message has changed on disk, please try again later", "SYS/TEMP")


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
            self.report.note_command(line)
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
        self.report.note_reply(octets)
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
        self.report.retr += 1
        self.report.retr_octets += self.stream.octets_sent + self.stream.batched - before
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
        at = encoding.LINE_START
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
        self.report.top += 1
        self.report.top_octets += self.stream.octets_sent + self.stream.batched - before

    # Ending

    def _update(self) -> None:
        """The UPDATE state: QUIT has been received, so it is carried out, then answered, once."""
        signals.block_ending()
        report = self.report
        report.marked = len(self.opened.maildrop.marked())
        result = self.opened.update()
        report.close_reason = "quit"
        report.removed = result.removed
        report.not_removed = result.failed
        report.note_warnings(self.opened)
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


def _close_all_but(first: int, second: int, closerange: Callable[[int, int], object]) -> None:
    """Close every descriptor above 2 but these two: nobody else's may reach the mail user."""
    low, high = (first, second) if first < second else (second, first)
    closerange(3, low)
    closerange(low + 1, high)
    closerange(high + 1, 1 << 20)


def _end_on_signals(stream: Stream, takeover_after_s: float) -> None:
    """SIGTERM ends the session; SIGUSR1 (a newer login wants the maildrop) if its client is silent."""

    def end(_number: int) -> None:
        raise SessionEnd("shutdown")

    def end_if_silent(_number: int) -> None:
        if stream.seconds_silent() >= takeover_after_s:
            raise SessionEnd("takeover")

    signals.set_wakeup_fd(-1)
    signals.actions.clear()
    signals.actions[signals.TERM] = end
    signals.actions[signals.USR1] = end_if_silent


def _enter(login: dict[str, Any], settings: SessionSettings, become: BecomeUser) -> int:
    """Become the mail user (where there is root to give up); returns the Maildir's descriptor."""
    if os.geteuid() != 0:
        return credentials.open_own_maildir(login["uid"], login["home"], login["maildir"])
    return become(
        login["uid"],
        login["gid"],
        login["groups"],
        login["home"],
        login["maildir"],
        settings.jail,
        (settings.first_valid_uid, settings.first_valid_gid),
    )


def _open(
    login: dict[str, Any], settings: SessionSettings, options: opening.Options, become: BecomeUser
) -> opening.Opened:
    """Become the mail user, lock and open the maildrop."""
    try:
        directory = _enter(login, settings, become)
    except credentials.MaildirAbsent:
        return opening.absent_maildrop()
    if settings.lock:
        maildir.lock(directory, settings.lock_wait_s)
    try:
        return opening.open_maildrop(directory, options)
    except BaseException:
        # Before the -ERR (RFC 1939 §4): this process lives on until its client has read that.
        maildir.unlock(directory)
        raise


def _serve(
    stream: Stream,
    report: Report,
    login: dict[str, Any],
    settings: SessionSettings,
    options: opening.Options,
    become: BecomeUser,
) -> None:
    """Do everything between the fork and the totals; the report says how it ended."""
    opened, refusal = None, UNAVAILABLE
    try:
        opened = _open(login, settings, options, become)
    except maildir.MaildropInUse:
        refusal = IN_USE
        report.close_reason = "in_use"
    except (maildir.MaildropUnavailable, credentials.CredentialsRefused, OSError) as error:
        report.close_reason = "unavailable"
        report.fault = _described(error)
    unread = report.serving()
    stream.adopt()
    if opened is None:
        stream.send(refusal)
        stream.flush()
        return
    report.opened(opened)
    try:
        stream.send(b"+OK maildrop locked and ready\r\n")
        Session(stream, report, opened).converse(unread)
    except maildir.MaildropUnavailable as error:
        # A folder is gone, or the statcache was damaged: whatever came next would be a guess.
        # As after QUIT, the lock goes before the reply.
        report.close_reason = "unavailable"
        report.fault = _described(error)
        opened.close()
        stream.send(UNAVAILABLE)
        stream.flush()
    finally:
        # However it ended: what was learned about sizes is kept, and the lock goes.
        signals.block_ending()
        opened.close()


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def run(
    octets: bytes,
    client: int,
    channel_fd: int,
    settings: SessionSettings,
    options: opening.Options,
    become: BecomeUser = credentials.become_user,
    closerange: Callable[[int, int], object] = os.closerange,
    end: Callable[[int], object] = os._exit,
) -> None:
    """
    Be the session of a login, the SERVE frame in `octets`, in a process just forked; never returns.

    Takes over both descriptors. The exit status is 0 if the front was told how it ended,
    else one of EXIT_…; the broker logs those. What can't be taken back is in the last three
    parameters: giving up root, closing others' descriptors, and the end. `rehearsal` has other ones.
    """
    status = 1
    try:
        channel.check_login_descriptors(client, channel_fd)
        login = messages.decode(octets).fields
        stream = Stream(client, settings.autologout_s)
        _end_on_signals(stream, settings.takeover_after_s)
        _close_all_but(client, channel_fd, closerange)
        report = Report(channel_fd, login["dialogue"] != 0)
        try:
            _serve(stream, report, login, settings, options, become)
        except SessionEnd as ended:
            report.close_reason = ended.reason
        except Exception as error:
            report.close_reason, report.fault = "fault", _described(error)
        status = 0 if report.send_totals(stream.octets_sent) else EXIT_UNREPORTED
        if stream.adopted:
            stream.say_goodbye()
        # Else the client is the front's still, which answers and goes on as soon as we are gone.
    except messages.BadFrame:
        status = EXIT_BAD_LOGIN
    finally:
        end(status)
