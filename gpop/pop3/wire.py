"""
Lines from a client, replies to it.

Pure: knows the shape of a line and of a reply (RFC 1939 §3, RFC 2449 §4), not what any command means;
no socket, no clock. Executed by the front (as the service user) and by the session (as the mail user).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# RFC 2449 §4: a server with CAPA accepts commands of 255 octets, CRLF counted.
MAX_COMMAND_OCTETS = 255
# RFC 5034 §4 frees SASL responses from that limit. Clients also put OAuth tokens of several KiB on the
# AUTH line itself, against the letter of the standard. A proxy's XCLIENT may be as long as it likes.
MAX_SASL_OCTETS = 16384
MAY_BE_LONG = (b"AUTH ", b"XCLIENT ")
# RFC 2449 §4: the first line of a response, CRLF counted.
MAX_REPLY_OCTETS = 512

CRLF = b"\r\n"
TERMINATOR = b".\r\n"

_PRINTABLE = bytes(octet if 0x20 <= octet <= 0x7E else ord("?") for octet in range(256))


class LineError:
    """What `LineReader.next_line` returns in place of a line that is no command, whatever it holds."""

    __slots__ = ("name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def __repr__(self) -> str:
        return f"<{self.name}>"


TOO_LONG = LineError("TOO_LONG", "That line is too long")
HAS_NUL = LineError("HAS_NUL", "That line holds a NUL")


class LineReader:
    """
    Cuts what a client sends into lines, with bounded memory.

    The owner calls `next_line` until it returns None before it feeds more, so no more than one feed and one
    unfinished line are ever held; and it sets `sasl_response` before the line it speaks of is asked for.
    """

    __slots__ = ("_discarding", "_octets", "_start", "sasl_response")

    def __init__(self) -> None:
        self.sasl_response = False
        self._octets = b""
        self._start = 0  # of the line that `next_line` has not returned yet
        self._discarding = False  # the rest of a line already refused as TOO_LONG

    def feed(self, octets: bytes) -> None:
        """Add what was read from the client."""
        self._octets = self._octets[self._start :] + octets
        self._start = 0

    def next_line(self) -> bytes | LineError | None:
        """
        Return the next line without its line end; None when it has not wholly arrived.

        A bare LF ends a line as well: people with netcat and some clients send nothing else.
        A line over the limit is one TOO_LONG, at once, and is then discarded up to its end.
        """
        start, end = self._start, self._octets.find(b"\n", self._start)
        if self._discarding and end >= 0:
            self._discarding = False
            start, end = end + 1, self._octets.find(b"\n", end + 1)
            self._start = start
        if end < 0:
            return self._unfinished()
        self._start = end + 1
        if end + 1 - start > MAX_COMMAND_OCTETS and end + 1 - start > self._limit(start):
            return TOO_LONG
        line = self._octets[start:end].removesuffix(b"\r")
        return HAS_NUL if b"\0" in line else line

    def take_rest(self) -> bytes:
        """Hand over, raw, every octet not yet returned as a line; the reader is empty afterwards."""
        rest = self._octets[self._start :]
        self._octets, self._start = b"", 0
        return rest

    def _unfinished(self) -> LineError | None:
        if self._discarding:
            self.take_rest()
        elif len(self._octets) - self._start >= self._limit(self._start):
            self.take_rest()
            self._discarding = True
            return TOO_LONG
        return None

    def _limit(self, start: int) -> int:
        long = self._octets[start : start + 8].upper().startswith(MAY_BE_LONG)
        return MAX_SASL_OCTETS if long or self.sasl_response else MAX_COMMAND_OCTETS


def ok(text: str = "") -> bytes:
    """Return the line `+OK text`."""
    return _reply(b"+OK", text.lstrip(" ["))


def err(text: str, code: str = "") -> bytes:
    """
    Return the line `-ERR text`, or `-ERR [code] text`.

    Codes are IN-USE (RFC 2449 §8.1.2), SYS/TEMP, SYS/PERM and AUTH (RFC 3206), and UTF8 (RFC 6856 §5). A
    client that reads AUTH asks its user for another password, so it is never said for a fault.
    """
    text = text.lstrip(" [")
    return _reply(b"-ERR", f"[{code}] {text}" if code else text)


def multiline(first: bytes, lines: Iterable[bytes]) -> bytes:
    """Return a whole multi-line response: `first`, which is a reply from `ok`, then `lines`, byte-stuffed."""
    stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
    return first + b"".join([line + CRLF for line in stuffed]) + TERMINATOR


def _reply(status: bytes, text: str) -> bytes:
    """
    One reply line that nothing in `text` can break or prolong.

    The callers have cut off any "[" in front of it, because with RESP-CODES announced a text that begins
    with one *is* a response code (RFC 2449 §6.4).
    """
    line = status + b" " + text.encode("ascii", "replace").translate(_PRINTABLE)
    return line[: MAX_REPLY_OCTETS - len(CRLF)].rstrip(b" ") + CRLF
