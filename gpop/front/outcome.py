"""
PROCESS (part of the front): what becomes of one login, and what the log says of it.

Everything that comes on the session channel, from auth and from the session, neither of which is believed
more than a front needs: known frames, each at its time and so often.
"""

from __future__ import annotations

import _socket
import time
from typing import TYPE_CHECKING, Any

import gevent

from gpop import events
from gpop.front.transport import READABLE, TlsTransport
from gpop.pop3 import decisions
from gpop.privsep import channel, messages
from gpop.privsep.messages import Frame

if TYPE_CHECKING:
    from gpop.front.connection import Connection

# A frame from auth or a session; only PIPELINED is larger, and a front never receives that.
MAX_ANSWER_OCTETS = 8192
# Nobody waits for the front once a login is handed over: the session answers the client itself. By now it
# has come this far, and what auth and session have said since is read in one go, and not with a wake-up each.
HAND_OVER_S = 0.005
# A session notes each kind of thing once or twice; its dialogue, if it was asked for, is as long as it is.
MAX_NOTES = 100
# With log.removals it also notes each message that it removes.
MAX_REMOVAL_NOTES = 100_000
NO_COUNTS = [0] * len(messages.COUNTS)


class Outcome:
    """
    What became of one login, which was handed over at `started` (monotonic seconds).

    `dialogue`: the session was asked for its dialogue.
    """

    __slots__ = (
        "accepted",
        "connection",
        "dialogue",
        "login",
        "login_id",
        "notes",
        "refused",
        "served",
        "started",
        "totals",
    )

    def __init__(
        self, connection: Connection, login: decisions.Login, login_id: int, started: float, dialogue: bool
    ) -> None:
        self.connection = connection
        self.login = login
        self.login_id = login_id
        self.started = started
        self.dialogue = dialogue
        self.accepted: dict[str, Any] | None = None
        self.refused: dict[str, Any] | None = None
        self.served = False
        self.totals: dict[str, Any] | None = None
        self.notes = 0

    def follow(self, session_channel: _socket.socket) -> None:
        """Take what comes on the session channel until nothing more may come, or it closes."""
        hub = self.connection.front.hub
        if isinstance(self.connection.transport, TlsTransport):
            self._await_first_words()
        else:
            gevent.sleep(HAND_OVER_S)
        # One watcher for the whole session; a cooperative socket would make and close two.
        watcher = hub.loop.io(session_channel.fileno(), READABLE)
        try:
            while not self._is_whole():
                try:
                    frame, fds = channel.receive(session_channel, MAX_ANSWER_OCTETS)
                except BlockingIOError:
                    hub.wait(watcher)
                    continue
                if fds or not self._take(frame):
                    channel.close_all(fds)
                    raise messages.BadFrame(f"{frame!r} may not come now")
        except channel.ChannelClosed:
            return
        except (messages.BadFrame, channel.ShortOfDescriptors) as error:
            # The second as well: nobody has any descriptor to send us.
            self._log("frame_rejected", "error", sender="session", problem=str(error))
        finally:
            watcher.close()

    def _await_first_words(self) -> None:
        """
        Wait until the session says something to its client, which waits for us; or until there will be none.

        What auth and session have told us comes before that, and is read in one go.
        """
        stream, hub = self.connection.session_stream, self.connection.front.hub
        assert stream
        watcher = hub.loop.io(stream.fileno(), READABLE)
        try:
            hub.wait(watcher)
        finally:
            watcher.close()

    def _is_whole(self) -> bool:
        """Whether nothing more may come. What ends without having served is waited for: see `Session.run`."""
        return self.served and self.totals is not None

    def _take(self, frame: Frame) -> bool:
        """Enter a frame; returns False for one that may not come (now, or so often)."""
        kind, fields = frame.kind, frame.fields
        if kind == messages.ACCEPTED and not (self.accepted or self.served):
            self.accepted = fields
            self.dialogue = self.dialogue or fields["dialogue"] != 0
        elif kind == messages.REFUSED and not (self.refused or self.served):
            self.refused = fields
        elif kind == messages.SERVING and self.accepted and not self.served:
            self.served = True
            self.connection.give_up_stream()
            if self.connection.front.counting:
                source, auth_us = self.accepted["source"], self.accepted["auth_us"]
                self.connection.front.counting.login("accepted", source, auth_us)
        elif kind == messages.NOTED and self._may_note(fields["event"]):
            detail = events.printable(fields["detail"].encode())
            account = self.accepted["account"] if self.accepted else None
            level = events.SESSION_NOTES[fields["event"]]
            self._log(fields["event"], level, account=account, detail=detail)
        elif kind == messages.TOTALS and self.totals is None and len(fields["counts"]) == len(NO_COUNTS):
            self.totals = fields
        else:
            return False
        return True

    def _may_note(self, event: str) -> bool:
        """Whether the session may have this written: one that was taken over must not flood the log."""
        self.notes += 1
        if event in events.DIALOGUE_NOTES:
            return self.dialogue
        if event == "message_removed":
            return self.connection.front.audits and self.notes <= MAX_REMOVAL_NOTES
        return event in events.SESSION_NOTES and (self.dialogue or self.notes <= MAX_NOTES)

    def _log(self, event: str, level: str, **fields: Any) -> None:
        self.connection.log(event, level, login_id=self.login_id, **fields)

    def log_unserved(self) -> dict[str, Any]:
        """Log that there is no session; returns the refusal."""
        refused, fault = self.refused, None
        if refused is None:
            # Nobody refused and nobody served: the process that had the login has ended.
            reason = "session_gone" if self.accepted else "auth_gone"
            if self.totals:
                reason, fault = self.totals["close_reason"], self.totals["fault"] or None
            refused = {"code": "SYS/TEMP", "reason": reason, "user": "", "source": "", "auth_us": 0}
        if self.accepted:
            # Who it was auth has said. What refuses after that may be a session that was taken over.
            refused["user"] = self.accepted["user"]
        self.connection.log_refusal(
            self.login,
            refused,
            login_id=self.login_id,
            auth_ms=_milliseconds(refused["auth_us"]),
            duration_ms=_milliseconds((time.monotonic() - self.started) * 1e6),
            **({"fault": fault} if fault else {}),
        )
        return refused

    def log_session(self) -> None:
        """Write the canonical line of a session."""
        accepted, totals = self.accepted or {}, self.totals or {"close_reason": "fault"}
        counts = dict(zip(messages.COUNTS, totals.get("counts", NO_COUNTS), strict=False))
        fault = totals.get("fault") or (None if self.totals else "the session ended without its totals")
        cache_us, duration_us = counts.pop("cache_us"), (time.monotonic() - self.started) * 1e6
        if self.connection.front.counting:
            self.connection.front.counting.session(totals, counts, cache_us, int(duration_us))
        self._log(
            "session_closed",
            "error" if totals["close_reason"] in ("fault", "unavailable") else "info",
            user=accepted.get("user"),
            account=accepted.get("account"),
            **self.connection.tls_facts(),
            mechanism=self.login.mechanism,
            auth_source=accepted.get("source"),
            auth_ms=_milliseconds(accepted.get("auth_us", 0)),
            cache=totals.get("cache") or None,
            cache_reason=totals.get("cache_reason") or None,
            cache_ms=_milliseconds(cache_us),
            **counts,
            duration_ms=_milliseconds(duration_us),
            close_reason=totals["close_reason"],
            **({"fault": fault} if fault else {}),
        )


def _milliseconds(microseconds: float) -> float:
    return round(microseconds / 1000, 3)
