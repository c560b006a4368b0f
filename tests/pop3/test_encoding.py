"""Messages in wire form: `gpop.pop3.encoding` against the slow reference and the corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.pop3.encoding import (
    AFTER_CR,
    FORM_MIXED,
    FORM_PLAIN_LF,
    FORM_UNKNOWN,
    FORM_WIRE,
    LINE_START,
    MID_LINE,
    Measure,
    TopEncoder,
    encode,
    encode_plain,
    encode_whole,
    measure,
    terminator,
)
from tests.pop3 import reference
from tests.pop3.strategies import cuts, messages, pieces, thorough

CORPUS = Path(__file__).parent.parent / "corpus"


def retr(*chunks: bytes) -> bytes:
    at = LINE_START
    sent = []
    for chunk in chunks:
        octets, at = encode(chunk, at)
        sent.append(octets)
    return b"".join(sent) + terminator(at)


def top(line_count: int, *chunks: bytes) -> bytes:
    encoder = TopEncoder(line_count)
    return b"".join([encoder.feed(chunk) for chunk in chunks]) + encoder.finish()


def measured(*chunks: bytes) -> tuple[int, int]:
    meter = Measure()
    for chunk in chunks:
        meter.feed(chunk)
    return meter.result()


def singly(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.eml")), ids=lambda path: path.stem)
def test_corpus_is_sent_octet_for_octet(path):
    """An awkward message goes out as the file beside it says: whole, octet by octet, cut in two anywhere."""
    message, expected = path.read_bytes(), path.with_suffix(".wire").read_bytes()
    assert reference.encode(message) == expected
    assert retr(message) == retr(*singly(message)) == expected
    assert all(retr(message[:place], message[place:]) == expected for place in range(min(len(message), 600)))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.top*.wire")), ids=lambda path: path.stem)
def test_corpus_top_is_sent_octet_for_octet(path):
    """TOP of the corpus is what the file beside it says."""
    stem, line_count, _ = path.name.split(".")
    message, expected = (CORPUS / f"{stem}.eml").read_bytes(), path.read_bytes()
    assert top(int(line_count[3:]), message) == top(int(line_count[3:]), *singly(message)) == expected


def test_dot_as_the_very_first_octet_is_doubled():
    """A message begins where a line does."""
    assert retr(b".\n") == b"..\r\n.\r\n"


def test_dot_after_a_line_end_in_the_previous_chunk_is_doubled():
    """The border between two chunks hides no line start."""
    assert retr(b"a\n", b".b\n") == b"a\r\n..b\r\n.\r\n"
    assert retr(b"a\r\n", b".b\n") == b"a\r\n..b\r\n.\r\n"
    assert retr(b"a\r", b"\n", b".b\n") == b"a\r\n..b\r\n.\r\n"
    assert retr(b"a", b".b\n") == b"a.b\r\n.\r\n"


def test_cr_and_its_lf_in_different_chunks_are_one_line_end():
    """No second CR is put between them."""
    assert retr(b"a\r", b"\nb\r\n") == b"a\r\nb\r\n.\r\n"
    assert retr(b"a\r", b"\n.\n") == b"a\r\n..\r\n.\r\n"


def test_crlf_stays_crlf():
    """A message stored with CRLF gets no CR twice."""
    assert retr(b"a\r\nb\r\n") == b"a\r\nb\r\n.\r\n"


def test_lone_cr_is_an_ordinary_octet():
    """It is sent, it ends no line, and a "." behind it is not doubled."""
    assert retr(b"a\rb\r.c\n\r\r\n") == b"a\rb\r.c\r\n\r\r\n.\r\n"


def test_missing_final_line_end_is_added():
    """The terminator stands on a line of its own (RFC 1939 §3)."""
    assert retr(b"a") == b"a\r\n.\r\n"
    assert retr(b"a\r") == b"a\r\r\n.\r\n"
    assert retr(b".") == b"..\r\n.\r\n"


def test_empty_message_is_only_a_terminator():
    """No line is invented for a message that has none."""
    assert retr() == retr(b"") == b".\r\n"
    assert measure(b"") == measured() == (0, FORM_PLAIN_LF)


def test_empty_chunk_changes_nothing():
    """Not even where in a line we are."""
    for at in (LINE_START, MID_LINE, AFTER_CR):
        assert encode(b"", at) == (b"", at)


@thorough
@given(message=messages, cuts=cuts)
def test_chunking_is_invisible(message, cuts):
    """However a message is cut into chunks, the client receives the same octets."""
    assert retr(*pieces(message, cuts)) == reference.encode(message)


@thorough
@given(message=messages)
def test_client_gets_the_lines_back(message):
    """An independent client that undoes byte-stuffing has every line of the message."""
    lines = reference.lines_of(message)
    assert reference.decode(retr(message)) == b"".join(line + b"\r\n" for line in lines)


@thorough
@given(message=messages, cuts=cuts)
def test_measure_equals_what_is_sent(message, cuts):
    """LIST announces what RETR sends, less byte-stuffing and terminator, in one piece or in many."""
    octets, _ = measure(message)
    assert octets == len(reference.decode(retr(message))) == reference.octets_on_wire(message)
    assert measured(*pieces(message, cuts)) == measure(message)


@thorough
@given(message=messages)
def test_form_says_what_a_message_needs(message):
    """The form is plain or wire exactly when the cheap way sends the same octets as the full encoder."""
    _, form = measure(message)
    assert (form == FORM_PLAIN_LF) == reference.is_plain_lf(message)
    assert (form == FORM_WIRE) == reference.is_wire(message)
    if form == FORM_PLAIN_LF:
        assert encode_plain(message) + b".\r\n" == retr(message)
    if form == FORM_WIRE:
        assert message + b".\r\n" == retr(message)


@thorough
@given(message=messages)
def test_a_whole_message_is_sent_and_measured_like_one_in_chunks(message):
    """Whether its form is known beforehand or not."""
    octets, form = measure(message)
    assert encode_whole(message, FORM_UNKNOWN, 0) == encode_whole(message, form, octets)
    encoded, *facts = encode_whole(message, form, octets)
    assert encoded + b".\r\n" == retr(message)
    assert facts == [octets, form]


@pytest.mark.parametrize(
    ("message", "form"),
    [
        (b"a\nb\n", FORM_PLAIN_LF),
        (b"a\r\nb\r\n", FORM_WIRE),
        (b"a\r\nb\n", FORM_MIXED),
        (b"a\rb\n", FORM_MIXED),
        (b"a\rb\r\n", FORM_MIXED),
        (b"a\n.b\n", FORM_MIXED),
        (b".a\r\n", FORM_MIXED),
        (b"a", FORM_MIXED),
        (b"a\r\nb\r", FORM_MIXED),
    ],
)
def test_forms_by_example(message, form):
    """One example for each way of not being plain."""
    assert measure(message)[1] == measured(*singly(message))[1] == form


@thorough
@given(message=messages, line_count=st.integers(0, 8), cuts=cuts)
def test_top_sends_header_and_lines(message, line_count, cuts):
    """TOP is the header, the blank line and so many lines of the body, wherever the chunks end."""
    assert top(line_count, *pieces(message, cuts)) == reference.top(message, line_count)


@thorough
@given(message=messages, cuts=cuts)
def test_top_of_more_lines_than_there_are_is_retr(message, cuts):
    """A line count beyond the end, however large, is no error: the whole message is sent."""
    assert top(10**20 - 1, *pieces(message, cuts)) == retr(message)


def test_top_0_ends_with_the_blank_line():
    """A line count of 0 is legal: header and blank line."""
    assert top(0, b"To: x\n\nbody\n") == b"To: x\r\n\r\n.\r\n"
    assert top(0, b"\nbody\n") == b"\r\n.\r\n"


def test_top_of_a_message_without_blank_line_sends_what_exists():
    """A message that is all header is sent as it is; no blank line is invented."""
    assert top(0, b"To: x\n") == b"To: x\r\n.\r\n"


def test_top_is_done_when_nothing_more_is_needed():
    """The owner can stop reading the file: the rest of the message is not looked at."""
    encoder = TopEncoder(1)
    assert encoder.feed(b"To: x\n\none\ntwo\n") == b"To: x\r\n\r\none\r\n"
    assert encoder.done
    assert encoder.feed(b"three\n") == b""
    assert encoder.finish() == b".\r\n"


def test_one_odd_line_in_a_large_chunk_changes_no_other():
    """One lone CR, one dot line, one LF among CRLFs or one CRLF among LFs: the lines around it stay right."""
    lines = 5000
    plain, crlf = b"line\n" * lines, b"line\r\n" * lines
    for odd in (b"a\rb\n", b".\n", b"x\n", b"x\r\n"):
        for message in (plain + odd + plain, crlf + odd + crlf):
            assert retr(message) == reference.encode(message)
            assert measure(message)[0] == reference.octets_on_wire(message)
