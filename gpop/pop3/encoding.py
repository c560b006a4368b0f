"""
Messages in wire form: CRLF line ends, byte-stuffing, terminator, octet counts, TOP.

Pure: octets in, octets out, in chunks of any size; knows no file. Executed by the session, as the mail user.

A line ends at LF and nowhere else. A CR just before that LF is part of the line end, any other CR is an octet
like the rest: mail holds lone CRs, and RETR must send exactly as many octets as LIST said (RFC 1939 §11).

Whole chunks are rewritten in C, so that cost does not depend on how short the lines are. Which C calls was
measured (`loadtest/bench/encoder.py`): `rfind` of two octets is twice as fast as `in`, and searches for
*one* octet are far faster than either.
"""

from __future__ import annotations

from gpop.pop3.wire import CRLF, TERMINATOR

# What a message needs on its way out; remembered per message in the statcache.
FORM_UNKNOWN = 0
FORM_PLAIN_LF = 1  # no CR, no line begins with ".", ends with LF or is empty: `encode_plain` will do
FORM_WIRE = 2  # every line ends with CRLF, the last too, no other CR, no line begins with ".": sent as it is
FORM_MIXED = 3  # anything else: `encode`


# So many dot lines in a chunk are the most that text has.
FEW_DOT_LINES = 500

# Where in a line a chunk ended.
LINE_START, MID_LINE, AFTER_CR = range(3)


def encode(chunk: bytes, at: int) -> tuple[bytes, int]:
    """
    Return `chunk` in wire form and where in a line it ended.

    Every line end becomes CRLF and a leading "." is doubled (RFC 1939 §3).
    `at` is LINE_START before the first octet, else what the previous call returned.
    """
    if not chunk:
        return chunk, at
    octets = _encode_lines(chunk)
    if at == LINE_START and chunk.startswith(b"."):
        octets = b"." + octets
    elif at == AFTER_CR and chunk.startswith(b"\n"):
        octets = octets[1:]  # the CR of this line end went out with the previous chunk
    return octets, _end_of(chunk)


def _encode_lines(chunk: bytes) -> bytes:
    """`encode` without its borders: as if `chunk` began in the middle of a line."""
    # Cut and joined a chunk is looked through once, where `replace` does it twice; but not into many pieces.
    pieces = chunk.split(b"\n.", FEW_DOT_LINES)
    if len(pieces) > FEW_DOT_LINES:
        chunk = chunk.replace(b"\n.", b"\n..")
    elif len(pieces) > 1:
        chunk = b"\n..".join(pieces)
    if b"\r" in chunk:
        # Most text with CRs is CRLF throughout. Rewriting it from scratch and comparing costs a third of
        # replacing its CRLFs, because each step looks for one octet only.
        all_crlf = chunk.replace(b"\r", b"").replace(b"\n", CRLF)
        if all_crlf == chunk:
            return chunk
        chunk = chunk.replace(CRLF, b"\n")
    return chunk.replace(b"\n", CRLF)


def _end_of(chunk: bytes) -> int:
    if chunk.endswith(b"\n"):
        return LINE_START
    return AFTER_CR if chunk.endswith(b"\r") else MID_LINE


def encode_plain(chunk: bytes) -> bytes:
    """`encode` for a message known to be FORM_PLAIN_LF: nothing to look for, nothing to remember."""
    return chunk.replace(b"\n", CRLF)


def encode_whole(message: bytes, form: int, octets: int) -> tuple[bytes, int, int]:
    """
    Return a whole message in wire form, its last line ended; its octets as LIST counts them; and its form.

    `octets` are believed if `form` is known; else the message is measured as well.
    """
    if form == FORM_UNKNOWN:
        if _is_plain_lf(message):
            form = FORM_PLAIN_LF
        else:
            octets, form = measure(message)
    if form == FORM_PLAIN_LF:
        message = message.replace(b"\n", CRLF)
        return message, len(message), form
    if form == FORM_WIRE:
        return message, len(message), form
    encoded, at = encode(message, LINE_START)
    return encoded if at == LINE_START else encoded + CRLF, octets, form


def _is_plain_lf(message: bytes) -> bool:
    """Whether a whole message has the form FORM_PLAIN_LF."""
    return (
        b"\r" not in message
        and message.rfind(b"\n.") < 0
        and message[:1] != b"."
        and message[-1:] in (b"\n", b"")
    )


