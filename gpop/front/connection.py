"""
PROCESS (part of the front): one peer, from its greeting until it leaves or its session ends.

Speaks AUTHORIZATION, hands a login to auth together with the client's stream, and from then
on waits on the session channel and nowhere else; it never gives up first. What comes there
is the log's (`session_closed`). It holds a password only from PASS to the hand-over.
"""

from __future__ import annotations

import _socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import gevent

from gpop import events
from gpop.front.limits import UNCOUNTED
from gpop.front.preparation import prepare
from gpop.front.relay import Relay
from gpop.front.transport import READABLE, TlsTransport, Transport
from gpop.pop3 import decisions, wire
from gpop.pop3.authorization import LOGIN_REFUSED, Authorization
from gpop.pop3.commands import Offer, without_secret
from gpop.pop3.languages import Speech
from gpop.privsep import channel, messages
from gpop.privsep.messages import Frame

if TYPE_CHECKING:
    from gpop.front.front import Front

# A frame from auth or a session; only PIPELINED is larger, and a front never receives that.
MAX_ANSWER_OCTETS = 8192
# A peer that is refused this often, or sends so much nonsense, has to connect again.
MAX_REFUSALS = 5
MAX_BAD_COMMANDS = 25
# Nobody waits for the front once a login is handed over: the session answers the client itself. By now it
# has come this far, and what auth and session have said since is read in one go, and not with a wake-up each.
HAND_OVER_S = 0.005
# Nor does any client say so much before it logs in, good or bad; the most that one needs is some 30 lines,
# with a challenge and its response in each of its refused logins.
MAX_LINES = 100
# After so many lines the others have their turn. A login takes three or four.
LINES_IN_A_ROW = 8
# A session notes each kind of thing once or twice; its dialogue, if it was asked for, is as long as it is.
MAX_NOTES = 100

REFUSALS = {
    "AUTH": LOGIN_REFUSED,
    "SYS/TEMP": wire.err("Temporary failure, please try again later", "SYS/TEMP"),
    "SYS/PERM": wire.err("This account can't be served, please ask the administrator", "SYS/PERM"),
    "IN-USE": wire.err("Too many sessions of this account", "IN-USE"),
    "LOGIN-DELAY": wire.err("Too soon after the last login, please try again later", "LOGIN-DELAY"),
}
TOO_MANY_CONNECTIONS = wire.err("Too many connections from your address, please try again later", "SYS/TEMP")
TOO_MANY_LINES = wire.err("Too many commands without a login, please connect again", "SYS/TEMP")
# A login that no account can be meant by (an empty password, say) is refused without asking auth.
REFUSED_HERE = {"user": "", "source": "front"}
NO_COUNTS = [0] * len(messages.COUNTS)


class Outcome:
    """What became of one login: everything that came on its session channel."""

    __slots__ = ("accepted", "dialogue", "notes", "refused", "served", "totals")

    def __init__(self, dialogue: bool) -> None:
        self.dialogue = dialogue  # whether the session was asked for its dialogue
        self.accepted: dict[str, Any] | None = None
        self.refused: dict[str, Any] | None = None
        self.served = False
        self.totals: dict[str, Any] | None = None
        self.notes = 0

    def is_whole(self) -> bool:
        """Whether nothing more may come. What ends without having served is waited for: see `Session.run`."""
        return self.served and self.totals is not None

    def may_note(self, event: str) -> bool:
        """Whether the session may have this written: one that was taken over must not flood the log."""
        self.notes += 1
        if event in events.DIALOGUE_NOTES:
            return self.dialogue
        return event in events.SESSION_NOTES and (self.dialogue or self.notes <= MAX_NOTES)


