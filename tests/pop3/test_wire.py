"""Lines and replies: `gpop.pop3.wire`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.pop3.wire import (
    HAS_NUL,
    MAX_COMMAND_OCTETS,
    MAX_REPLY_OCTETS,
    MAX_SASL_OCTETS,
    TOO_LONG,
    LineError,
    LineReader,
    err,
    multiline,
    ok,
)
from tests.pop3 import reference
from tests.pop3.strategies import client_octets, cuts, pieces, thorough


def drain(reader: LineReader) -> list[bytes | LineError]:
    results = []
    while (line := reader.next_line()) is not None:
        results.append(line)
    return results


def read(*chunks: bytes, sasl_response: bool = False) -> list[bytes | LineError]:
    reader = LineReader()
    reader.sasl_response = sasl_response
    return [line for chunk in chunks for line in (reader.feed(chunk), *drain(reader))[1:]]


def read_every_way(octets: bytes, sasl_response: bool = False) -> list[bytes | LineError]:
    """Feed `octets` whole, octet by octet and with trailing data; demand that all three agree."""
    whole = read(octets, sasl_response=sasl_response)
    singly = read(*(octets[i : i + 1] for i in range(len(octets))), sasl_response=sasl_response)
    trailing = read(octets + b"trailing", sasl_response=sasl_response)
    assert whole == singly == trailing
    return whole


def test_lines_come_without_their_line_ends():
    """CRLF ends a line, and a bare LF does so as well; a CR elsewhere is an octet of the line."""
    assert read_every_way(b"STAT\r\nNOOP\nPASS a\rb\r\n\r\n\n") == [b"STAT", b"NOOP", b"PASS a\rb", b"", b""]


def test_unfinished_line_is_not_returned():
    """A line exists once its end has arrived, not before."""
    assert read(b"QUIT\r") == []
    assert read(b"QUIT\r", b"\n") == [b"QUIT"]


def test_command_of_255_octets_is_accepted():
    """RFC 2449 §4: 255 octets, CRLF counted; one more is an error."""
    longest = b"PASS " + b"x" * (MAX_COMMAND_OCTETS - 7)
    assert read_every_way(longest + b"\r\n") == [longest]
    assert read_every_way(longest + b"x\r\n") == [TOO_LONG]
    assert read_every_way(longest + b"x\n") == [longest + b"x"]


def test_over_long_line_is_one_error_and_never_several_commands():
    """What hides behind 255 octets is discarded up to the line end; the next line is read again."""
    hidden = b"x" * 300 + b" DELE 1"
    assert read_every_way(hidden + b"\r\nNOOP\r\n") == [TOO_LONG, b"NOOP"]
    assert read_every_way(hidden * 1000 + b"\nSTAT\nNOOP\n") == [TOO_LONG, b"STAT", b"NOOP"]


def test_over_long_line_is_refused_before_it_ends():
    """A client that never ends its line gets its -ERR all the same, and one only."""
    assert read(b"x" * 300, b"x" * 300, b"x" * 300) == [TOO_LONG]


def test_memory_stays_bounded_while_a_line_is_discarded():
    """However much of an over-long line arrives, nothing of it is kept."""
    reader = LineReader()
    for _ in range(100):
        reader.feed(b"x" * 65536)
        drain(reader)
        assert reader._octets == b""
    reader.feed(b"\nNOOP\n")
    assert drain(reader) == [b"NOOP"]


def test_line_with_nul_is_an_error_not_a_shorter_line():
    """A NUL does not end a string here: the line is refused as a whole."""
    assert read_every_way(b"USER tim\0admin\r\nNOOP\r\n") == [HAS_NUL, b"NOOP"]


def test_auth_line_may_be_longer_than_a_command():
    """Initial responses of several KiB are accepted on a line whose first word is AUTH, and on no other."""
    long = b"Auth PLAIN " + b"A" * 12288
    assert read_every_way(long + b"\r\n") == [long]
    assert read(b"AUTHX PLAIN " + b"A" * 12288 + b"\r\n") == [TOO_LONG]
    assert read(b"AUTH PLAIN " + b"A" * MAX_SASL_OCTETS + b"\r\n") == [TOO_LONG]


def test_sasl_response_may_be_longer_than_a_command():
    """RFC 5034 §4: responses are not bound by the limits on commands; they have one of their own."""
    response = b"A" * (MAX_SASL_OCTETS - 2)
    assert read(response + b"\r\n", sasl_response=True) == [response]
    assert read(response + b"A\r\nNOOP\r\n", sasl_response=True) == [TOO_LONG, b"NOOP"]


def test_limit_is_that_of_the_moment_a_line_is_asked_for():
    """A long response pipelined behind AUTH is not judged before AUTH was handled."""
    reader = LineReader()
    reader.feed(b"AUTH PLAIN\r\n" + b"A" * 1000)
    assert reader.next_line() == b"AUTH PLAIN"
    reader.sasl_response = True
    assert reader.next_line() is None
    reader.feed(b"\r\n")
    assert reader.next_line() == b"A" * 1000


def test_take_rest_hands_over_what_was_not_returned():
    """Everything pipelined behind PASS goes to the session, unfinished lines too, as it came."""
    reader = LineReader()
    reader.feed(b"PASS x\r\nSTAT\nRETR 1\r\nQU")
    assert reader.next_line() == b"PASS x"
    assert reader.take_rest() == b"STAT\nRETR 1\r\nQU"
    assert reader.take_rest() == b""
    assert reader.next_line() is None


@thorough
@given(octets=client_octets | st.binary(max_size=800), cuts=cuts, sasl_response=st.booleans())
def test_chunking_is_invisible_to_the_line_reader(octets, cuts, sasl_response):
    """However the octets arrive, the same lines and errors come out, and they are those of the reference."""
    results = read(*pieces(octets, cuts), sasl_response=sasl_response)
    names = [line.name if isinstance(line, LineError) else line for line in results]
    assert names == reference.read_lines(octets, sasl_response)


@thorough
@given(octets=client_octets, cuts=cuts, taken=st.integers(0, 6))
def test_hand_over_loses_and_adds_nothing(octets, cuts, taken):
    """Lines read before the hand-over and after it are together what one reader would have read."""
    first, second = LineReader(), LineReader()
    results = []
    first.feed(octets)
    for _ in range(taken):
        line = first.next_line()
        if line is None or line is TOO_LONG:
            return  # nobody hands over in the middle of a line that is being discarded
        results.append(line)
    for piece in pieces(first.take_rest(), cuts):
        second.feed(piece)
        results += drain(second)
    assert results == read(octets)


def test_replies_are_one_line():
    """Status indicator in upper case, one space, text, CRLF; no trailing space when there is no text."""
    assert ok() == b"+OK\r\n"
    assert ok("ready") == b"+OK ready\r\n"
    assert err("no such message") == b"-ERR no such message\r\n"
    assert err("maildrop in use", "IN-USE") == b"-ERR [IN-USE] maildrop in use\r\n"


@pytest.mark.parametrize("text", ["[IN-USE] nonsense", " [x", "[[[y", "[::1] ready"])
def test_text_never_begins_with_a_bracket_by_accident(text):
    """With RESP-CODES announced, "[" in front of a text is a response code (RFC 2449 §6.4)."""
    assert not ok(text).startswith((b"+OK [", b"+OK  "))
    assert not err(text).startswith((b"-ERR [", b"-ERR  "))
    assert err(text, "AUTH").startswith(b"-ERR [AUTH] ")
    assert err(text, "AUTH").count(b"-ERR [AUTH] [") == 0


def is_one_reply_line(reply: bytes) -> bool:
    printable = all(0x20 <= octet <= 0x7E for octet in reply[:-2])
    return printable and reply.endswith(b"\r\n") and len(reply) <= MAX_REPLY_OCTETS


@thorough
@given(text=st.text(max_size=600))
def test_no_text_breaks_a_reply(text):
    """Whatever is put into a reply, it stays one line of at most 512 printable ASCII octets."""
    assert is_one_reply_line(ok(text))
    assert is_one_reply_line(err(text))
    assert is_one_reply_line(err(text, "AUTH"))


def test_multiline_is_stuffed_and_terminated():
    """Lines that begin with "." get a second one; the response ends with a "." alone."""
    assert multiline(ok("list"), []) == b"+OK list\r\n.\r\n"
    assert multiline(ok("list"), [b"A", b".B", b"."]) == b"+OK list\r\nA\r\n..B\r\n..\r\n.\r\n"
