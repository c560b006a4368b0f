"""
PROCESS (part of the session): the conversation over an open maildrop, with every command there is.

Decides nothing about the protocol (`pop3.transaction` does) and nothing about files (`maildrop`
does); it moves octets between them and the client's stream. Executed by the session, as the
mail user.

Nothing is removed unless a QUIT was received: every other way out of `Conversation.converse`
is an exception, and only the QUIT reaches `_update`.
"""

from __future__ import annotations

import errno
import mmap
import os

from gpop import signals
from gpop.maildrop import errors, maildir, names
from gpop.maildrop.statcache import LIST_STATUS, UIDL_STATUS
from gpop.pop3 import decisions, encoding, wire
from gpop.pop3.commands import NO_POLICIES, Offer
from gpop.pop3.transaction import Transaction
from gpop.session.stream import SessionEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpop.maildrop.opened import Opened
    from gpop.pop3.languages import Speech
    from gpop.session.report import Report
    from gpop.session.stream import Stream

# What is taken of a message at a time: large enough that C does the work, so small that the C library has
# memory for it at hand. From 64 KiB on it asks for pages and gives them back, chunk after chunk.
CHUNK_OCTETS = 32768
# What is mapped of a large message at a time, in one call and not page by page. Half of it is twice the CPU.
WINDOW_OCTETS = 64 * CHUNK_OCTETS
MADV_POPULATE_READ = 22  # linux/mman.h, since Linux 5.14

BYE = wire.ok("bye")
NOT_REMOVED = wire.err("Some deleted messages not removed")
VANISHED = wire.err("That message is gone")
UNREADABLE = wire.err("That message can't be read", "SYS/PERM")
UNREADABLE_NOW = wire.err("That message can't be read now, please try again later", "SYS/TEMP")
CHANGED = wire.err("That message has changed on disk, please try again later", "SYS/TEMP")
# So many messages of a session that can't be sent are named in the log.
MOST_UNREADABLE = 10


class Conversation:
    """The conversation over an open maildrop."""

    __slots__ = (
        "_unreadable", "_utf8_needed", "opened", "reader", "report", "speech", "stream", "transaction",
    )  # fmt: skip

    def __init__(
        self,
        stream: Stream,
        report: Report,
        opened: Opened,
        speech: Speech,
        refuse_utf8: bool,
        policies: tuple[str, ...] = NO_POLICIES,
    ) -> None:
        """
        `refuse_utf8`: messages whose header is not ASCII are not for this client. `policies` are what
        the settings add to CAPA (`pop3.commands.policies`).
        """
        self.stream = stream
        self.report = report
        self.opened = opened
        self.speech = speech
        self.reader = wire.LineReader()
        needs_utf8 = self._needs_utf8 if refuse_utf8 else None
        offer = Offer(policies=policies)
        self.transaction = Transaction(opened.maildrop, offer, speech, needs_utf8)
        self._utf8_needed: dict[int, bool] = {}  # by index, as far as it was asked for
        self._unreadable: set[int] = set()  # what was asked for and could not be sent

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
            if self.report.dialogue:
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
        octets = self.speech.said(octets)
        if self.report.dialogue:
            self.report.note_reply(octets)
        self.stream.send(octets)

    def _send_listing(self, kind: str) -> None:
        image, segments = self.opened.image, self.opened.maildrop.listing_segments(kind)
        status = UIDL_STATUS if kind == "UIDL" else LIST_STATUS
        said = self.speech.said(status)
        if said is not status:
            # That in the image, at the start of the first segment, is in English.
            self.stream.send(said)
            offset, length = segments[0]
            segments[0] = offset + len(status), length - len(status)
        for offset, length in segments:
            if image.octets:
                self.stream.send(image.octets[offset : offset + length])
            else:
                self.stream.send_file(image.fd, offset, length)

    def _needs_utf8(self, index: int) -> bool:
        """Whether the header of a message has octets outside ASCII (RFC 6532). It is read for this, once."""
        if index not in self._utf8_needed:
            try:
                message = self.opened.message(index)
                try:
                    self._utf8_needed[index] = _header_needs_utf8(message)
                finally:
                    os.close(message.fd)
            except (errors.MessageVanished, errors.MessageUnreadable, errors.MessageChanged):
                return False  # what is wrong with it is said when it is sent
        return self._utf8_needed[index]

    def _send_message(self, index: int, line_count: int | None) -> None:
        try:
            message = self.opened.message(index)
            try:
                if line_count is None:
                    self._retr(index, message)
                else:
                    self._top(message, line_count)
            finally:
                os.close(message.fd)
        except errors.MessageVanished:
            self._reply(VANISHED)
        except errors.MessageUnreadable as error:
            self._note_unreadable(index, errno.errorcode.get(error.errno, "no_regular_file"))
            lasts = not error.errno or error.errno in maildir.FILE_FAULTS
            self._reply(UNREADABLE if lasts else UNREADABLE_NOW)
        except errors.MessageChanged:
            self._note_unreadable(index, "changed")
            self._reply(CHANGED)

    def _note_unreadable(self, index: int, reason: str) -> None:
        """Have it logged: once for a message, the first few of a session. A client may ask for ever."""
        if index in self._unreadable or len(self._unreadable) >= MOST_UNREADABLE:
            return
        self._unreadable.add(index)
        detail = f"message={index + 1} reason={reason}"
        try:
            location = self.opened.maildrop.location(index)
        except errors.MessageChanged:
            pass  # which file it is can't be told: just that is what is wrong
        else:
            name = location.name.decode("ascii", "backslashreplace")
            detail += f" file={names.FOLDERS[location.folder]}/{name}"
        self.report.note("message_unreadable", detail)

    def _retr(self, index: int, message: maildir.OpenMessage) -> None:
        """Send a whole message, counting its octets as LIST counts them (RFC 1939 §11)."""
        stream, report, listed = self.stream, self.report, message.listed_octets
        before = stream.octets_sent + stream.batch_octets
        # Read before +OK is said: what can't be read is to be an -ERR, and not the end of the session.
        whole = _read(message.fd, message.file_size) if message.file_size <= CHUNK_OCTETS else None
        self._reply(b"+OK %d %b\r\n" % (listed, self.speech.text("octets")))
        if whole is not None:
            encoded, octets, form = encoding.encode_whole(whole, message.form, listed)
            stream.send(encoded)
        else:
            octets, form = self._send_large(message)
        stream.send(wire.TERMINATOR)
        report.retr += 1
        report.retr_octets += stream.octets_sent + stream.batch_octets - before
        if octets != listed:
            self.opened.learned(index, octets, form)
            report.note_warnings(self.opened)
        if message.is_new or self.opened.has_retention:
            self.opened.maildrop.retrieved.add(index)

    def _send_large(self, message: maildir.OpenMessage) -> tuple[int, int]:
        """
        Send a message in chunks, on the way that its form allows; returns its true octets and form.

        A form is only known of a file that was measured and has not been written to since.
        """
        stream, size = self.stream, message.file_size
        if message.form == encoding.FORM_WIRE:
            stream.send_file(message.fd, 0, size)
            return size, message.form
        if message.form == encoding.FORM_PLAIN_LF:
            octets = 0
            for chunk in _chunks(message.fd, size):
                encoded = encoding.encode_plain(chunk)
                octets += len(encoded)
                stream.send(encoded)
            return octets, message.form
        measure = encoding.Measure() if message.form == encoding.FORM_UNKNOWN else None
        at = encoding.LINE_START
        for chunk in _chunks(message.fd, size):
            if measure:
                measure.feed(chunk)
            encoded, at = encoding.encode(chunk, at)
            stream.send(encoded)
        if at != encoding.LINE_START:
            stream.send(wire.CRLF)
        return measure.result() if measure else (message.listed_octets, message.form)

    def _top(self, message: maildir.OpenMessage, line_count: int) -> None:
        before = self.stream.octets_sent + self.stream.batch_octets
        chunks = _chunks(message.fd, message.file_size)
        chunk = next(chunks, b"")  # before +OK, as in `_retr`
        self._reply(b"+OK top of message follows\r\n")
        encoder = encoding.TopEncoder(line_count)
        while chunk:
            self.stream.send(encoder.feed(chunk))
            chunk = b"" if encoder.done else next(chunks, b"")
        self.stream.send(encoder.finish())
        self.report.top += 1
        self.report.top_octets += self.stream.octets_sent + self.stream.batch_octets - before

    # Ending

    def _update(self) -> None:
        """The UPDATE state: QUIT has been received, so it is carried out, then answered, once."""
        signals.block_ending()
        report = self.report
        report.marked = len(self.opened.maildrop.marked())
        result = self.opened.update(report.note_removed)
        report.close_reason = "quit"
        report.removed = result.removed
        report.expired = result.expired
        report.not_removed = result.failed
        report.note_warnings(self.opened)
        # The lock goes before the reply: who reads the reply may log in again at once.
        self.opened.close()
        try:
            self._reply(NOT_REMOVED if result.failed else BYE)
            self.stream.flush()
        except SessionEnd:
            return  # the QUIT was received, that is what counts (RFC 1939 §6)