def terminator(at: int) -> bytes:
    """What ends the multi-line response after a message; `at` is where its last chunk ended."""
    return TERMINATOR if at == LINE_START else CRLF + TERMINATOR


def measure(octets: bytes) -> tuple[int, int]:
    """
    Return the octets on the wire of a whole message, and its form.

    Line ends count as two octets, the one that is missing at the end too; byte-stuffing and terminator do not
    count (RFC 1939 §11).
    """
    lf = _line_feeds(octets)
    dotted = octets.startswith(b".") or octets.rfind(b"\n.") >= 0
    if b"\r" not in octets and not dotted and octets.endswith(b"\n"):
        return len(octets) + lf, FORM_PLAIN_LF  # as nearly all mail is
    cr, crlf = octets.count(b"\r"), octets.count(CRLF)
    return _verdict(len(octets), lf, cr, crlf, dotted, octets[-1:] in (b"\n", b""))


def _line_feeds(octets: bytes) -> int:
    # Taking them out costs less than half of `count`, which looks at one octet after the other.
    return len(octets) - len(octets.replace(b"\n", b""))


class Measure:
    """`measure` for a message read in chunks."""

    __slots__ = ("_cr", "_crlf", "_dotted", "_last", "_lf", "_size")

    def __init__(self) -> None:
        self._size = self._lf = self._cr = self._crlf = 0
        self._dotted = False
        self._last = b"\n"  # a message begins where a line does

    def feed(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._lf += _line_feeds(chunk)
        if b"\r" in chunk:
            self._cr += chunk.count(b"\r")
            self._crlf += chunk.count(CRLF)
        border = self._last + chunk[:1]
        self._crlf += border == CRLF
        self._dotted = self._dotted or border == b"\n." or chunk.rfind(b"\n.") >= 0
        self._last = chunk[-1:] or self._last

    def result(self) -> tuple[int, int]:
        """Octets on the wire and form of all that was fed."""
        return _verdict(self._size, self._lf, self._cr, self._crlf, self._dotted, self._last == b"\n")


def _verdict(size: int, lf: int, cr: int, crlf: int, dotted: bool, whole_lines: bool) -> tuple[int, int]:
    octets = size + lf - crlf
    if not whole_lines:
        return octets + len(CRLF), FORM_MIXED
    if dotted:
        return octets, FORM_MIXED
    if not cr:
        return octets, FORM_PLAIN_LF
    return octets, FORM_WIRE if cr == crlf == lf else FORM_MIXED


class TopEncoder:
    """
    The answer to TOP, after its status line: header, blank line, `line_count` lines of the body.

    The owner feeds chunks of the message until `done` or the message ends, then sends `finish()`. A message
    without a blank line is all header and is sent as it is (RFC 1939 §7 has no word on it).
    """

    __slots__ = ("_at", "_header_tail", "_lines_left", "done")

    def __init__(self, line_count: int) -> None:
        self.done = False
        self._lines_left = line_count
        self._at = LINE_START
        # The last octets before the chunk while in the header, because its end may lie on the border; empty
        # in the body. A message begins where a line does: one that opens with a blank line has no header.
        self._header_tail = b"\n"

    def feed(self, chunk: bytes) -> bytes:
        """Return what TOP sends of `chunk`, in wire form."""
        if self.done:
            return b""
        octets, self._at = encode(chunk[: self._cut(chunk)], self._at)
        return octets

    def finish(self) -> bytes:
        return terminator(self._at)

    def _cut(self, chunk: bytes) -> int:
        """Where in `chunk` the last octet to be sent ends."""
        end = self._body_start(chunk)
        if end < 0:
            return len(chunk)
        lines = chunk.count(b"\n", end)
        if lines < self._lines_left:
            self._lines_left -= lines
            return len(chunk)
        for _ in range(self._lines_left):
            end = chunk.find(b"\n", end) + 1
        self.done = True
        return end

    def _body_start(self, chunk: bytes) -> int:
        """Where in `chunk` the body begins; -1 if all of it is header."""
        if not self._header_tail:
            return 0
        window = self._header_tail + chunk
        lf = window.find(b"\n\n")
        crlf = window.find(b"\n\r\n", 0, None if lf < 0 else lf + 1)
        if lf < 0 and crlf < 0:
            self._header_tail = window[-2:]
            return -1
        start = (lf + 2 if crlf < 0 else crlf + 3) - len(self._header_tail)
        self._header_tail = b""
        return start
