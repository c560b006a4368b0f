"""
PROCESS: a front. The service user, jailed in an empty directory; gevent; many peers at once.

Accepts connections and gives each a greenlet (`connection`), obeys the broker, and ends when
it was told to drain and the last connection has. No mail ever passes through here.

Only this folder and `metrics` import gevent. structlog is asked for here, for all of the front.
"""

from __future__ import annotations

import _socket
import errno
import json
import os
import pwd
import resource
import select
import socket
import sys
import time
from typing import Any

import gevent
import gevent.event
import gevent.server
import gevent.socket

from gpop import events, languages
from gpop.accounts.addresses import Networks, source_of
from gpop.accounts.known import Known
from gpop.certificates import SOON_DAYS, Certificates, Unusable, load
from gpop.config import FrontSettings
from gpop.front.connection import Connection
from gpop.front.counting import Counting
from gpop.front.ebb import Ebb
from gpop.front.limits import Addresses, LineRate, LogGate
from gpop.front.offers import Offers
from gpop.front.outcome import MAX_ANSWER_OCTETS
from gpop.front.proxies import MAX_REFUSAL_LINES
from gpop.front.transport import SEND_FLAGS
from gpop.front.turns import Turns
from gpop.pop3 import wire
from gpop.pop3.authorization import greeting
from gpop.pop3.commands import policies
from gpop.pop3.languages import Languages
from gpop.privsep import channel, credentials, messages
from gpop.privsep.confinement import Confinement
from gpop.privsep.shortage import Shortage, left_for_connections
from gpop.programs import read_settings
from gpop.tally import Tally

CROWDED = wire.err("Too many connections, please try again later", "SYS/TEMP")


class Displaced(Exception):
    """This peer has been connected without a login for longest, and another one needs its place."""


# With no descriptor free, so long nobody is accepted.
PAUSE_S = 0.1
# Greenlets that are kept for connections to come; what they hold is a few KiB each.
MAX_IDLE_GREENLETS = 16
# Of the kernel's, for some 40 logins that auth has not taken yet.
LOGIN_SOCKET_OCTETS = 16 * 1024


# An inherited listening socket: the address as the config has it, whether TLS begins at once, the descriptor.
Listening = tuple[str, bool, int]


class Listener(gevent.server.StreamServer):
    """
    Accepts, and makes plain sockets of what it accepts: `connection` waits for them itself.

    `proxied`: it listens at an address of server.proxy_listen. `tls`: TLS comes before the greeting.
    """

    # With other fronts on the same socket, take one at a time and leave them the rest.
    max_accept = 1
    proxied = tls = False
    shortage: Shortage

    def do_read(self) -> tuple[_socket.socket, tuple[Any, ...], bool, bool] | None:
        """Accept one connection; None if another front was faster."""
        try:
            fd, address = self.socket._accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            self.shortage.lost("peer", "a connection")
            self._pause()
            return None
        return _socket.socket(self.family, _socket.SOCK_STREAM, 0, fd), address, self.proxied, self.tls

    def _pause(self) -> None:
        """Look again in a moment. So does gevent after an error, but with a traceback amid the log."""
        self.stop_accepting()
        self._timer = self.loop.timer(PAUSE_S)
        self._timer.start(self._start_accepting_if_started)


