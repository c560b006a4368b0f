"""
PURE: what a message is recognised by: digests of its header and of its content, the same for a file and for
what a server sends of it.

A server sends CRLF where a file has LF (Courier: CR CR LF where it has CRLF), and ends a last line that is
not ended. Converters keep the empty line that an mbox has after each message. Programs on the way keep
notes of their own in the header (was it read, which unique-id has it). None of that makes it another message.
Everything else does.

Knows no file and no server. Executed by `gpop uidl`, as the mail user.
"""

from __future__ import annotations

from _blake2 import blake2b

DIGEST_OCTETS = 20
# No line ends with so many CRs.
MAX_CARRIED_OCTETS = 1024
MOST_LINES_AT_ONCE = 65536

# Fields that mbox servers and converters write, change and drop: they say what became of a message.
NOTES = frozenset(
    (b"content-length", b"status", b"x-imap", b"x-imapbase", b"x-keywords", b"x-status", b"x-uid", b"x-uidl")
)


class Fingerprint:
    """
    Digests of one message, fed in pieces of lines.

    A piece ends where a line ends, or before: lines may be longer than what anybody wants to hold. But the
    name of a field is never cut.
    """

    __slots__ = ("_at_line_start", "_body", "_carried", "_empty_lines", "_header", "_in_note", "in_header")

    def __init__(self) -> None:
        self.in_header = True
        self._header = blake2b(digest_size=DIGEST_OCTETS)
        self._body = blake2b(digest_size=DIGEST_OCTETS)
        self._at_line_start = True
        self._in_note = False
        self._empty_lines = 0  # of the body, after which nothing has come yet
        self._carried = b""  # CRs at the end of a piece: part of a line end if a LF follows

    def feed(self, piece: bytes) -> None:
        """Add a piece that holds no line end but at its end."""
        piece = self._carried + piece
        is_ended = piece.endswith(b"\n")
        text = piece.removesuffix(b"\n").rstrip(b"\r")
        self._carried = b"" if is_ended else piece[len(text) :]
        if len(self._carried) > MAX_CARRIED_OCTETS:
            text, self._carried = piece, b""
        self._add(text + b"\n" if is_ended else text)

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        if self.in_header:
            self._add_to_header(piece)
        elif piece == b"\n" and self._at_line_start:
            self._empty_lines += 1
        else:
            self._add_empty_lines()
            self._body.update(piece)
        self._at_line_start = piece.endswith(b"\n")

    def _add_empty_lines(self) -> None:
        """Those were not the last ones."""
        while self._empty_lines:
            some = min(self._empty_lines, MOST_LINES_AT_ONCE)
            self._body.update(b"\n" * some)
            self._empty_lines -= some

    def _add_to_header(self, piece: bytes) -> None:
        if self._at_line_start:
            if piece == b"\n":
                self.in_header = False
                return
            if not piece.startswith((b" ", b"\t")):  # such a line continues the field before
                self._in_note = piece.partition(b":")[0].rstrip().lower() in NOTES
        if not self._in_note:
            self._header.update(piece)

    def end(self) -> None:
        """End the last line, as a server does that sends it. Nothing may be fed afterwards."""
        if self._carried or not self._at_line_start:
            self._carried = b""
            self._add(b"\n")

    def header(self) -> bytes:
        """Return the digest of the header; all of it has been fed, or the message has ended."""
        return self._header.digest()

    def content(self) -> bytes:
        """Return the digest of the message, which has ended."""
        return self._header.digest() + self._body.digest()
