"""
PROCESS: a front. The service user, jailed in an empty directory; gevent; many peers at once.

Accepts connections, speaks AUTHORIZATION cooperatively, and hands each login to auth
together with the client's stream. From then on its greenlet waits on the session channel
and nowhere else, and never gives up first; what comes there is the log's
(`session_closed`). It holds passwords only from PASS to the hand-over, and no mail ever.

Only this module imports gevent, and only it uses structlog.
"""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import pwd
import resource
import socket
import sys
import time
from typing import Any

import gevent
import gevent.event
import gevent.server
import gevent.socket

from gpop import events
from gpop.config import FrontSettings
from gpop.pop3 import decisions, wire
from gpop.pop3.authorization import LOGIN_REFUSED, Authorization, greeting
from gpop.pop3.commands import without_secret
from gpop.privsep import channel, credentials, messages
from gpop.privsep.messages import Frame

# Commands before login are short. What is read beyond a login must fit a PIPELINED frame.
RECEIVE_OCTETS = 4096
# A frame from auth or a session; only PIPELINED is larger, and a front never receives that.
MAX_ANSWER_OCTETS = 8192
READABLE = 1  # what libev calls EV_READ
# A peer that is refused this often, or sends so much nonsense, has to connect again.
MAX_REFUSALS = 5
MAX_BAD_COMMANDS = 25
# After so many lines the others have their turn. A login takes three or four.
LINES_IN_A_ROW = 8
# A session notes each kind of thing once or twice; its dialogue, if it was asked for, is as long as it is.
MAX_NOTES = 100
# A peer that is left has this long to take the answer and close.
GOODBYE_TIMEOUT_S = 2.0
MAX_GOODBYE_READS = 16

REFUSALS = {
    "AUTH": LOGIN_REFUSED,
    "SYS/TEMP": wire.err("Temporary failure, please try again later", "SYS/TEMP"),
    "SYS/PERM": wire.err("This account can't be served, please ask the administrator", "SYS/PERM"),
    "IN-USE": wire.err("Too many sessions of this account", "IN-USE"),
}
# A login that no account can be meant by (an empty password, say) is refused without asking auth.
REFUSED_HERE = {"code": "AUTH", "user": "", "source": "front"}
NO_COUNTS = [0] * len(messages.COUNTS)
CROWDED = wire.err("Too many connections, please try again later", "SYS/TEMP")


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

    def may_note(self, event: str) -> bool:
        """Whether the session may have this written: one that was taken over must not flood the log."""
        self.notes += 1
        if event in events.DIALOGUE_NOTES:
            return self.dialogue
        return event in events.SESSION_NOTES and (self.dialogue or self.notes <= MAX_NOTES)