def _header_needs_utf8(message: maildir.OpenMessage) -> bool:
    header = encoding.TopEncoder(0)
    for chunk in _chunks(message.fd, message.file_size):
        if not header.feed(chunk).isascii():
            return True
        if header.done:
            break
    return False


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    """
    Yield a file of `size` octets in chunks.

    Up to one chunk it is read; above that it is mapped, a window at a time, so that the largest message
    costs no more memory, nor address space, than one window. A file that another program makes shorter
    meanwhile ends this process with SIGBUS, or, between two windows, with a fault, which is what we want:
    nothing is removed, and it is reported.
    """
    if size <= CHUNK_OCTETS:
        if size:
            yield _read(fd, size)
        return
    for window in range(0, size, WINDOW_OCTETS):
        length = min(WINDOW_OCTETS, size - window)
        with _window(fd, window, length) as mapped:
            _populate(mapped)
            for start in range(0, length, CHUNK_OCTETS):
                yield mapped[start : min(start + CHUNK_OCTETS, length)]


def _window(fd: int, at: int, length: int) -> mmap.mmap:
    """Map a piece of a file. Raises OSError: it can't be mapped, or is not there any more."""
    try:
        return mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=at)
    except ValueError:
        raise OSError(errno.EIO, "a message became shorter while it was sent") from None


def _populate(mapped: mmap.mmap) -> None:
    """Have the pages mapped at once, if the kernel can; else each will be when it is read."""
    try:
        mapped.madvise(MADV_POPULATE_READ)
    except OSError:
        return


def _read(fd: int, size: int) -> bytes:
    """
    Return the first `size` octets of a message's file.

    Raises:
        MessageUnreadable, MessageChanged: they can't be read; or there are fewer by now.
    """
    try:
        octets = os.read(fd, size)
    except OSError as error:
        raise errors.MessageUnreadable("a message's file can't be read", error.errno) from error
    if len(octets) != size:
        raise errors.MessageChanged("a message's file became shorter")
    return octets
