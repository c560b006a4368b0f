"""
EDGE: a conversation with a POP3 server that nobody vouches for, to learn what it lists.

Every answer is bounded, in octets and lines, and so is the time, for each wait and for all of it: a
server that sends for ever, or an octet a minute, costs its user's turn and nothing else. It changes
nothing on the server: messages are read by TOP, there is no DELE, and if it had to be RETR no QUIT either,
because servers that remove what was retrieved do so then (RFC 1939 §6).

The standard library's poplib will not do: it refuses lines over 2,048 octets, which mail has, drops the
first octet of a line that begins with CR, holds whole messages, and bounds neither the lines of an answer
nor the time that they take. With these replaced, USER and PASS would be left of it.

Executed by `gpop uidl` in a process for each user, as somebody who is not root.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import socket
import ssl
import time
from collections.abc import Iterator

from gpop.events import printable
from gpop.migration.fingerprint import Fingerprint
from gpop.migration.servers import IMPLICIT, STLS, Server

# RFC 2449 §4 allows 512 octets for the first line of an answer; servers that greet for longer exist.
MAX_LINE_OCTETS = 2048
MAX_CAPABILITIES = 200
# More than any maildrop that is served; each costs some hundred octets of memory.
MAX_MESSAGES = 1_000_000
# A message may be longer than it is listed: by its CRs, and by what a wrong list has wrong.
MAX_MORE_OCTETS = 1024 * 1024
PIECE_OCTETS = 65536
# Commands sent at once to a server that says PIPELINING (RFC 2449 §6.6); these fit into any buffer.
MAX_PIPELINED = 50
# What a server says that could go otherwise in a minute.
TEMPORARY_CODES = ("IN-USE", "LOGIN-DELAY", "SYS/TEMP")


class ConversationFailed(Exception):
    """The conversation with a server came to nothing; the text says why."""

    temporary = False


class Unreachable(ConversationFailed):
    """There is no connection, or there was one."""

    temporary = True


class RefusedByServer(ConversationFailed):
    """The server said -ERR to something that was needed."""

    def __init__(self, what: str, line: bytes) -> None:
        super().__init__(f"{what} refused: {printable(line[:200])}")
        code = re.match(rb"-ERR \[([A-Z/-]+)", line)
        self.temporary = bool(code) and code[1].decode() in TEMPORARY_CODES if code else False


class NotPop3(ConversationFailed):
    """The server said something that no POP3 server says, or more than anybody wants to read."""


class _Incoming(io.RawIOBase):
    """What comes from a socket, with a limit on each wait and one on all of them together."""

    def __init__(self, sock: socket.socket, silence_s: float, deadline: float) -> None:
        self._sock = sock
        self._silence_s = silence_s
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Unreachable("it took too long altogether")
        self._sock.settimeout(min(left, self._silence_s))
        try:
            return self._sock.recv_into(buffer)
        except TimeoutError:
            raise Unreachable(f"silent for {self._silence_s:g} s, or too slow altogether") from None
        except OSError as error:
            raise Unreachable(f"the connection broke: {error.strerror or error}") from None


class Client:
    """
    One session. Everything in it raises ConversationFailed.

    `silence_s` bounds each wait, `deadline` (monotonic seconds) all of them.
    """

    def __init__(self, server: Server, silence_s: float, deadline: float) -> None:
        """Connect, with TLS if that is how this server is spoken to."""
        self._server = server
        self._silence_s = silence_s
        self._deadline = deadline
        self._top: bool | None = None  # not known yet
        self._capabilities: set[str] = set()
        self._sock = self._connected()
        try:
            if server.tls == IMPLICIT:
                self._start_tls()
            # Before STLS not an octet more than asked for: what somebody slipped in behind the answer to it
            # is then no answer within TLS, but the end of the handshake.
            self._read_from_here(1 if server.tls == STLS else PIECE_OCTETS)
            self._answer("the connection was")
            self._ask_capabilities()
            if server.tls == STLS:
                self._stls()
        except BaseException:
            self.close()
            raise

    # The connection

    def _connected(self) -> socket.socket:
        problem = "no address"
        for family, address in self._server.addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(self._silence_s)
            try:
                sock.connect(address)
            except OSError as error:
                sock.close()
                problem = f"{address[0]} port {address[1]}: {error.strerror or error}"
            else:
                return sock
        raise Unreachable(problem)

    def _start_tls(self) -> None:
        assert self._server.context
        try:
            self._sock = self._server.context.wrap_socket(self._sock, server_hostname=self._server.host)
        except ssl.SSLCertVerificationError as error:
            raise NotPop3(f"certificate not believed: {error.verify_message}") from None
        except OSError as error:
            raise Unreachable(f"no TLS: {error.strerror or error}") from None

    def _read_from_here(self, at_once: int) -> None:
        incoming = _Incoming(self._sock, self._silence_s, self._deadline)
        self._incoming = io.BufferedReader(incoming, at_once)

    def _stls(self) -> None:
        if "STLS" not in self._capabilities:
            raise NotPop3(
                "the server offers no STLS, and passwords do not go in cleartext unless --cleartext says so"
            )
        self._command(b"STLS")
        self._start_tls()
        self._read_from_here(PIECE_OCTETS)
        self._ask_capabilities()

    def close(self) -> None:
        """Hang up, which changes nothing on the server."""
        self._sock.close()

    def quit(self) -> None:
        """End the session politely, if that changes nothing on the server; after a RETR hang up."""
        with contextlib.suppress(ConversationFailed):
            if self._top is not False:
                self._command(b"QUIT")
        self.close()

    # Commands and answers

    def _send(self, octets: bytes) -> None:
        try:
            self._sock.sendall(octets)
        except OSError as error:
            raise Unreachable(f"the connection broke: {error.strerror or error}") from None

    def _line(self, most_octets: int = MAX_LINE_OCTETS) -> bytes:
        line = self._incoming.readline(most_octets + 1)
        if not line.endswith(b"\n"):
            if len(line) > most_octets:
                raise NotPop3(f"a line of more than {most_octets} octets")
            raise Unreachable("the server hung up")
        return line[:-1].removesuffix(b"\r")

    def _answer(self, what: str) -> bytes:
        """Return the first line of an answer, which has to be +OK."""
        line = self._line()
        if line.startswith(b"+OK"):
            return line
        if line.startswith(b"-ERR"):
            raise RefusedByServer(what, line)
        raise NotPop3(f"neither +OK nor -ERR: {printable(line[:80])}")

    def _command(self, line: bytes, what: str = "") -> bytes:
        """Send a command and return the first line of its answer; `what` stands for it in what goes wrong."""
        self._send(line + b"\r\n")
        return self._answer(f"{what or line.decode('ascii')} was")

    def _listing(self, most_lines: int) -> Iterator[bytes]:
        """Yield the lines of a multi-line response."""
        for _ in range(most_lines + 1):
            line = self._line()
            if line == b".":
                return
            yield line.removeprefix(b".")
        raise NotPop3(f"more than {most_lines} lines, which is as many as there can be")

    def _ask_capabilities(self) -> None:
        try:
            self._command(b"CAPA")
        except RefusedByServer:  # RFC 2449 is optional
            self._capabilities = set()
            return
        lines = [line.decode("latin-1").upper() for line in self._listing(MAX_CAPABILITIES)]
        self._capabilities = {line.partition(" ")[0] for line in lines}

    # What the session is for

    def login(self, authzid: bytes, name: bytes, password: bytes) -> None:
        """Log in: by USER and PASS, or by AUTH PLAIN if there is an authorization identity to send."""
        if any(octet in part for part in (authzid, name, password) for octet in b"\r\n\0"):
            raise ConversationFailed("a name or a password has a line end or a NUL in it")
        if authzid:
            self._send(b"AUTH PLAIN\r\n")
            line = self._line()
            if not line.startswith(b"+ ") and line != b"+":
                raise RefusedByServer("AUTH PLAIN was", line)
            self._send(base64.b64encode(b"\0".join((authzid, name, password))) + b"\r\n")
            self._answer("AUTH PLAIN was")
        else:
            self._command(b"USER " + name, "the name")
            self._command(b"PASS " + password, "the login")
        self._ask_capabilities()

    def drop_listing(self) -> tuple[int, int]:
        """Return how many messages there are, and of how many octets, by STAT."""
        line = self._command(b"STAT")
        found = re.match(rb"\+OK (\d{1,18}) (\d{1,18})(?: |$)", line)
        if not found:
            raise NotPop3(f"no drop listing: {printable(line[:80])}")
        count, octets = int(found[1]), int(found[2])
        if count > MAX_MESSAGES:
            raise NotPop3(f"{count} messages, of at most {MAX_MESSAGES}")
        return count, octets

    def scan_listings(self, count: int) -> list[int]:
        """Return the octets of each message, by LIST."""
        self._command(b"LIST")
        sizes = []
        for field in self._numbered(count):
            digits = field.partition(b" ")[0]
            if not digits.isdigit() or len(digits) > 18:
                raise NotPop3(f"no scan listing: {printable(field[:80])}")
            sizes.append(int(digits))
        return sizes

    def unique_ids(self, count: int) -> list[bytes]:
        """Return the unique-id of each message, by UIDL."""
        self._command(b"UIDL")
        return list(self._numbered(count))

    def _numbered(self, count: int) -> Iterator[bytes]:
        """Yield what a listing says of each message, in order; there have to be `count`."""
        number = 0
        for line in self._listing(count):
            number += 1
            shown, _, field = line.partition(b" ")
            if shown != b"%d" % number or not field:
                raise NotPop3(f"in place of message {number} is listed {printable(line[:80])}")
            yield field.rstrip(b" ")
        if number != count:
            raise NotPop3(f"{number} messages listed, of which STAT says that there are {count}")

    def headers(self, octets: list[int]) -> list[bytes]:
        """
        Return the digest of each message's header, given the octets of each; by TOP, else by RETR.

        Sends several commands at once to a server that announces that it takes them.
        """
        command = b"TOP %d 0" if self._has_top() else b"RETR %d"
        at_once = MAX_PIPELINED if "PIPELINING" in self._capabilities else 1
        digests = []
        for first in range(0, len(octets), at_once):
            some = range(first, min(first + at_once, len(octets)))
            self._send(b"".join(command % (index + 1) + b"\r\n" for index in some))
            for index in some:
                self._answer(f"{(command % (index + 1)).decode()} was")
                digests.append(self._fingerprint(octets[index]).header())
        return digests

    def content(self, number: int, octets: int) -> bytes:
        """
        Return the digest of a message's content, by TOP with as many lines as it can have, else by RETR.

        RETR leaves its mark: a message is "read" afterwards, and Courier gives another unique-id to one
        whose file was in cur/ without flags.
        """
        self._command(
            b"TOP %d %d" % (number, octets + MAX_MORE_OCTETS) if self._has_top() else b"RETR %d" % number
        )
        return self._fingerprint(octets).content()

    def _has_top(self) -> bool:
        """Whether there is TOP (RFC 1939 §7, optional); of a server that does not say so, ask."""
        if self._top is None:
            self._top = "TOP" in self._capabilities
            if not self._top:
                with contextlib.suppress(RefusedByServer):
                    self._command(b"TOP 1 0")
                    self._fingerprint(0)
                    self._top = True
        return self._top

    def _fingerprint(self, listed_octets: int) -> Fingerprint:
        """Read a message to its end."""
        fingerprint = Fingerprint()
        left = 2 * listed_octets + MAX_MORE_OCTETS
        at_line_start = True
        while True:
            piece = self._incoming.readline(PIECE_OCTETS)
            left -= len(piece)
            if not piece:
                raise Unreachable("the server hung up")
            if at_line_start and piece.startswith(b"."):
                if piece in (b".\r\n", b".\n"):
                    fingerprint.end()
                    return fingerprint
                piece = piece[1:]
            if left < 0:
                raise NotPop3(f"a message of far more octets than the {listed_octets} that it is listed with")
            fingerprint.feed(piece)
            at_line_start = piece.endswith(b"\n")
