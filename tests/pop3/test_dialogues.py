"""The transcripts of `tests/dialogues/`, played against the core as the front and the session would."""

from __future__ import annotations

import pytest

from gpop import languages
from gpop.pop3.authorization import LOGIN_REFUSED, Authorization, greeting
from gpop.pop3.decisions import Close, Decision, EnterUpdate, Login, Reply, SendListing, SendMessage
from gpop.pop3.encoding import LINE_START, TopEncoder, encode, terminator
from gpop.pop3.languages import Languages, Speech
from gpop.pop3.transaction import Transaction
from gpop.pop3.wire import LineReader, ok
from tests.dialogue import DIALOGUES, Dialogue, lines_of, read_dialogue
from tests.pop3.fake_maildrop import FakeMaildrop


class Server:
    """Front and session in one: both states, the hand-over between them, and decisions carried out."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.account = dialogue.account
        self.messages = {unique_id: path.read_bytes() for unique_id, path in dialogue.messages.items()}
        self.maildrop = FakeMaildrop(self.messages)
        self.left = list(self.messages)
        self.reader = LineReader()
        self.speech = Speech(Languages(languages.FILES))
        self.state: Authorization | Transaction = Authorization(speech=self.speech)
        self.sent = greeting("gpop ready")
        self.closed = False

    def receive(self, octets: bytes) -> None:
        self.reader.feed(octets)
        while not self.closed and (line := self.reader.next_line()) is not None:
            self.sent += self.speech.said(self.carry_out(self.state.handle(line)))
            if isinstance(self.state, Authorization):
                self.reader.sasl_response = self.state.awaits_sasl_response

    def carry_out(self, decision: Decision) -> bytes:
        match decision:
            case Login(name, password):
                return self.log_in((name, password))
            case SendListing(kind):
                return self.maildrop.listing(kind)
            case SendMessage(index, line_count):
                return ok() + send(self.maildrop.messages[index], line_count)
            case EnterUpdate():
                self.closed, self.left = True, self.maildrop.remaining()
                return ok("bye")
            case Reply(octets):
                return octets
            case Close(octets):
                self.closed = True
                return octets
        raise AssertionError(decision)

    def log_in(self, credentials: tuple[bytes, bytes]) -> bytes:
        assert isinstance(self.state, Authorization)
        if credentials != self.account:
            self.state.login_refused()
            return LOGIN_REFUSED
        rest = self.reader.take_rest()
        self.reader = LineReader()
        self.reader.feed(rest)
        self.speech = Speech(Languages(languages.FILES), self.speech.tag, self.speech.utf8)
        self.state = Transaction(self.maildrop, speech=self.speech)
        return ok("maildrop locked and ready")


def send(message: bytes, line_count: int | None) -> bytes:
    """RETR and TOP, in chunks small enough that borders fall everywhere."""
    chunks = [message[start : start + 7] for start in range(0, len(message), 7)]
    if line_count is not None:
        top = TopEncoder(line_count)
        return b"".join([top.feed(chunk) for chunk in chunks]) + top.finish()
    at, octets = LINE_START, b""
    for chunk in chunks:
        encoded, at = encode(chunk, at)
        octets += encoded
    return octets + terminator(at)


@pytest.mark.parametrize("piece_octets", [1 << 20, 1], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path, piece_octets):
    """The client sends what the transcript says, at once or octet by octet, and receives what it says."""
    dialogue = read_dialogue(path)
    server = Server(dialogue)
    for exchange in dialogue.exchanges:
        for start in range(0, len(exchange.sent), piece_octets):
            server.receive(exchange.sent[start : start + piece_octets])
        exchange.check(lines_of(server.sent))
        assert server.closed == exchange.closes
        server.sent = b""
    assert server.left == dialogue.left


def test_there_are_dialogues():
    """A wrong path would play nothing and pass."""
    assert len(DIALOGUES) >= 15


def test_unknown_line_is_named(tmp_path):
    """A typing error in a transcript is reported with its place, not skipped."""
    path = tmp_path / "wrong.txt"
    path.write_text("# fine\n\nX: STAT\n")
    with pytest.raises(ValueError, match=r"wrong\.txt:3: .*X: STAT"):
        read_dialogue(path)
