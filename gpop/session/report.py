"""
EDGE: what a session tells its front: notes for the log on the way, the totals at the end.

Executed by the session, as the mail user; the front believes none of it further than a log
line goes.
"""

from __future__ import annotations

import _socket
import select
import time

from gpop.pop3.commands import without_secret
from gpop.privsep import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.model import Location
    from gpop.maildrop.opened import Opened
    from gpop.pop3.wire import LineError

SERVING = messages.encode(messages.SERVING)
MAX_PIPELINED_FRAME_OCTETS = (
    len(messages.encode(messages.PIPELINED, octets=b"")) + messages.MAX_PIPELINED_OCTETS
)
MAX_DETAIL_CHARACTERS = 500
# How long a front may leave a session's channel full before its totals are given up.
TOTALS_TIMEOUT_MS = 2000


class Report:
    """
    The session channel, and the totals (docs/log.md, `session_closed`) as they grow.
    """

    __slots__ = (
        "_channel",
        "_patience_ms",
        "cache",
        "cache_reason",
        "cache_us",
        "close_reason",
        "dialogue",
        "expired",
        "fault",
        "marked",
        "messages",
        "not_removed",
        "octets",
        "removed",
        "retr",
        "retr_octets",
        "top",
        "top_octets",
    )

    def __init__(self, channel_fd: int, dialogue: bool) -> None:
        self._channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, channel_fd)
        self._patience_ms = TOTALS_TIMEOUT_MS  # in all, for audit lines
        self.dialogue = dialogue  # whether commands and replies are to be logged
        self.close_reason = self.cache = self.cache_reason = self.fault = ""
        self.cache_us = self.messages = self.octets = 0
        self.retr = self.retr_octets = self.top = self.top_octets = 0
        self.marked = self.expired = self.removed = self.not_removed = 0

    def serving(self, pipelined: bool) -> bytes:
        """
        Tell the front that the client's stream is the session's from here on.

        Returns the octets that the front had read beyond the login, if any were `pipelined`: it put
        them into the channel before anybody else had it.

        Raises:
            OSError, BadFrame: the front is gone, or put something else there.
        """
        unread = b""
        if pipelined:
            octets = self._channel.recv(MAX_PIPELINED_FRAME_OCTETS)
            unread = messages.fields_of(octets, messages.PIPELINED)["octets"]
        self._channel.send(SERVING, _socket.MSG_NOSIGNAL)
        return unread

    def note(self, event: str, detail: str) -> None:
        """Have the front write an event; one that it can't take at once is lost."""
        self._send_at_once(
            messages.encode(messages.NOTED, event=event, detail=detail[:MAX_DETAIL_CHARACTERS])
        )

    def _send_at_once(self, octets: bytes) -> bool:
        """Send a frame; False if that can't be at once. The channel's flags belong to the front as well."""
        try:
            self._channel.send(octets, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def note_removed(self, location: Location, octets: int, how: str) -> None:
        """Have a removed message logged, and wait a little for a front that is busy: it is an audit line."""
        names = [octets.decode("ascii", "backslashreplace") for octets in (location.unique_id, location.name)]
        detail = f"unique_id={names[0]} octets={octets} how={how} file={names[1]}"
        frame = messages.encode(messages.NOTED, event="message_removed", detail=detail)
        if not self._send_at_once(frame) and self._patience_ms:
            started = time.monotonic()
            self._wait_for_front(self._patience_ms)
            self._patience_ms = max(0, self._patience_ms - int((time.monotonic() - started) * 1000))
            self._send_at_once(frame)

    def note_command(self, line: bytes | LineError) -> None:
        """Have a command logged."""
        self.note("command_received", without_secret(line).decode("ascii", "backslashreplace"))

    def note_reply(self, octets: bytes) -> None:
        """Have the first line of a reply logged."""
        self.note("reply_sent", octets.partition(b"\r\n")[0].decode("ascii", "backslashreplace"))

    def note_warnings(self, opened: Opened) -> None:
        """Pass on what the maildrop had to say."""
        for event, fields in opened.warnings:
            self.note(event, " ".join(f"{name}={value}" for name, value in fields.items()))
        opened.warnings.clear()

    def opened(self, opened: Opened) -> None:
        """Enter what was opened into the totals."""
        self.messages, self.octets = opened.maildrop.stat()
        self.cache = opened.outcome
        self.cache_reason = opened.reason
        self.cache_us += int(opened.cache_ms * 1000)
        self.note_warnings(opened)

    def send_totals(self, octets_sent: int) -> bool:
        """Send the totals; returns whether there still was a front to take them."""
        counts = (
            self.cache_us,
            self.messages,
            self.octets,
            self.retr,
            self.retr_octets,
            self.top,
            self.top_octets,
            self.marked,
            self.expired,
            self.removed,
            self.not_removed,
            octets_sent,
        )
        octets = messages.encode(
            messages.TOTALS,
            close_reason=self.close_reason,
            cache=self.cache,
            cache_reason=self.cache_reason,
            fault=self.fault,
            counts=counts,
        )
        if self._send_at_once(octets):
            return True
        # The front is gone; or busy, or it never reads: then it does not get to keep this process for ever.
        self._wait_for_front(TOTALS_TIMEOUT_MS)
        return self._send_at_once(octets)

    def _wait_for_front(self, most_ms: int) -> None:
        poller = select.poll()
        poller.register(self._channel, select.POLLOUT)
        poller.poll(most_ms)

    def close(self) -> None:
        """Close the channel: that is how the front learns that the session is over."""
        self._channel.close()
