"""
PROCESS (part of the front): one peer, from its greeting until it leaves or its session ends.

Hears a balancer out, if one comes first, and speaks AUTHORIZATION. It hands a login to auth together with the
client's stream, and from then on waits on the session channel and nowhere else (`outcome`); it never gives
up first. It holds a password only from PASS to the hand-over.
"""

from __future__ import annotations

import _socket
import errno
import ssl
import time
from typing import TYPE_CHECKING, Any

import gevent

from gpop import events
from gpop.accounts.addresses import source_of
from gpop.front import proxies, xclient
from gpop.front.limits import UNCOUNTED
from gpop.front.outcome import Outcome
from gpop.front.preparation import prepare
from gpop.front.proxy_header import Header
from gpop.front.relay import Relay
from gpop.front.transport import TlsTransport, Transport
from gpop.front.turns import TooMany
from gpop.pop3 import decisions, wire
from gpop.pop3.authorization import LOGIN_REFUSED, Authorization
from gpop.pop3.commands import without_secret
from gpop.pop3.languages import Speech
from gpop.privsep import channel, messages

if TYPE_CHECKING:
    from gpop.front.front import Front

# A peer that is refused this often, or sends so much nonsense, has to connect again.
MAX_REFUSALS = 5
MAX_BAD_COMMANDS = 25
# Nor does any client say so much before it logs in, good or bad; the most that one needs is some 30 lines,
# with a challenge and its response in each of its refused logins.
MAX_LINES = 100
# After so many lines the others have their turn. A login takes three or four.
LINES_IN_A_ROW = 8

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
CLIENT_TAKEN = wire.ok("Now speak for that client")
BAD_XCLIENT = wire.err("XCLIENT needs ADDR=, an IP address, and may have PORT=, DESTADDR=, DESTPORT=")