class Connection:
    """One peer, from its greeting until it leaves or its session ends."""

    __slots__ = ("authorization", "client", "front", "greenlet", "local", "peer", "reader", "refusals")

    def __init__(self, front: Front, client: gevent.socket.socket, address: tuple[Any, ...]) -> None:
        self.front = front
        self.client = client
        self.peer = address[:2]
        self.local = client.getsockname()[:2]
        self.reader = wire.LineReader()
        self.authorization = Authorization()
        self.refusals = 0

    def speak(self) -> str:
        """Greet and answer commands until a session has ended or the peer is gone; returns why."""
        self.client.sendall(self.front.greeting)
        bad_commands = lines = 0
        deadline = time.monotonic() + self.front.settings.login_timeout_s
        while True:
            lines += 1
            if lines % LINES_IN_A_ROW == 0:
                # A call that need not wait does not switch: without this a peer that always has more
                # to say, and takes the answers, would be the only one to be served.
                gevent.sleep(0)
            line = self.reader.next_line()
            if line is None:
                octets = self._receive(deadline)
                if not octets:
                    return "disconnect"
                self.reader.feed(octets)
                continue
            deadline = time.monotonic() + self.front.settings.login_timeout_s
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
                    self._log_refusal(decision, REFUSED_HERE | {"reason": decision.reason})
                elif isinstance(decision, decisions.Close):
                    return "quit"
            if self.refusals >= MAX_REFUSALS:
                return "too_many_refusals"
            if bad_commands >= MAX_BAD_COMMANDS:
                return "too_many_errors"

    def _receive(self, deadline: float) -> bytes:
        self.client.settimeout(max(deadline - time.monotonic(), 0.001))
        octets: bytes = self.client.recv(RECEIVE_OCTETS)
        return octets

    def _reply(self, octets: bytes) -> None:
        if self.front.events.debug:
            self.log("reply_sent", "debug", detail=events.printable(octets.partition(b"\r\n")[0]))
        self.client.sendall(octets)

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
        self.front.before_login.discard(gevent.getcurrent())
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
            return "session"
        refused = self._log_unserved(login_id, login, started, outcome)
        answer = REFUSALS.get(refused["code"], REFUSALS["SYS/TEMP"])
        if outcome.accepted:
            self._leave(answer)
            return "unserved"
        self._reply(answer)
        if self.front.closing:
            return "shutdown"
        self.front.before_login.add(gevent.getcurrent())
        self.authorization.login_refused()
        self.reader.feed(unread)
        return ""

    def _leave(self, answer: bytes) -> None:
        """
        Send a last answer and close, without waiting for anybody.

        A session may still hold the client's stream, or have held it, and O_NONBLOCK and
        SO_LINGER belong to the stream: after a session that was taken over any other call
        could stop this whole process. RFC 1939 §4 lets a server close here.
        """
        with contextlib.suppress(OSError):
            self.client.settimeout(GOODBYE_TIMEOUT_S)
            self.client.send(answer, _socket.MSG_DONTWAIT)
            # Octets that were never read would make a reset of the close, which may destroy the answer.
            self.client.shutdown(_socket.SHUT_WR)
            for _ in range(MAX_GOODBYE_READS):
                if not self.client.recv(RECEIVE_OCTETS, _socket.MSG_DONTWAIT):
                    break
        self._close_stream()

    def _close_stream(self) -> None:
        self.client.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, channel.NO_LINGER)
        self.client.close()

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
        frame = messages.encode(
            messages.LOGIN,
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
        )
        login.password = b""
        try:
            channel.send(self.front.login_socket(), frame, [self.client.fileno(), theirs.fileno()])
        except BaseException:
            session_channel.close()
            raise
        finally:
            theirs.close()
        return session_channel

    def _follow(self, login_id: int, session_channel: _socket.socket, outcome: Outcome) -> None:
        """Take what comes on the session channel until it closes."""
        # One watcher for the whole session; a cooperative socket would make and close two.
        hub = gevent.get_hub()
        watcher = hub.loop.io(session_channel.fileno(), READABLE)
        try:
            while True:
                hub.wait(watcher)
                frame, _ = channel.receive(session_channel, MAX_ANSWER_OCTETS)
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
            # The stream is the session's alone now: O_NONBLOCK and all belong to the open file.
            self._close_stream()
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
        """Write the line of a refused login: one, at once, with the peer's address."""
        self.refusals += 1
        self.log(
            "login_refused",
            "warning",
            user=refused["user"] or events.printable(login.name),
            mechanism=login.mechanism,
            code=refused["code"],
            reason=refused["reason"],
            source=refused["source"] or None,
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
            tls=None,
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


class Front:
    """The process: its listening sockets, its connections, its ways to the broker and to auth."""

    def __init__(
        self, settings: FrontSettings, control_fd: int, listening: list[int], log: events.Log
    ) -> None:
        self.settings = settings
        self.listening = listening  # inherited sockets, until they are used
        self.events = log
        self.logger = events.structured(log)
        control = socket.socket(fileno=control_fd)
        self.control = gevent.socket.socket(control.family, control.type, 0, control.detach())
        self.auth: gevent.socket.socket | None = None
        self.servers: list[gevent.server.StreamServer] = []
        self.before_login: set[gevent.Greenlet] = set()
        self.connections = 0
        self.crowded = False
        self.draining = False
        self.closing = False  # peers before login are closed
        self.ended = gevent.event.Event()
        self.dialogue_users = {os.fsencode(name) for name in settings.log_dialogue_users}
        self.greeting = greeting(f"{settings.hostname or socket.gethostname()} POP3 server ready")
        # Unique among all fronts and restarts, and below 2**53: a number to every reader of JSON.
        self.last_login_id = int.from_bytes(os.urandom(4), "big") << 20

    def new_login_id(self) -> int:
        """Return a number for a login that no other has."""
        self.last_login_id += 1
        return self.last_login_id

    def login_socket(self) -> gevent.socket.socket:
        """
        Return the socket on which auth takes logins.

        Raises:
            ConnectionError: there is no auth at the moment.
        """
        if self.auth is None:
            raise ConnectionError("auth is being started again")
        return self.auth

    def listen(self) -> None:
        """Accept on the inherited listening sockets."""
        fds, self.listening = self.listening, []
        for fd in fds:
            plain = socket.socket(fileno=fd)
            listener = gevent.socket.socket(plain.family, plain.type, plain.proto, plain.detach())
            server = gevent.server.StreamServer(listener, self._accepted)
            # With other fronts on the same socket, take one at a time and leave them the rest.
            server.max_accept = 1
            server.start()
            self.servers.append(server)
        self.logger.info("front_started", pid=os.getpid())

    def _accepted(self, client: gevent.socket.socket, address: tuple[Any, ...]) -> None:
        """Serve one connection, in a greenlet of its own: the one outermost handler for it."""
        if self.connections >= self.settings.max_connections:
            self._turn_away(client)
            return
        self.connections += 1
        this = gevent.getcurrent()
        self.before_login.add(this)
        connection = None
        reason = "disconnect"
        try:
            connection = Connection(self, client, address)
            reason = connection.speak()
        except TimeoutError:
            reason = "timeout"
        except OSError:
            pass  # the peer is gone
        except Exception as error:
            reason = "fault"
            self.logger.error("process_fault", problem=events.place(error))
        finally:
            client.close()
            self.before_login.discard(this)
            self.connections -= 1
            self.crowded = False
            if self.draining and not self.connections:
                self.ended.set()
        if connection and reason != "session" and self.events.debug:
            connection.log("connection_closed", "debug", close_reason=reason)

    def _turn_away(self, client: gevent.socket.socket) -> None:
        """At the limit: say so and close. Logged once until there is room again."""
        if not self.crowded:
            self.crowded = True
            self.logger.warning("connections_exhausted", max_connections=self.settings.max_connections)
        try:
            client.settimeout(1)
            client.send(CROWDED)
        except OSError:
            return
        finally:
            client.close()

    def obey(self) -> None:
        """Do what the broker says, until it says drain or is gone."""
        channel.send(self.control, messages.encode(messages.READY))
        while True:
            try:
                frame, fds = channel.receive(self.control, MAX_ANSWER_OCTETS)
            except (channel.ChannelClosed, OSError, messages.BadFrame):
                # Without a broker no login can be served.
                self.drain(at_once=True)
                return
            if frame.kind == messages.ATTACH:
                self._attach(fds[0])
            elif frame.kind == messages.DRAIN:
                self.drain(at_once=bool(frame.fields["at_once"]))

    def _attach(self, fd: int) -> None:
        """Take over a way to auth. The first one says that all the others are ready, too: accept."""
        if self.auth is not None:
            self.auth.close()
        plain = socket.socket(fileno=fd)
        self.auth = gevent.socket.socket(plain.family, plain.type, 0, plain.detach())
        if self.listening and not self.draining:
            self.listen()

    def drain(self, at_once: bool) -> None:
        """Accept no more; end when the last connection has. `at_once`: peers before login are closed."""
        if not self.draining:
            self.logger.info("front_draining", connections=self.connections)
        self.draining = True
        self.closing = self.closing or at_once
        for server in self.servers:
            server.close()
        self.servers = []
        # What was accepted in this very turn of the loop has not been counted yet.
        gevent.sleep(0)
        if at_once:
            gevent.killall(list(self.before_login), block=False)
        if not self.connections:
            self.ended.set()


def _milliseconds(microseconds: float) -> float:
    return round(microseconds / 1000, 3)


def _options(arguments: list[str]) -> tuple[dict[str, str], list[int]]:
    """Split `--name=value` from the descriptors of the listening sockets."""
    named = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    return named, [int(argument) for argument in arguments if not argument.startswith("--")]


def main(arguments: list[str]) -> int:
    """Run as a front, started by the broker (`supervision.Generation.start_process`)."""
    options, listening = _options(arguments)
    with open(int(options["settings-fd"]), "rb") as file:
        settings = FrontSettings(**json.load(file))
    log = events.Log(int(options["log-fd"]), "front", "console" in options, "debug" in options)
    try:
        _run(settings, int(options["control-fd"]), listening, log)
    except (credentials.CredentialsRefused, KeyError, OSError) as error:
        log.write("process_fault", "error", problem=f"the front can't start: {error}")
        return 1
    return 0


def _run(settings: FrontSettings, control_fd: int, listening: list[int], log: events.Log) -> None:
    """Become the service user, and be a front until the broker wants no more of it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The hub opens what it needs (epoll, an eventfd) while there still is a file system.
    gevent.get_hub()
    front = Front(settings, control_fd, listening, log)
    if os.geteuid() == 0:
        user = pwd.getpwnam(settings.user)
        credentials.become_service(user.pw_uid, user.pw_gid, os.path.join(settings.run_dir, "empty"))
    sys.path.clear()
    obeying = gevent.spawn(front.obey)
    front.ended.wait()
    obeying.kill()
