r"""
Transcripts of POP3 sessions: what they look like and how they are read.

A transcript in `tests/dialogues/` is played against the pure core and over TCP, so it says nothing about how
gpop is built. One thing a line; empty lines and lines that begin with "#" mean nothing:

    account: NAME PASSWORD        the only login that is accepted; the password is the rest of the line
    message: UNIQUE-ID CORPUS     a message in the maildrop: its base name, and which tests/corpus/CORPUS.eml
    C: STAT                       the client sends this line, with CRLF
    C> STAT\nNOOP\n               the client sends these octets and nothing more
    S: +OK 2 320                  the server sends this line
    S: +OK ...                    the server sends a line that begins like this
    S< CORPUS.wire                the server sends the octets of this file in tests/corpus
    S closes                      the server closes the connection
    left: UNIQUE-ID ...           what is in the maildrop afterwards; all messages, if this line is missing

After C:, C> and S: the escapes \r, \n, \\ and \x00 can be used, and {300*x} for 300 times "x". All the C
lines between two S lines are sent at once. Where no "S closes" stands at the end, the client just hangs up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent
DIALOGUES = sorted((TESTS / "dialogues").glob("*.txt"))

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\([rn\\])|\{(\d+)\*(.)\}")
_SIMPLE_ESCAPES = {"r": "\r", "n": "\n", "\\": "\\"}


@dataclass(frozen=True)
class Expected:
    """One line from the server, line end included; only its beginning if `open_end`."""

    octets: bytes
    open_end: bool = False

    def matches(self, line: bytes) -> bool:
        if self.open_end:
            return line.startswith(self.octets) and line.endswith(b"\r\n")
        return line == self.octets


@dataclass
class Exchange:
    """What the client sends at once (nothing before the greeting), then what it must receive."""

    sent: bytes = b""
    expected: list[Expected] = field(default_factory=list)
    closes: bool = False

    def check(self, lines: list[bytes]) -> None:
        """Compare with the lines received, line ends included; they must be as many."""
        for expected, line in zip(self.expected, lines, strict=False):
            assert expected.matches(line), f"expected {expected.octets!r}, received {line!r}"
        assert len(lines) == len(self.expected), f"expected {self.expected}, received {lines}"


@dataclass
class Dialogue:
    """One transcript, read."""

    account: tuple[bytes, bytes] = (b"", b"")
    messages: dict[bytes, Path] = field(default_factory=dict)  # by unique-id, in the order of their numbers
    exchanges: list[Exchange] = field(default_factory=lambda: [Exchange()])
    left: list[bytes] = field(default_factory=list)


def read_dialogue(path: Path) -> Dialogue:
    """Read one transcript; an unknown line raises ValueError with its place."""
    dialogue, left = Dialogue(), None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        key, rest = line[:2], line[3:]
        if key in ("C:", "C>"):
            if dialogue.exchanges[-1].expected:
                dialogue.exchanges.append(Exchange())
            dialogue.exchanges[-1].sent += _unescape(rest) + (b"\r\n" if key == "C:" else b"")
        elif key == "S:":
            dialogue.exchanges[-1].expected.append(_expected(rest))
        elif key == "S<":
            octets = (TESTS / "corpus" / rest).read_bytes()
            dialogue.exchanges[-1].expected += [Expected(line) for line in lines_of(octets)]
        elif line == "S closes":
            dialogue.exchanges[-1].closes = True
        elif line.startswith("account: "):
            name, _, password = line.removeprefix("account: ").encode().partition(b" ")
            dialogue.account = (name, password)
        elif line.startswith("message: "):
            unique_id, stem = line.removeprefix("message: ").split()
            dialogue.messages[unique_id.encode()] = TESTS / "corpus" / f"{stem}.eml"
        elif line.startswith("left:"):
            left = line.removeprefix("left:").encode().split()
        else:
            raise ValueError(f"{path}:{number}: neither of client nor of server: {line!r}")
    dialogue.left = list(dialogue.messages) if left is None else left
    return dialogue


def lines_of(octets: bytes) -> list[bytes]:
    """Octets from the server as lines, line ends included; a lone CR ends none."""
    return [line + b"\n" for line in octets.split(b"\n")[:-1]]


def _expected(text: str) -> Expected:
    if text.endswith("..."):
        return Expected(_unescape(text.removesuffix("...").rstrip(" ")), open_end=True)
    return Expected(_unescape(text) + b"\r\n")


def _unescape(text: str) -> bytes:
    def meaning(escape: re.Match[str]) -> str:
        octet, simple, count, repeated = escape.groups()
        if octet:
            return chr(int(octet, 16))
        return _SIMPLE_ESCAPES[simple] if simple else int(count) * repeated

    return _ESCAPE.sub(meaning, text).encode("latin-1")