class Connection:
    """
    One peer, from its greeting until it leaves or its session ends. It has one timer, for the time-out.

    Attributes:
        peer, local: the client, and the address it connected to: the ends of the connection, unless a
            proxy has said whom it speaks for.
        proxy: the address of that proxy, else None.
        tls_at_proxy: the version of the TLS between the client and that proxy; None without.
    """

    __slots__ = (
        "authorization",
        "bad_commands",
        "client",
        "front",
        "greenlet",
        "lines",
        "local",
        "peer",
        "proxied",
        "proxy",
        "reader",
        "refusals",
        "relay",
        "session_stream",
        "source",
        "timer",
        "tls_at_proxy",
        "transport",
    )

    def __init__(
        self, front: Front, client: _socket.socket, address: tuple[Any, ...], proxied: bool = False
    ) -> None:
        """`proxied`: it begins with a PROXY header."""
        self.front = front
        self.client = client
        self.peer = address[:2]
        self.local = client.getsockname()[:2]
        self.proxied = proxied
        self.proxy: str | None = None
        self.tls_at_proxy: str | None = None
        self.reader = wire.LineReader()
        self.lines = self.bad_commands = self.refusals = 0
        self.source = UNCOUNTED  # whose connections this one is counted among
        self.greenlet = gevent.getcurrent()
        self.transport = Transport(front.hub, client)
        self.authorization = self._authorization()
        # Of a peer inside TLS: our end of its session's stream, and what moves octets between the two.
        self.session_stream: _socket.socket | None = None
        self.relay: Relay | None = None
        self.timer = front.hub.loop.timer(front.settings.login_timeout_s)

    @property
    def secured_by_proxy(self) -> bool:
        """Whether the client speaks TLS to a trusted proxy: its password did not come readable."""
        return self.tls_at_proxy is not None

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
        reason = self._open(tls)
        turns = 0
        while not reason:
            turns += 1
            if turns % LINES_IN_A_ROW == 0:
                # A call that need not wait does not switch: without this a peer that always has more
                # to say, and takes the answers, would be the only one to be served.
                gevent.sleep(0)
            reason = self._hear()
        return reason

    def _hear(self) -> str:
        """Answer the next line, or wait for more of it; returns why the connection ends, "" if it goes on."""
        line = self.reader.next_line()
        if line is None:
            octets = self.transport.receive()
            self.reader.feed(octets)
            return "" if octets else "disconnect"
        self._expect_line()
        self.lines += 1
        if self.lines > MAX_LINES:
            self._end_by_limit("too_many_commands", MAX_LINES, TOO_MANY_LINES)
            return "too_many_commands"
        if self.front.events.debug:
            octets = without_secret(line, self.reader.sasl_response)
            self.log("command_received", "debug", detail=events.printable(octets))
        decision = self.authorization.handle(line)
        self.reader.sasl_response = self.authorization.awaits_sasl_response
        line = b""  # it may hold the password, and this frame lives as long as the session
        if isinstance(decision, decisions.Login):
            return self._login(decision) or self._ended_by_limit()
        return self._reply_to(decision) or self._ended_by_limit()

    def _ended_by_limit(self) -> str:
        """Return which limit for the whole connection is reached, "" if none."""
        if self.refusals >= MAX_REFUSALS:
            return "too_many_refusals"
        return "too_many_errors" if self.bad_commands >= MAX_BAD_COMMANDS else ""

    def _reply_to(
        self, decision: decisions.Reply | decisions.StartTls | decisions.Close | decisions.AnnouncedClient
    ) -> str:
        """Do what was decided but for a login; returns why the connection ends, "" if it goes on."""
        if isinstance(decision, decisions.AnnouncedClient):
            taken = self._take_client(decision.arguments)
            if taken is None:
                return "too_many_connections"
            decision = taken
        self._reply(decision.octets)
        self.bad_commands += decision.octets.startswith(b"-ERR")
        if isinstance(decision, decisions.RefusedLogin):
            refused = REFUSED_HERE | {"reason": decision.reason, "code": decision.code}
            self.log_refusal(decision, refused)
        elif isinstance(decision, decisions.StartTls):
            return "" if self._begin_tls() else "no_tls"
        elif isinstance(decision, decisions.Close):
            return "quit"
        return ""

    def _open(self, tls: bool) -> str:
        """Do what comes before the first line, up to the greeting; returns why it ended there, "" if not."""
        if self.proxied:
            header = proxies.header_of(self)
            if header is None:
                return "proxy_refused"
            self._speak_for(header)
        if not self.admit():
            return "too_many_connections"
        self._expect_line()
        if tls and not self._begin_tls():
            return "no_tls"
        front = self.front
        self.transport.send(front.xclient_greeting if self._may_announce() else front.greeting)
        return ""

    def _speak_for(self, header: Header) -> None:
        """From here on the peer is the client of whom a proxy speaks, if it speaks of one."""
        if header.peer and header.local:
            self.proxy = self.proxy or self.peer[0]
            self.peer, self.local, self.tls_at_proxy = header.peer, header.local, header.tls
        self.authorization = self._authorization()

    def _take_client(self, arguments: bytes) -> decisions.Reply | None:
        """Carry out XCLIENT, as if that client had connected; None if it may not, and is closed."""
        try:
            self._speak_for(xclient.parse(arguments, self.local))
        except xclient.BadXclient:
            return decisions.Reply(BAD_XCLIENT)
        return decisions.Reply(CLIENT_TAKEN) if self.admit() else None

    def _may_announce(self) -> bool:
        """Whether the peer, as it is known now, may say with XCLIENT for whom it speaks."""
        if self.proxied and self.proxy is None:
            return False  # a balancer that named nobody: whose octets these are it has not said
        return self.peer[0] in self.front.xclient_hosts

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
        self.authorization = self._authorization()
        self._expect_line()
        return True

    def _authorization(self) -> Authorization:
        """Return the conversation from its beginning, for the peer and its TLS as they are known now."""
        offers, tls = self.front.offers, self.secured_by_proxy or isinstance(self.transport, TlsTransport)
        offer = offers.over_tls if tls else offers.in_cleartext(self.peer[0])
        return Authorization(offer, Speech(self.front.languages), prepare, self._may_announce())

    def tls_facts(self) -> dict[str, str | None]:
        """What the log says of TLS: of our own, or else of what a proxy has told of."""
        if isinstance(self.transport, TlsTransport):
            version, cipher = self.transport.facts()
        else:
            version, cipher = f"{self.tls_at_proxy} (proxy)" if self.tls_at_proxy else None, None
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
        if self.proxy:
            fields["proxy"] = self.proxy
        write(event, peer=peer, peer_port=peer_port, local=local, local_port=local_port, **fields)

    # Logging in

    def _login(self, login: decisions.Login) -> str:
        """Have a login decided and served; returns why that ended the connection, "" if it goes on."""
        # From here on the broker's "drain at once" must not cut it off.
        self.front.before_login.pop(self.greenlet, None)
        self.timer.stop()
        # Others will hold the stream: what the peer says from now on must not wake this process.
        self.transport.forget()
        self.front.forget(self.client.fileno())
        started = time.monotonic()
        login_id = self.front.new_login_id()
        unread = self.reader.take_rest()
        dialogue = self.front.events.debug
        outcome = Outcome(self, login, login_id, started, dialogue)
        try:
            session_channel = self._hand_over(login_id, login, started, unread, dialogue)
            try:
                outcome.follow(session_channel)
            finally:
                # Whatever the other end has put into it must not be waited for.
                channel.close_all([session_channel.detach()])
        except TooMany:
            outcome.refused = REFUSED_HERE | {"reason": "too_many_logins", "code": "SYS/TEMP", "auth_us": 0}
        except OSError as error:
            # Auth is gone, or the process that held the channel: the outcome is what it is.
            if error.errno == errno.EMFILE:
                self.front.shortage.lost("peer", "a login")
        if outcome.served:
            self.front.known.note(source_of(self.peer[0]), login.name)
            outcome.log_session()
            if self.relay:
                self.relay.wait()
            return "session"
        refused = outcome.log_unserved()
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
        self.front.before_login[self.greenlet] = None
        self.transport.watch()
        self.authorization.login_refused()
        self.reader.feed(unread)
        return ""

    def _hand_over(
        self, login_id: int, login: decisions.Login, started: float, unread: bytes, dialogue: bool
    ) -> _socket.socket:
        """
        Send a login to auth, and forget its password; returns our end of its session channel.

        The unread octets, if there are any, lie in the channel before anybody else holds it.
        """
        session_channel, theirs = channel.pair()
        session_channel.setblocking(False)
        if unread:
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
            pipelined=int(unread != b""),
            prepared_name=login.prepared_name,
            prepared_password=login.prepared_password,
            utf8=int(self.authorization.speech.utf8),
            language=self.authorization.speech.tag,
        )
        login.password = login.prepared_password = b""
        try:
            fds = [stream.fileno() for stream in (*streams, self.client)]
            self.front.send_login(frame, [fds[0], theirs.fileno(), *fds[1:]], self.peer[0], login.name)
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

    def give_up_stream(self) -> None:
        """A session serves: the stream is its alone, or what is inside TLS is."""
        if isinstance(self.transport, TlsTransport) and self.session_stream:
            # A session looks twice before it gives up (`stream`): it is to be first, and to say why.
            autologout_s = self.front.settings.autologout_s
            self.relay = Relay(self.transport, self.session_stream, autologout_s, self.front.log_fault)
            self.relay.start()
        else:
            # O_NONBLOCK and all belong to the open file.
            channel.close_socket(self.client)

    def log_refusal(
        self, login: decisions.Login | decisions.RefusedLogin, refused: dict[str, Any], **fields: Any
    ) -> None:
        """Write the line of a refused login: one, at once, with the peer's address. Of limits' some."""
        self.refusals += 1
        if self.front.counting:
            self.front.counting.login(refused["code"], refused["source"], refused.get("auth_us", 0))
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
            **self.tls_facts(),
            **fields,
        )


def _reason(error: ssl.SSLError) -> str:
    """What went wrong in a handshake, in OpenSSL's words: an alert of the peer's, or what does not fit."""
    return (error.reason or "unknown").lower()
