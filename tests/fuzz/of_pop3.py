"""Targets: what clients send (`gpop.pop3`, SASL with it), and what is sent to them."""

from __future__ import annotations

import base64
import re

from gpop.front.preparation import prepare
from gpop.pop3 import commands, encoding
from gpop.pop3.authorization import Authorization
from gpop.pop3.commands import COMMANDS, STATES, without_secret
from gpop.pop3.decisions import (
    AnnouncedClient,
    Close,
    Decision,
    EnterUpdate,
    Login,
    RefusedLogin,
    Reply,
    SendListing,
    SendMessage,
    StartTls,
)
from gpop.pop3.languages import Languages, Speech
from gpop.pop3.transaction import Transaction
from gpop.pop3.wire import MAX_REPLY_OCTETS, MAX_SASL_OCTETS, LineError, LineReader
from tests.fuzz.target import TESTS, client_octets, messages, pieces, target, with_switches
from tests.pop3 import reference
from tests.pop3.fake_maildrop import FakeMaildrop

LANGUAGES = {
    path.stem: path.read_bytes() for path in sorted((TESTS.parent / "gpop" / "languages").glob("*.txt"))
}


def check_reply(octets: bytes) -> None:
    """A whole response: a status line of bounded length, and a terminator if more follows."""
    first, end, rest = octets.partition(b"\r\n")
    assert first.startswith((b"+OK", b"-ERR ", b"+ ")) and end and len(first) + 2 <= MAX_REPLY_OCTETS
    assert b"\n" not in first and b"\r" not in first and b"\0" not in first
    assert not rest or rest.endswith(b"\r\n.\r\n") or rest == b".\r\n"


def line_reader(octets: bytes) -> None:
    """
    However octets are cut, the same lines and errors come out as of the slow reference, and little
    is kept.
    """
    how, octets = octets[:1] or b"\0", octets[1:]
    reader, lines = LineReader(), []
    reader.sasl_response = bool(how[0] & 0x80)
    for piece in pieces(octets, how[0] & 0x7F):
        reader.feed(piece)
        while (line := reader.next_line()) is not None:
            lines.append(line.name if isinstance(line, LineError) else line)
        assert len(reader._octets) <= MAX_SASL_OCTETS + len(piece)
    assert lines == reference.read_lines(octets, reader.sasl_response)


def command(octets: bytes) -> None:
    """A line is a command that is legal in its state or a refusal in one line, and no log sees a password."""
    for state in STATES:
        parsed = commands.parse(octets, state)
        if isinstance(parsed, Reply):
            check_reply(parsed.octets)
            assert parsed.octets.startswith(b"-ERR ")
        else:
            keyword, arguments = parsed
            assert state in COMMANDS[keyword].states and octets[: len(keyword)].upper() == keyword
            assert all(each is None or isinstance(each, bytes) or 0 <= each < 10**20 for each in arguments)
    keyword, _, rest = octets.partition(b" ")
    if keyword.upper() == b"PASS" or keyword.upper() not in COMMANDS:
        other = octets[: len(octets) - len(rest)] + b"x" * len(rest)
        assert without_secret(octets) == without_secret(other)


def _authorize(chunks: list[bytes], how: int) -> list[Decision]:
    offer = commands.Offer(stls=bool(how & 2), user=not how & 4)
    speech = Speech(Languages(LANGUAGES))
    core = Authorization(offer, speech, prepare if how & 8 else None, xclient=bool(how & 16))
    reader, decisions = LineReader(), list[Decision]()
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            decisions.append(core.handle(line))
            if isinstance(decisions[-1], Login):
                core.login_refused()
            reader.sasl_response = core.awaits_sasl_response
            if isinstance(decisions[-1], Close):
                return decisions
            if isinstance(decisions[-1], Reply):
                check_reply(speech.said(decisions[-1].octets))
    return decisions


def authorization(octets: bytes) -> None:
    """
    Whatever a stranger sends, cut anywhere, leads to the same decisions, and a login is bounded and
    printable.
    """
    how, octets = (octets[:2] + b"\0\0")[:2], octets[2:]
    decisions = _authorize([octets], how[0])
    assert decisions == _authorize(pieces(octets, how[1]), how[0])
    for decision in decisions:
        if isinstance(decision, Login):
            for name in (decision.name, decision.prepared_name):
                assert len(name) <= 255 and all(octet > 0x1F and octet != 0x7F for octet in name)
            for password in (decision.password, decision.prepared_password):
                assert len(password) <= 1024 and b"\0" not in password
            assert decision.name and decision.password
        elif isinstance(decision, AnnouncedClient):
            assert how[0] & 16
        else:
            assert isinstance(decision, Reply | StartTls | Close)
            check_reply(decision.octets)


