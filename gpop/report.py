"""
EDGE: what a session tells its front: notes for the log on the way, the totals at the end.

Executed by the session, as the mail user; the front believes none of it further than a log
line goes.
"""

from __future__ import annotations

import os
import select

from gpop.pop3.commands import without_secret
from gpop.privsep import channel, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.opening import Opened
    from gpop.pop3.wire import LineError

SERVING = messages.encode(messages.SERVING)
MAX_DETAIL_CHARACTERS = 500
# How long a front may leave a session's channel full before its totals are given up.
TOTALS_TIMEOUT_MS = 2000


class Report:
    """
    The session channel, and the totals (docs/log.md, `session_closed`) as they grow.
    """

    __slots__ = (
        "_channel_fd",
        "_dialogue",
        "cache",
        "cache_reason",
        "cache_us",
        "close_reason",
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
        self._channel_fd = channel_fd
        self._dialogue = dialogue
        self.close_reason = self.cache = self.cache_reason = self.fault = ""
        self.cache_us = self.messages = self.octets = 0
        self.retr = self.retr_octets = self.top = self.top_octets = 0
        self.marked = self.removed = self.not_removed = 0

    def serving(self) -> bytes:
        """
        Tell the front that the client's stream is the session's from here on.

        Returns the octets that the front had read beyond the login: it put them into the
        channel before anybody else had it.

        Raises:
            OSError, BadFrame: the front is gone, or put something else there.
        """
        frame = messages.decode(os.read(self._channel_fd, messages.MAX_FRAME_OCTETS))
        if frame.kind != messages.PIPELINED:
            raise messages.BadFrame(f"{frame!r} where pipelined octets were expected")
        os.write(self._channel_fd, SERVING)
        unread: bytes = frame.fields["octets"]
        return unread

    def note(self, event: str, detail: str) -> None:
        """Have the front write an event; one that it can't take at once is lost."""
        octets = messages.encode(messages.NOTED, event=event, detail=detail[:MAX_DETAIL_CHARACTERS])
        channel.send_at_once(self._channel_fd, octets)

    def note_command(self, line: bytes | LineError) -> None:
        """Have a command logged, where the dialogue was asked for."""
        if self._dialogue:
            self.note("command_received", without_secret(line).decode("ascii", "backslashreplace"))

    def note_reply(self, octets: bytes) -> None:
        """Have the first line of a reply logged, where the dialogue was asked for."""
        if self._dialogue:
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
        self.cache_us = int(opened.cache_ms * 1000)
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
        if channel.send_at_once(self._channel_fd, octets):
            return True
        # The front is gone; or busy, or it never reads: then it does not get to keep this process for ever.
        poller = select.poll()
        poller.register(self._channel_fd, select.POLLOUT)
        poller.poll(TOTALS_TIMEOUT_MS)
        return channel.send_at_once(self._channel_fd, octets)