class Front:
    """The process: its listening sockets, its connections, its ways to the broker and to auth."""

    def __init__(
        self, settings: FrontSettings, control_fd: int, listening: list[Listening], log: events.Log
    ) -> None:
        self.settings = settings
        self.listening = listening  # until they are used
        self.events = log
        self.logger = events.structured(log)
        self.hub = gevent.get_hub()
        # The loop's own epoll set, see `forget`.
        self._epoll = select.epoll.fromfd(os.dup(self.hub.loop.fileno()))
        control = socket.socket(fileno=control_fd)
        self.control = gevent.socket.socket(control.family, control.type, 0, control.detach())
        self.auth: gevent.socket.socket | None = None
        # Taken while a login is sent: where auth is slow its socket is full, and one greenlet may wait.
        self._turns = Turns(self.hub, settings.max_connections)
        self.known = Known(os.urandom(32))
        self.servers: list[Listener] = []
        self.before_login: dict[gevent.Greenlet, None] = {}  # who has been there for longest is the first
        self.idle: list[gevent.Greenlet] = []
        self.connections = 0
        self.ebb = Ebb(self.hub)
        self.counting = Counting(log.tally) if log.tally else None
        # Who speaks for others is not counted as long as it has not said for whom.
        uncounted = [*settings.trusted_networks, *settings.xclient_networks]
        self.addresses = Addresses(settings.max_connections_per_address, uncounted)
        self.gate = LogGate()
        self.shortage = Shortage(log)
        self.descriptor_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.first_spared = left_for_connections(self.descriptor_limit)
        self.most = self.room = settings.max_connections  # `listen` knows how many descriptors there are
        self.draining = False
        self.closing = False  # peers before login are closed
        self.ended = gevent.event.Event()
        self.audits = settings.log_removals  # whether sessions have each removed message logged
        self.certificates = self._load_certificates()
        announced = policies(settings.login_delay_s, settings.expire_retrieved_days)
        with_tls = self.certificates is not None
        self.offers = Offers(settings.cleartext, settings.trusted_networks, with_tls, announced)
        text = f"{settings.hostname or socket.gethostname()} POP3 server ready"
        self.greeting, self.xclient_greeting = greeting(text), greeting(text, xclient=True)
        self.languages = Languages(languages.FILES, settings.language)
        self.proxies = Networks(settings.proxy_networks)
        self.xclient_hosts = Networks(settings.xclient_networks)
        self.refusal_lines = LineRate(MAX_REFUSAL_LINES)
        # Unique among all fronts and restarts, and below 2**53: a number to every reader of JSON.
        self.last_login_id = int.from_bytes(os.urandom(4), "big") << 20

    def new_login_id(self) -> int:
        """Return a number for a login that no other has."""
        self.last_login_id += 1
        return self.last_login_id

    def send_login(self, frame: bytes, fds: list[int], peer: str, name: bytes) -> None:
        """
        Send a login to auth, after those that wait for auth to take theirs and go before this one.

        Raises:
            TooMany: others wait already, and too many of them.
            OSError: there is no auth at the moment, or it has gone.
        """
        if not self._turns.take():
            source = source_of(peer)
            self._turns.wait(source, name, self.known.has(source, name))
        try:
            if self.auth is None:
                raise ConnectionError("auth is being started again")
            channel.send(self.auth, frame, fds)
        finally:
            self._turns.give()

    def _load_certificates(self) -> Certificates | None:
        """
        Load the certificates, while this is root still, and say in the log how long they last.

        Raises:
            Unusable: one can't be used.
        """
        settings, now, found = self.settings, time.time(), []
        for chain_file, key_file in settings.tls_certificates:
            certificate = load(chain_file, key_file, settings.tls_min_version, settings.tls_ciphers)
            days = certificate.days_left(now)
            write = self.logger.warning if days < SOON_DAYS else self.logger.info
            fields = {"names": certificate.names, "not_after": certificate.not_after, "days": days}
            write("certificate_loaded", path=chain_file, **fields)
            found.append(certificate)
        return Certificates(found) if found else None

    def log_fault(self, error: Exception) -> None:
        """Log an error of our own, which ended one connection."""
        self.logger.error("process_fault", problem=events.place(error))

    def listen(self) -> None:
        """Accept on the inherited listening sockets."""
        listening, self.listening = self.listening, []
        for address, tls, fd in listening:
            plain = socket.socket(fileno=fd)
            if not plain.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._serve_one(plain, address, tls)
                continue
            listener = gevent.socket.socket(plain.family, plain.type, plain.proto, plain.detach())
            server = Listener(listener, self._accepted, spawn=self._spawn)
            server.shortage = self.shortage
            server.proxied, server.tls = address in self.settings.proxy_listen, tls
            server.start()
            self.servers.append(server)
        first_free = os.dup(self._epoll.fileno())
        os.close(first_free)
        self.most = self.room = max(1, min(self.most, self.first_spared - first_free))
        if self.counting:
            self.counting.listens(len(self.servers))
        self.logger.info("front_started", pid=os.getpid())

    def _serve_one(self, client: socket.socket, address: str, tls: bool) -> None:
        """Serve a connection that somebody else, inetd, has accepted; there will be no other one."""
        plain = _socket.socket(client.family, _socket.SOCK_STREAM, 0, client.detach())
        try:
            peer = plain.getpeername()
        except OSError:
            plain.close()  # it has gone already
        else:
            self._spawn(self._accepted, plain, peer, address in self.settings.proxy_listen, tls)
        self.drain(at_once=False)

    def _spawn(self, *task: Any) -> None:
        """
        Serve a connection in a greenlet that is idle, or in a new one.

        For each new one CPython asks the kernel for a piece of memory, and gives it back at its end.
        """
        if self.idle:
            self.hub.loop.run_callback(self.idle.pop().switch, task)
        else:
            gevent.spawn_raw(self._work, task)

    def _work(self, task: tuple[Any, ...]) -> None:
        """A greenlet's life: one connection after the other, unless enough others wait for one."""
        while True:
            function, *arguments = task
            function(*arguments)
            if len(self.idle) >= MAX_IDLE_GREENLETS or self.draining:
                return
            task, arguments = (), []  # what was served must not be held until somebody else comes
            self.idle.append(gevent.getcurrent())
            task = self.hub.switch()

    def forget(self, fd: int) -> None:
        """
        Take a stream, which others will hold too, out of the loop's epoll set; its watcher is closed already.

        libev leaves that to the kernel, which only does it when the last copy is closed: until then
        whatever the peer says to its session would wake the front too, and once that has closed its own
        copy libev knows no other help than a new set, with every descriptor of this process entered anew.
        """
        try:
            self._epoll.unregister(fd)
        except OSError:
            return  # it was not in it

    def _accepted(self, client: _socket.socket, address: tuple[Any, ...], proxied: bool, tls: bool) -> None:
        """Serve one connection, in a greenlet of its own: the one outermost handler for it."""
        if self._is_full(client.fileno()) and not self._make_room(address[0], proxied):
            self._turn_away(client)
            return
        self.connections += 1
        self.ebb.note(self.connections)
        if self.counting:
            self.counting.connected(self.connections)
        this = gevent.getcurrent()
        self.before_login[this] = None
        connection = None
        reason = "disconnect"
        try:
            connection = Connection(self, client, address, proxied)
            reason = connection.speak(tls)
        except TimeoutError:
            reason = "timeout"
        except Displaced:
            reason = "displaced"
            if connection:
                connection.transport.leave(CROWDED)
        except OSError:
            pass  # the peer is gone
        except Exception as error:
            reason = "fault"
            self.log_fault(error)
        finally:
            if connection:
                connection.close()
            client.close()
            self.before_login.pop(this, None)
            self.connections -= 1
            self.ebb.note(self.connections)
            if self.counting:
                self.counting.disconnected(self.connections)
            if connection:
                self.addresses.leave(connection.source)
            if self.draining and not self.connections:
                self.ended.set()
        if connection and reason != "session" and self.events.debug:
            connection.log("connection_closed", "debug", close_reason=reason)

    def _is_full(self, fd: int) -> bool:
        """
        Whether this connection, which has the descriptor `fd`, is one more than there is room for.

        Each has one descriptor, and with a session inside TLS some more. The kernel gives the lowest number
        that is free: with a spared one all others are in use. After that it gives those of who was closed, so
        it is remembered how many were too many.
        """
        if fd >= self.first_spared:
            self.room = min(self.most, self.connections)
        elif not self.before_login or self.connections < self.room // 2:
            self.room = self.most
        return self.connections >= self.room

    def _make_room(self, peer: str, proxied: bool) -> bool:
        """
        At the limit: have the peer closed that has been without a login for longest; False if there is none.

        Else whoever holds enough idle connections, from enough addresses, would keep everybody else out.
        A mail program logs in at once. Who would be turned away for its address takes nobody's place.
        """
        if not self.before_login or (not proxied and self.addresses.is_full(peer)):
            return False
        self._log_exhausted("longest_without_login_closed")
        # Not from here: a greenlet that another one throws into would not come back to that one.
        self.hub.loop.run_callback(self._displace)
        return True

    def _displace(self) -> None:
        for greenlet in self.before_login:
            # Once: it says goodbye, and may take a moment for that.
            del self.before_login[greenlet]
            greenlet.throw(Displaced)
            return

    def _log_exhausted(self, reason: str) -> None:
        times = self.gate.passes(reason, b"", time.monotonic())
        if times:
            most = self.settings.max_connections
            fields = {"max_connections": most, "reason": reason, "times": times}
            if self.connections < most:  # by what LimitNOFILE lets it have
                fields |= {"connections": self.connections, "limit": self.descriptor_limit}
            self.logger.warning("connections_exhausted", **fields)

    def _turn_away(self, client: _socket.socket) -> None:
        """At the limit: say so and close."""
        self._log_exhausted("turned_away")
        try:
            client.send(CROWDED, SEND_FLAGS)
        except OSError:
            return
        finally:
            client.close()

    def limit_times(self, reason: str, peer: str) -> int:
        """Return for how many times that a limit held off `peer` a line is due in the log; 0 for none now."""
        return self.gate.passes(reason, source_of(peer), time.monotonic())

    def obey(self) -> None:
        """Do what the broker says, until it says drain or is gone."""
        channel.send(self.control, messages.encode(messages.READY))
        while True:
            try:
                frame, fds = channel.receive(self.control, MAX_ANSWER_OCTETS)
            except channel.ShortOfDescriptors as short:
                channel.send(self.control, self.shortage.lost_from_broker(short.octets))
                continue
            except (channel.ChannelClosed, OSError, messages.BadFrame):
                # Without a broker no login can be served.
                self.drain(at_once=True)
                return
            if frame.kind == messages.ATTACH:
                self._attach(fds[0])
            elif frame.kind == messages.LOG:
                self.events.replace(fds[0])
            elif frame.kind == messages.DRAIN:
                self.drain(at_once=bool(frame.fields["at_once"]))
            elif frame.kind == messages.ALIVE:
                if self.events.tally:
                    self.events.tally.answer(time.monotonic())
                channel.send(self.control, messages.encode(messages.ALIVE))

    def _attach(self, fd: int) -> None:
        """Take over a way to auth. The first one says that all the others are ready, too: accept."""
        if self.auth is not None:
            self.auth.close()
        plain = socket.socket(fileno=fd)
        # What lies in it goes before anybody's turn.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOGIN_SOCKET_OCTETS)
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
        if self.counting:
            self.counting.listens(0)
        # What was accepted in this very turn of the loop has not been counted yet.
        gevent.sleep(0)
        if at_once:
            gevent.killall(list(self.before_login), block=False)
        if not self.connections:
            self.ended.set()