BASE64 = re.compile(rb"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def sasl(octets: bytes) -> None:
    """
    A response to AUTH PLAIN is a login exactly if it is base64 of one name, for oneself, and one
    password.
    """
    response = octets[1:].replace(b"\n", b"")
    if octets[:1] > b"\x7f":  # what a fuzzer does not find by itself
        response = base64.b64encode(octets[1:])
    core = Authorization()
    core.handle(b"AUTH PLAIN")
    assert core.awaits_sasl_response
    decision = core.handle(response)
    expected = None
    if BASE64.fullmatch(response):
        fields = base64.b64decode(response).split(b"\0")
        if len(fields) == 3 and fields[0] in (b"", fields[1]):
            expected = fields[1], fields[2]
    if isinstance(decision, Login):
        assert (decision.name, decision.password) == expected
    elif expected is not None and all(0 < len(each) <= 255 and each.isascii() for each in expected):
        assert isinstance(decision, RefusedLogin)
        assert any(octet < 0x20 or octet == 0x7F for octet in expected[0])
    else:
        assert isinstance(decision, Reply) and decision.octets.startswith(b"-ERR ")
    assert not core.awaits_sasl_response


MESSAGES = {b"id-1": b"To: x\n\nbody\n", b"id-2": b"To: y\r\n\r\n.\r\n", b"id-3": b"no end"}


def _transact(chunks: list[bytes]) -> tuple[list[Decision], set[int]]:
    drop, reader = FakeMaildrop(MESSAGES), LineReader()
    core, decisions = Transaction(drop, speech=Speech(Languages(LANGUAGES))), list[Decision]()
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            before = set(drop.marked)
            decisions.append(decision := core.handle(line))
            if isinstance(decision, SendMessage):
                assert 0 <= decision.index < drop.count and decision.index not in drop.marked
            keyword = b"" if isinstance(line, LineError) else line[:4].upper()
            assert drop.marked == before or keyword in (b"DELE", b"RSET")
            assert not drop.marked < before or keyword == b"RSET"
            if isinstance(decision, EnterUpdate):
                return decisions, drop.marked
    return decisions, drop.marked


def transaction(octets: bytes) -> None:
    """
    Whatever a client sends, cut anywhere, leads to the same decisions; only DELE marks, only QUIT
    updates.
    """
    how, octets = octets[:1] or b"\0", octets[1:]
    decisions, marked = _transact([octets])
    assert (decisions, marked) == _transact(pieces(octets, how[0]))
    for decision in decisions:
        assert isinstance(decision, Reply | SendListing | SendMessage | EnterUpdate)
        if isinstance(decision, Reply):
            check_reply(decision.octets)


def encoder(octets: bytes) -> None:
    """
    A message in any pieces is sent, measured and cut by TOP as the slow reference does it, and read
    back.
    """
    (how, count), message = (octets[:2] + b"\0\0")[:2], octets[2:]
    chunks = pieces(message, how)
    at, sent, meter, top = encoding.LINE_START, b"", encoding.Measure(), encoding.TopEncoder(count)
    for chunk in chunks:
        encoded, at = encoding.encode(chunk, at)
        sent += encoded
        meter.feed(chunk)
    sent += encoding.terminator(at)
    assert sent == reference.encode(message)
    assert reference.lines_of(reference.decode(sent)) == reference.lines_of(message)
    size = reference.octets_on_wire(message)
    assert encoding.measure(message) == meter.result() and meter.result()[0] == size
    assert b"".join([top.feed(chunk) for chunk in chunks]) + top.finish() == reference.top(message, count)
    for form in (encoding.FORM_UNKNOWN, meter.result()[1]):
        whole, listed, _ = encoding.encode_whole(message, form, size)
        assert (whole + b".\r\n", listed) == (sent, size)


def language(octets: bytes) -> None:
    """Any octets are a file of translations, and with it every reply stays a reply."""
    file, _, wanted = octets.partition(b"\0")
    speech = Speech(Languages({"xx": file}), "xx", utf8=len(octets) % 2 == 1)
    for english in (b"-ERR Unknown command\r\n", b"-ERR [AUTH] Authentication failed\r\n", b"+OK 1 2\r\n"):
        said = speech.said(english)
        assert said.endswith(b"\r\n") and said.startswith(english[:4]) and said.count(b"\n") == 1
    check_reply(speech.lang(wanted).octets)


def saslprep(octets: bytes) -> None:
    """A prepared name or password is UTF-8 without control characters; what has no such form is refused."""
    text = octets.decode("utf-8", "replace").encode()
    prepared = prepare(text)
    if prepared:
        prepared.decode("utf-8")
        assert all(octet > 0x1F and octet != 0x7F for octet in prepared)


_SAID = client_octets()
_LINES = [line for said in _SAID for line in said.split(b"\r\n")]
_RESPONSES = [b"\0tim\0secret", b"tim\0tim\0secret", b"joe\0tim\0secret", b"\0tim", b"\0\xc3\xa9\0x", b"\0\0"]

TARGETS = (
    target(line_reader, with_switches([*_SAID, b"x" * 300, b"AUTH " + b"A" * 400], 0, 5, 0x81)),
    target(command, [line for line in _LINES if len(line) < 80]),
    target(authorization, [b"\x1a\x03" + said for said in _SAID] + [b"\x02\x01STLS\r\nXCLIENT ADDR=::1\r\n"]),
    target(
        sasl,
        with_switches(_RESPONSES, 0xFF)
        + with_switches(map(base64.b64encode, _RESPONSES), 0)
        + [b"\0*", b"\0="],
    ),
    target(transaction, with_switches(_SAID, 0, 1, 9)),
    target(encoder, [b"\x03\x02" + message for message in messages()]),
    target(language, [octets[:1500] + b"\0*" for octets in LANGUAGES.values()] + [b"ascii: \xc3\xa9=e\n"]),
    target(saslprep, ["é".encode(), "Ⅸ".encode(), "ﬁ\u00ad x".encode(), "\u0627\u0031".encode(), b"tim"]),
)