class Connection:
    """One peer, from its greeting until it leaves or its session ends. It has one timer, for the time-out."""

    __slots__ = (
        "authorization",
        "client",
        "front",
        "greenlet",
        "local",
        "peer",
        "reader",
        "refusals",
        "relay",
        "session_stream",
        "source",
        "timer",
        "transport",
    )

    def __init__(self, front: Front, client: _socket.socket, address: tuple[Any, ...]) -> None:
        self.front = front
        self.client = client
        self.peer = address[:2]
        self.local = client.getsockname()[:2]
        self.reader = wire.LineReader()
        self.authorization = self._authorization(front.offers.in_cleartext(self.peer[0]))
        self.refusals = 0
        self.source = UNCOUNTED  # whose connections this one is counted among
        self.greenlet = gevent.getcurrent()
        self.transport = Transport(front.hub, client)
        # Of a peer inside TLS: our end of its session's stream, and what moves octets between the two.
        self.session_stream: _socket.socket | None = None
        self.relay: Relay | None = None
        self.timer = front.hub.loop.timer(front.settings.login_timeout_s)

    def close(self) -> None:
        """Close the client's stream, and wait for nothing any more."""
        self.transport.forget()
        self.timer.close()
        if self.session_stream:
            self.session_stream.close()
        self.client.close()

    def admit(self) -> bool:
        """
        Count this connection for its address, as soon as that is known; again if it turns out to be another.

        Returns False if the address has as many as it may; this one was told so then, and is closed.
        """
        self.front.addresses.leave(self.source)
        self.source = UNCOUNTED
        source = self.front.addresses.enter(self.peer[0])
        if source is None:
            self._end_by_limit("too_many_connections", self.front.addresses.most, TOO_MANY_CONNECTIONS)
            return False
        self.source = source
        return True

    def _end_by_limit(self, reason: str, limit: int, answer: bytes) -> None:
        times = self.front.limit_times(reason, self.peer[0])
        if times:
            self.log("limit_reached", "warning", reason=reason, limit=limit, times=times)
        self.transport.leave(self.authorization.speech.said(answer))
        channel.close_socket(self.client)

    def speak(self, tls: bool) -> str:
        """
        Greet and answer commands until a session has ended or the peer is gone; returns why.

        `tls`: TLS comes before the greeting (RFC 8314).

        Raises:
            TimeoutError: the peer has not said a whole line, or not taken an answer, for the time-out.
            OSError: the peer is gone.
        """
        if not self.admit():
            return "too_many_connections"
        self._expect_line()
        if tls and not self._begin_tls():
            return "no_tls"
        self.transport.send(self.front.greeting)
        bad_commands = lines = turns = 0
        while True:
            turns += 1
            if turns % LINES_IN_A_ROW == 0:
                # A call that need not wait does not switch: without this a peer that always has more
                # to say, and takes the answers, would be the only one to be served.
                gevent.sleep(0)
            line = self.reader.next_line()
            if line is None:
                octets = self.transport.receive()
                if not octets:
                    return "disconnect"
                self.reader.feed(octets)
                continue
            self._expect_line()
            lines += 1
            if lines > MAX_LINES:
                self._end_by_limit("too_many_commands", MAX_LINES, TOO_MANY_LINES)
                return "too_many_commands"
            if self.front.events.debug:
                octets = without_secret(line, self.reader.sasl_response)
                self.log("command_received", "debug", detail=events.printable(octets))
            decision = self.authorization.handle(line)
            self.reader.sasl_response = self.authorization.awaits_sasl_response
            if isinstance(decision, decisions.Login):
                line = b""  # it may hold the password, and this frame lives as long as the session
                ended = self._login(decision)
                if ended:
                    return ended
            else:
                self._reply(decision.octets)
                bad_commands += decision.octets.startswith(b"-ERR")
                if isinstance(decision, decisions.RefusedLogin):
                    refused = REFUSED_HERE | {"reason": decision.reason, "code": decision.code}
                    self._log_refusal(decision, refused)
                elif isinstance(decision, decisions.StartTls):
                    if not self._begin_tls():
                        return "no_tls"
                elif isinstance(decision, decisions.Close):
                    return "quit"
            if self.refusals >= MAX_REFUSALS:
                return "too_many_refusals"
            if bad_commands >= MAX_BAD_COMMANDS:
                return "too_many_errors"

    def _expect_line(self) -> None:
        """Begin the time-out anew: it counts from one line to the next, whatever comes between."""
        self.timer.stop()
        self.timer.start(self.greenlet.throw, TimeoutError)

    def _begin_tls(self) -> bool:
        """
        Begin TLS, and the conversation anew; returns False if that can't be.

        What was said in cleartext, or has been read already, may be somebody's on the way: it is
        forgotten (RFC 2595 §4, CVE-2011-0411). The time-out goes on counting: no handshake lasts for ever.
        """
        assert self.front.certificates
        self.transport.forget()
        self.transport = transport = TlsTransport(
            self.front.hub, self.client, self.front.certificates.context
        )
        try:
            if not transport.handshake():
                return False
        except ssl.SSLError as error:
            self.log("tls_failed", reason=_reason(error))
            return False
        except ConnectionError:
            self.log("tls_failed", reason="disconnect")
            return False
        except TimeoutError:
            self.log("tls_failed", reason="timeout")
            return False
        self.reader = wire.LineReader()
        self.authorization = self._authorization(self.front.offers.over_tls)
        self._expect_line()
        return True

    def _authorization(self, offer: Offer) -> Authorization:
        """Return the conversation from its beginning, for a peer with this offer."""
        return Authorization(offer, Speech(self.front.languages), prepare)

    def _tls_facts(self) -> dict[str, str | None]:
        """What the log says of TLS."""
        version, cipher = self.transport.facts() if isinstance(self.transport, TlsTransport) else (None, None)
        return {"tls": version, "cipher": cipher}

    def _reply(self, octets: bytes) -> None:
        octets = self.authorization.speech.said(octets)
        if self.front.events.debug:
            self.log("reply_sent", "debug", detail=events.printable(octets.partition(b"\r\n")[0]))
        self.transport.send(octets)

    def log(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write an event of this connection."""
        peer, peer_port = self.peer
        local, local_port = self.local
        write = getattr(self.front.logger, level)
        write(event, peer=peer, peer_port=peer_port, local=local, local_port=local_port, **fields)

    # Logging in

    def _login(self, login: decisions.Login) -> str:
        """Have a login decided and served; returns why that ended the connection, "" if it goes on."""
        # From here on the broker's "drain at once" must not cut it off.
        self.front.before_login.discard(self.greenlet)
        self.timer.stop()
        # Others will hold the stream: what the peer says from now on must not wake this process.
        self.transport.forget()
        self.front.forget(self.client.fileno())
        started = time.monotonic()
        login_id = self.front.new_login_id()
        unread = self.reader.take_rest()
        outcome = Outcome(self.front.events.debug or login.name in self.front.dialogue_users)
        try:
            session_channel = self._hand_over(login_id, login, started, unread, outcome.dialogue)
            try:
                self._follow(login_id, session_channel, outcome)
            finally:
                session_channel.close()
        except OSError:
            pass  # auth is gone, or the process that held the channel: the outcome is what it is
        if outcome.served:
            self._log_session(login_id, login, started, outcome)
            if self.relay:
                self.relay.wait()
            return "session"
        refused = self._log_unserved(login_id, login, started, outcome)
        answer = REFUSALS.get(refused["code"], REFUSALS["SYS/TEMP"])
        if outcome.accepted:
            # RFC 1939 §4 lets a server close here.
            self.transport.leave(self.authorization.speech.said(answer))
            channel.close_socket(self.client)
            return "unserved"
        self._expect_line()
        self._reply(answer)
        if self.front.closing:
            return "shutdown"
        self.front.before_login.add(self.greenlet)
        self.transport.watch()
        self.authorization.login_refused()
        self.reader.feed(unread)
        return ""

    def _hand_over(
        self, login_id: int, login: decisions.Login, started: float, unread: bytes, dialogue: bool
    ) -> _socket.socket:
        """
        Send a login to auth, and forget its password; returns our end of its session channel.

        The unread octets lie in the channel before anybody else holds it.
        """
        session_channel, theirs = channel.pair()
        session_channel.setblocking(False)
        channel.send(session_channel, messages.encode(messages.PIPELINED, octets=unread))
        # A session knows nothing of TLS: it gets an end of a stream, and auth the peer's own for its address.
        relayed = isinstance(self.transport, TlsTransport)
        streams = self._session_stream() if relayed else []
        frame = messages.encode(
            messages.RELAYED_LOGIN if relayed else messages.LOGIN,
            login_id=login_id,
            name=login.name,
            password=login.password,
            mechanism=login.mechanism,
            peer=self.peer[0],
            peer_port=self.peer[1],
            local=self.local[0],
            local_port=self.local[1],
            received_ms=int(started * 1000),
            dialogue=int(dialogue),
            prepared_name=login.prepared_name,
            prepared_password=login.prepared_password,
            utf8=int(self.authorization.speech.utf8),
            language=self.authorization.speech.tag,
        )
        login.password = login.prepared_password = b""
        try:
            fds = [stream.fileno() for stream in (*streams, self.client)]
            channel.send(self.front.login_socket(), frame, [fds[0], theirs.fileno(), *fds[1:]])
        except BaseException:
            session_channel.close()
            raise
        finally:
            theirs.close()
            for stream in streams:
                stream.close()
        return session_channel

    def _session_stream(self) -> list[_socket.socket]:
        """Make the stream of a session to come, with its autologout timer; returns the session's end."""
        if self.session_stream:
            self.session_stream.close()  # that of a login that was refused
        self.session_stream, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        channel.set_autologout(theirs, self.front.settings.autologout_s)
        return [theirs]

    def _follow(self, login_id: int, session_channel: _socket.socket, outcome: Outcome) -> None:
        """Take what comes on the session channel until nothing more may come, or it closes."""
        hub = self.front.hub
        if not isinstance(self.transport, TlsTransport):
            gevent.sleep(HAND_OVER_S)  # inside TLS the session's answer waits for us
        # One watcher for the whole session; a cooperative socket would make and close two.
        watcher = hub.loop.io(session_channel.fileno(), READABLE)
        try:
            while not outcome.is_whole():
                try:
                    frame, _ = channel.receive(session_channel, MAX_ANSWER_OCTETS)
                except BlockingIOError:
                    hub.wait(watcher)
                    continue
                if not self._take(frame, login_id, outcome):
                    raise messages.BadFrame(f"{frame!r} may not come now")
        except channel.ChannelClosed:
            return
        except messages.BadFrame as error:
            self.log("frame_rejected", "error", login_id=login_id, sender="session", problem=str(error))
        finally:
            watcher.close()

    def _take(self, frame: Frame, login_id: int, outcome: Outcome) -> bool:
        """Enter a frame into the outcome; returns False for one that may not come (now, or so often)."""
        kind, fields = frame.kind, frame.fields
        if kind == messages.ACCEPTED and not (outcome.accepted or outcome.served):
            outcome.accepted = fields
        elif kind == messages.REFUSED and not (outcome.refused or outcome.served):
            outcome.refused = fields
        elif kind == messages.SERVING and outcome.accepted and not outcome.served:
            outcome.served = True
            self._give_up_stream()
        elif kind == messages.NOTED and outcome.may_note(fields["event"]):
            detail = events.printable(fields["detail"].encode())
            self.log(fields["event"], events.SESSION_NOTES[fields["event"]], login_id=login_id, detail=detail)
        elif (
            kind == messages.TOTALS
            and outcome.totals is None
            and len(fields["counts"]) == len(messages.COUNTS)
        ):
            outcome.totals = fields
        else:
            return False
        return True

    def _give_up_stream(self) -> None:
        """A session serves: the stream is its alone, or what is inside TLS is."""
        if isinstance(self.transport, TlsTransport) and self.session_stream:
            # A session looks twice before it gives up (`stream`): it is to be first, and to say why.
            autologout_s = self.front.settings.autologout_s
            self.relay = Relay(self.transport, self.session_stream, autologout_s, self.front.log_fault)
            self.relay.start()
        else:
            # O_NONBLOCK and all belong to the open file.
            channel.close_socket(self.client)

    def _log_unserved(
        self, login_id: int, login: decisions.Login, started: float, outcome: Outcome
    ) -> dict[str, Any]:
        """Log that there is no session; returns the refusal."""
        refused, fault = outcome.refused, None
        if refused is None:
            # Nobody refused and nobody served: the process that had the login has ended.
            reason = "session_gone" if outcome.accepted else "auth_gone"
            if outcome.totals:
                reason, fault = outcome.totals["close_reason"], outcome.totals["fault"] or None
            refused = {"code": "SYS/TEMP", "reason": reason, "user": "", "source": "", "auth_us": 0}
        if outcome.accepted:
            # Who it was auth has said. What refuses after that may be a session that was taken over.
            refused["user"] = outcome.accepted["user"]
        self._log_refusal(
            login,
            refused,
            login_id=login_id,
            auth_ms=_milliseconds(refused["auth_us"]),
            duration_ms=_milliseconds((time.monotonic() - started) * 1e6),
            **({"fault": fault} if fault else {}),
        )
        return refused

    def _log_refusal(
        self, login: decisions.Login | decisions.RefusedLogin, refused: dict[str, Any], **fields: Any
    ) -> None:
        """Write the line of a refused login: one, at once, with the peer's address. Of limits' some."""
        self.refusals += 1
        if refused["reason"] in events.LIMIT_REASONS:
            fields["times"] = self.front.limit_times(refused["reason"], self.peer[0])
            if not fields["times"]:
                return
        self.log(
            "login_refused",
            "warning",
            user=refused["user"] or events.printable(login.name),
            mechanism=login.mechanism,
            code=refused["code"],
            reason=refused["reason"],
            source=refused["source"] or None,
            **self._tls_facts(),
            **fields,
        )

    def _log_session(self, login_id: int, login: decisions.Login, started: float, outcome: Outcome) -> None:
        """Write the canonical line of a session."""
        accepted, totals = outcome.accepted or {}, outcome.totals or {"close_reason": "fault"}
        counts = dict(zip(messages.COUNTS, totals.get("counts", NO_COUNTS), strict=False))
        fault = totals.get("fault") or (None if outcome.totals else "the session ended without its totals")
        self.log(
            "session_closed",
            "error" if totals["close_reason"] in ("fault", "unavailable") else "info",
            login_id=login_id,
            user=accepted.get("user"),
            account=accepted.get("account"),
            **self._tls_facts(),
            mechanism=login.mechanism,
            auth_source=accepted.get("source"),
            auth_ms=_milliseconds(accepted.get("auth_us", 0)),
            cache=totals.get("cache") or None,
            cache_reason=totals.get("cache_reason") or None,
            cache_ms=_milliseconds(counts.pop("cache_us")),
            **counts,
            duration_ms=_milliseconds((time.monotonic() - started) * 1e6),
            close_reason=totals["close_reason"],
            **({"fault": fault} if fault else {}),
        )


def _reason(error: ssl.SSLError) -> str:
    """What went wrong in a handshake, in OpenSSL's words: an alert of the peer's, or what does not fit."""
    return (error.reason or "unknown").lower()


def _milliseconds(microseconds: float) -> float:
    return round(microseconds / 1000, 3)