def _json_text(value: Any) -> str:
    """As `json_text.json_text`, in half the time. DEL is a control character to terminals only."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def _options(arguments: list[str]) -> tuple[dict[str, str], list[Listening]]:
    """Split `--name=value` from the listening sockets, `tls:address=descriptor` or `plain:...`."""
    named = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    listening = []
    for argument in arguments:
        if not argument.startswith("--"):
            kind, _, rest = argument.partition(":")
            address, _, fd = rest.rpartition("=")
            listening.append((address, kind == "tls", int(fd)))
    return named, listening


def main(arguments: list[str]) -> int:
    """Run as a front, started by the broker (`supervision.Generation.start_process`)."""
    options, listening = _options(arguments)
    settings = FrontSettings(**read_settings(int(options["settings-fd"])))
    log = events.log_of("front", options, _json_text)
    if "tally-fd" in options:
        log.tally = Tally(int(options["tally-fd"]), "front")
    try:
        _run(settings, int(options["control-fd"]), listening, log)
    except (credentials.CredentialsRefused, Unusable, KeyError, OSError) as error:
        log.write("process_fault", "error", problem=f"the front can't start: {error}")
        return 1
    return 0


def _run(settings: FrontSettings, control_fd: int, listening: list[Listening], log: events.Log) -> None:
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
    Confinement(settings.service_calls).enter()
    obeying = gevent.spawn(front.obey)
    front.ended.wait()
    obeying.kill()
