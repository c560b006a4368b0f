"""
A POP3 client whose every command is a request of locust's, with its latency and the octets of its answer.

The answer is looked at by whoever asked, with a function that raises Wrong; then the request is a failed
one. A failure carries the dialogue that led to it: bounded, passwords hidden, messages left out. Knows
commands, not maildrops. Executed by locust's processes, on gevent's sockets (locust patches them in).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from loadtest.ledger import Wrong

TIMEOUT_S = 60.0
CHUNK_OCTETS = 65536
# No answer to one of our commands is as large; a server that never ends one must not fill our memory.
MOST_ANSWER_OCTETS = 256 << 20
MOST_LINE_OCTETS = 4096
DIALOGUE_LINES = 24
DIALOGUE_COLUMNS = 100
TERMINATOR = b"\r\n.\r\n"
# For a client that will leave in the middle of an answer: what it does not read, the server can't send.
SMALL_BUFFER_OCTETS = 16384

# Kinds of requests.
COMMAND, SESSION, CHECK, POST = "POP3", "user", "check", "post"
# One that was cut off because a process of the server was killed, which the run has been told of.
CUT_OFF = "cut off"
SCHEMES = {"pop3": 110, "pop3s": 995, "pop3+stls": 110}


class Failed(Exception):
    """A command that failed; it has been reported. The session is over."""


class CutOff(Failed):
    """The connection broke off, or a login could not be decided, and processes of the server are killed."""


class _Gone(Wrong):
    """The server has closed the connection."""


class Report(Protocol):
    """Takes a request: its kind and name, milliseconds, octets, and what went wrong, if something did."""

    def __call__(
        self, kind: str, name: str, ms: float, octets: int, failure: Failure | None = None
    ) -> None: ...


class Failure(Exception):
    """What went wrong, with the dialogue, for locust's list of failures; its repr is what is shown there."""

    def __init__(self, what: str, dialogue: str) -> None:
        super().__init__(what)
        self.what = what
        self.dialogue = dialogue

    def __repr__(self) -> str:
        return f"{self.what} [{self.dialogue}]" if self.dialogue else self.what


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is, and how TLS begins there."""

    host: str
    scheme: str
    context: ssl.SSLContext | None
    # Found out once: gevent asks for names in threads, of which hundreds of users at once would have to wait.
    family: socket.AddressFamily
    address: Any  # as `socket.connect` wants it
    # Its processes are killed all the time: a connection that breaks off is no failure, but counted apart.
    is_killed: bool = False

    @classmethod
    def of(cls, url: str, authority: str | None, is_killed: bool = False) -> Server:
        """
        Return the server of a URL: pop3://host:port, pop3s:// or pop3+stls://.

        `authority`: a file of certificates to believe, in place of the system's.

        Raises:
            ValueError: the URL is none of these.
            OSError: there is no such host.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname:
            accepted = ", ".join(f"{scheme}://HOST" for scheme in SCHEMES)
            raise ValueError(f"{url!r} is no host; give one of {accepted}")
        context = None if parts.scheme == "pop3" else ssl.create_default_context(cafile=authority)
        port = parts.port or SCHEMES[parts.scheme]
        family, _, _, _, address = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0]
        return cls(parts.hostname, parts.scheme, context, family, address, is_killed)


@dataclass(frozen=True, slots=True)
class Answer:
    """The status line without its CRLF, the body of a multi-line response, and all octets on the wire."""

    status: bytes
    body: bytes
    octets: int

    def lines(self) -> list[bytes]:
        return self.body.splitlines()


def ok(answer: Answer) -> None:
    """What is asked of any answer if nothing more is."""
    if not answer.status.startswith(b"+OK"):
        raise Wrong(f"-ERR and not +OK: {shown(answer.status)}")


