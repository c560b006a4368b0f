"""
PROCESS: metrics. The service user, jailed in an empty directory; answers Prometheus and health checks.

Reads the tallies of the other processes (`exposition`) when it is asked, and has them say that they are at
work when somebody wants to know that. Nobody waits for it: if it hangs or dies, no login is slower for it;
if it dies, the broker starts another. A connection has few seconds and few octets (`http`), so none hangs it.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import gevent
import gevent.pool
import gevent.server
import gevent.socket
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gpop import events
from gpop.config import MetricsSettings
from gpop.metrics import http
from gpop.metrics.exposition import Metrics, Reader, answered
from gpop.privsep import channel, credentials, messages
from gpop.privsep.confinement import Confinement
from gpop.privsep.shortage import Shortage
from gpop.programs import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

# From its acceptance until the end of its answer; then a connection is closed, whatever it was about.
CONNECTION_TIMEOUT_S = 5.0
# More of them wait in the kernel until one of these has gone.
MAX_CONNECTIONS = 32
# How long processes have to say that they are at work. They do nothing that takes so long.
ANSWER_TIMEOUT_S = 1.0
# What a process has said so short a time ago still holds: the broker does not ask more often
# (`broker.tallies.LOOK_AGAIN_S`).
FRESH_S = 0.2
PAUSE_S = 0.01
OPEN_METRICS = "application/openmetrics-text"
# What is read, and thrown away, of whoever says more than a request.
MOST_UNREAD = 1 << 18
MAX_FRAME_OCTETS = 64


class MetricsProcess:
    """The process: its sockets, its way to the broker, the tallies it was shown."""

    def __init__(self, settings: MetricsSettings, control_fd: int, log: events.Log) -> None:
        self.log = log
        self.shortage = Shortage(log)
        control = socket.socket(fileno=control_fd)
        self.control = gevent.socket.socket(control.family, control.type, 0, control.detach())
        self.asked = 0.0
        self.reader = Reader()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(Metrics(self.reader, settings.certificate_ends))
        self.listeners = [_listener(address) for address in settings.metrics_listen]
        # Whatever is loaded on first use is loaded now, while there is a file system.
        for accept in ("", OPEN_METRICS):
            self.metrics(accept)

    def serve(self) -> None:
        """Answer until the broker is gone."""
        pool = gevent.pool.Pool(MAX_CONNECTIONS)
        servers = [gevent.server.StreamServer(each, self._accepted, spawn=pool) for each in self.listeners]
        for server in servers:
            server.start()
        channel.send(self.control, messages.encode(messages.READY))
        addresses = [_spelled(listener) for listener in self.listeners]
        self.log.write("metrics_started", pid=os.getpid(), listen=addresses)
        self._obey()

    def _obey(self) -> None:
        """Take what the broker shows."""
        while True:
            try:
                frame, fds = channel.receive(self.control, MAX_FRAME_OCTETS)
            except channel.ShortOfDescriptors as short:
                # Which tally it was nobody could say: whoever is started in our place gets them all.
                self.shortage.lost_from_broker(short.octets)
                return
            except (channel.ChannelClosed, OSError, messages.BadFrame):
                return
            if frame.kind == messages.TALLY:
                self.reader.add(fds[0])
            elif frame.kind == messages.LOG:
                self.log.replace(fds[0])
            elif frame.kind == messages.ALIVE:
                channel.send(self.control, messages.encode(messages.ALIVE))
            else:
                channel.close_all(fds)

    # Connections

    def _accepted(self, client: gevent.socket.socket, _address: Any) -> None:
        """Answer one request: the one outermost handler for it."""
        try:
            with gevent.Timeout(CONNECTION_TIMEOUT_S, False):
                self._converse(client)
        except OSError:
            return  # the client is gone
        except Exception as error:
            self.log.write("process_fault", "error", problem=events.place(error))

    def _converse(self, client: gevent.socket.socket) -> None:
        octets, with_body = b"", True
        try:
            while not http.is_whole(octets):
                more = client.recv(http.MAX_REQUEST_OCTETS)
                if not more:
                    return
                octets += more
            request = http.parse(octets)
            with_body = request.with_body
            answer = self.answer(request)
        except http.Refused as refused:
            answer = refused.answer
        client.sendall(http.encode(answer, with_body))
        # What it may have said beyond its request must not become a reset that overtakes the answer. Of what
        # never ends only so much: a call that need not wait does not switch.
        client.shutdown(socket.SHUT_WR)
        for _ in range(MOST_UNREAD // http.MAX_REQUEST_OCTETS):
            if not client.recv(http.MAX_REQUEST_OCTETS):
                return

    def answer(self, request: http.Request) -> http.Answer:
        """
        Return the answer to a request.

        Raises:
            Refused: there is no such path.
        """
        if request.path == "/metrics":
            return self.metrics(request.accept)
        if request.path in ("/healthz", "/readyz"):
            self._ask()
            return self._wait_for(self._unready if request.path == "/readyz" else self._unhealthy)
        raise http.Refused(404)

    def metrics(self, accept: str) -> http.Answer:
        """Return all metrics, in OpenMetrics to a client that takes it, else in Prometheus's own form."""
        # Nothing that a client made up: choose_encoder repeats its version, and fails with an odd one.
        encoder, content_type = choose_encoder(
            f"{OPEN_METRICS};version=1.0.0" if OPEN_METRICS in accept else ""
        )
        return http.Answer(200, encoder(self.registry), content_type)

    # Health

    def _ask(self) -> None:
        """Have every process say that it is at work; if that was asked a moment ago, it need not be again."""
        now = time.monotonic()
        if now - self.asked >= FRESH_S / 2:
            self.asked = now
            # Not taken by a broker that hangs: then its answer is missed.
            channel.send_at_once(self.control.fileno(), messages.encode(messages.LOOK))

    def _wait_for(self, problem_of: Callable[[int], str]) -> http.Answer:
        """Return what is wrong, if that does not get right in time."""
        asked = time.monotonic()
        while True:
            problem = problem_of(int((asked - FRESH_S) * 1000))
            if not problem:
                return http.Answer(200, b"ok\n")
            if time.monotonic() - asked > ANSWER_TIMEOUT_S:
                return http.Answer(503, problem.encode() + b"\n")
            gevent.sleep(PAUSE_S)

    def _unhealthy(self, since_ms: int) -> str:
        """Return "" if the broker is at work."""
        broker = any(kind == "broker" and at >= since_ms for kind, _, at, _ in answered(self.reader))
        return "" if broker else "the broker does not answer"

    def _unready(self, since_ms: int) -> str:
        """Return "" if somebody could log in: the broker is at work, auth, and a front that accepts."""
        processes = list(answered(self.reader))
        at_work = {kind for kind, _, at, _ in processes if at >= since_ms}
        accepts = any(accepts and at >= since_ms for _, _, at, accepts in processes)
        problems = [f"{kind} does not answer" for kind in ("broker", "auth") if kind not in at_work]
        if not accepts:
            problems.append("no front accepts connections")
        return "; ".join(problems)


def _listener(address: str) -> gevent.socket.socket:
    """Listen; beside the process that is being replaced after a reload, if there is one."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    sock = gevent.socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((host.strip("[]"), int(port)))
    sock.listen(MAX_CONNECTIONS)
    return sock


def _spelled(listener: gevent.socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(arguments: list[str]) -> int:
    """Run as the metrics process, started by the broker (`supervision.Generation.start_process`)."""
    options = dict(argument[2:].partition("=")[::2] for argument in arguments)
    settings = MetricsSettings(**read_settings(int(options["settings-fd"])))
    log = events.log_of("metrics", options)
    try:
        # The hub opens what it needs (epoll, an eventfd) while there still is a file system.
        gevent.get_hub()
        process = MetricsProcess(settings, int(options["control-fd"]), log)
        if os.geteuid() == 0:
            user = pwd.getpwnam(settings.user)
            credentials.become_service(user.pw_uid, user.pw_gid, os.path.join(settings.run_dir, "empty"))
        sys.path.clear()
        Confinement(settings.service_calls).enter()
        process.serve()
    except (credentials.CredentialsRefused, KeyError, OSError) as error:
        log.write("process_fault", "error", problem=f"there are no metrics: {error}")
        return 1
    return 0