class Client:
    """One connection, from `connect` to `close`; each step reports itself, and raises Failed if it fails."""

    def __init__(self, server: Server, report: Report) -> None:
        self._server = server
        self._report = report
        self._socket: socket.socket | None = None
        self._unread = b""
        self._dialogue: deque[str] = deque(maxlen=DIALOGUE_LINES)
        self.line_end = b"\r\n"
        self.octets = 0  # received

    def connect(self, small_buffer: bool = False) -> None:
        """Connect, and read the greeting; begin TLS if it is due."""
        self._request("connect", lambda: self._connected(small_buffer), ok)
        if self._server.scheme == "pop3+stls":
            self.ask("STLS", "STLS")
            self._request("TLS handshake", self._with_tls, ok)

    def _connected(self, small_buffer: bool) -> Answer:
        self._socket = socket.socket(self._server.family, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
        if small_buffer:
            # Before the connection is made: that is when the window is agreed on.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_OCTETS)
        self._socket.connect(self._server.address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._server.scheme == "pop3s":
            self._with_tls()
        return self._answer(multi_line=False)

    def _with_tls(self) -> Answer:
        assert self._server.context and self._socket
        if self._unread:
            raise Wrong("the server has sent something between its answer to STLS and TLS")
        self._socket = self._server.context.wrap_socket(self._socket, server_hostname=self._server.host)
        return Answer(b"+OK", b"", 0)

    def ask(
        self,
        name: str,
        command: str,
        verify: Callable[[Answer], None] = ok,
        multi_line: bool = False,
    ) -> Answer:
        """
        Send a command, read the answer, have it looked at; `name` is that of the request.

        Raises:
            Failed: no answer, or one that `verify` does not accept.
        """
        return self._request(name, lambda: self._asked(command, multi_line), verify)

    def leave_within(self, name: str, command: str, octets: int, verify: Callable[[Answer], None]) -> None:
        """Send a command, read so many octets of its answer, have them looked at, drop the connection."""

        def dropped() -> Answer:
            self._send(command)
            status = self._line()
            while len(self._unread) < octets:
                self._receive()
            self._log(f"S: {shown(status)} ({len(self._unread)} octets, then dropped)")
            # As it is on the wire: dots at the start of lines are stuffed.
            return Answer(status, self._unread, len(status) + len(self._unread))

        self._request(name, dropped, verify)
        self.close(reset=True)

    def say(self, command: str) -> None:
        """Send a command and wait for nothing. What goes wrong is the next one's to find."""
        with contextlib.suppress(OSError):
            self._send(command)

    def close(self, reset: bool = False) -> None:
        """Close the connection; `reset`: without a word, as a line that is cut."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        with contextlib.suppress(OSError):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    # One request

    def _request(self, name: str, action: Callable[[], Answer], verify: Callable[[Answer], None]) -> Answer:
        started = time.perf_counter()
        octets, problem, answer, broke_off = 0, "", None, False
        try:
            answer = action()
        except TimeoutError:
            problem = f"no answer within {TIMEOUT_S:g} s"
        except (OSError, Wrong) as error:
            problem = str(error) or type(error).__name__
            broke_off = isinstance(error, (OSError, _Gone))
        ms = (time.perf_counter() - started) * 1000
        if answer:
            octets = answer.octets
            self.octets += octets
            try:
                verify(answer)
            except Wrong as wrong:
                problem = str(wrong)
        if problem or answer is None:
            # A front says this when the auth that should have decided is gone.
            broke_off = broke_off or bool(answer and answer.status.startswith(b"-ERR [SYS/TEMP]"))
            self.close(reset=True)
            if broke_off and self._server.is_killed:
                self._report(CUT_OFF, name, ms, octets)
                raise CutOff(problem)
            self._report(COMMAND, name, ms, octets, Failure(problem, self.dialogue()))
            raise Failed(problem)
        self._report(COMMAND, name, ms, octets)
        return answer

    def dialogue(self) -> str:
        """The last lines of the dialogue, passwords hidden, as one line."""
        return " | ".join(self._dialogue)

    def _asked(self, command: str, multi_line: bool) -> Answer:
        self._send(command)
        return self._answer(multi_line)

    def _send(self, command: str) -> None:
        assert self._socket
        self._log(f"C: {'PASS (hidden)' if command.startswith('PASS ') else command}")
        self._socket.sendall(command.encode() + self.line_end)

    def _answer(self, multi_line: bool) -> Answer:
        status = self._line()
        if not multi_line or not status.startswith(b"+OK"):
            self._log(f"S: {shown(status)}")
            return Answer(status.removesuffix(b"\r\n"), b"", len(status))
        wire = self._until_terminator()
        self._log(f"S: {shown(status)} ({len(wire)} octets)")
        body = wire.removesuffix(b".\r\n")
        # RFC 1939 §3: a dot at the start of a line is not the message's.
        if b"\n." in body:
            body = body.replace(b"\r\n.", b"\r\n")
        body = body.removeprefix(b".")
        return Answer(status.removesuffix(b"\r\n"), body, len(status) + len(wire))

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > MOST_LINE_OCTETS:
                raise Wrong("a status line without end")
            self._receive()
        line, _, self._unread = self._unread.partition(b"\n")
        return line + b"\n"

    def _until_terminator(self) -> bytes:
        """Read a body, its terminator included. We never pipeline, so that is where the octets end."""
        pieces = bytearray(b"\r\n" + self._unread)  # a body may be nothing but its terminator
        start = 0
        while (found := pieces.find(TERMINATOR, start)) < 0:
            if len(pieces) > MOST_ANSWER_OCTETS:
                raise Wrong(f"an answer of more than {MOST_ANSWER_OCTETS} octets")
            start = max(0, len(pieces) - len(TERMINATOR) + 1)
            self._unread = b""
            self._receive()
            pieces += self._unread
        end = found + len(TERMINATOR)
        self._unread = bytes(pieces[end:])
        return bytes(pieces[2:end])

    def _receive(self) -> None:
        assert self._socket
        octets = self._socket.recv(CHUNK_OCTETS)
        if not octets:
            raise _Gone("the server has closed the connection")
        self._unread += octets

    def _log(self, line: str) -> None:
        self._dialogue.append(line if len(line) <= DIALOGUE_COLUMNS else f"{line[:DIALOGUE_COLUMNS]}...")


def shown(octets: bytes) -> str:
    """Octets of a server as they can be shown: no control characters, not endless."""
    text = octets[:DIALOGUE_COLUMNS].rstrip(b"\r\n").decode("latin-1")
    return text.encode("unicode_escape").decode()
