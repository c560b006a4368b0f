"""What a message is recognised by, however it is stored, sent and cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.migration.fingerprint import Fingerprint

MESSAGE = b"From: a@example.org\nStatus: RO\nSubject: one\n two\n\nfirst\n.\nlast\n"
octets = st.lists(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b"a", b".", b": ", b"Status: R", b"X: y", b" ", b"\r" * 17, b"b" * 16]
    ),
    max_size=30,
).map(b"".join)


def pieces_of(message: bytes, most: int = 65536) -> list[bytes]:
    """Cut a message as a buffered file's readline(most) does."""
    return [line[at : at + most] for line in _lines(message) for at in range(0, len(line), most)]


def _lines(message: bytes) -> list[bytes]:
    parts = message.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def digests(message: bytes, most: int = 65536) -> tuple[bytes, bytes]:
    fingerprint = Fingerprint()
    for piece in pieces_of(message, most):
        fingerprint.feed(piece)
    fingerprint.end()
    return fingerprint.header(), fingerprint.content()


@given(octets, st.integers(16, 20))
def test_cuts_do_not_matter(message: bytes, most: int) -> None:
    """However long the pieces of a line are, the digests are the same."""
    assert digests(message, most) == digests(message)


@given(octets)
def test_sent_is_as_stored(message: bytes) -> None:
    """A server's CRLF and the line end that it adds make no other message of it."""
    ended = message if message.endswith(b"\n") or not message else message + b"\n"
    assert digests(ended.replace(b"\n", b"\r\n")) == digests(message)


@given(octets)
def test_the_header_is_what_top_sends(message: bytes) -> None:
    """TOP n 0 is enough to know the header, and a header that is alone is one as well."""
    lines = _lines(message)
    blank = next((at for at, line in enumerate(lines) if not line.strip(b"\r\n")), len(lines))
    assert digests(b"".join(lines[:blank]))[0] == digests(message)[0]


@pytest.mark.parametrize(
    "same",
    [
        MESSAGE.replace(b"Status: RO\n", b""),
        MESSAGE.replace(b"\n", b"\r\n"),
        MESSAGE.replace(b"\n", b"\r\r\n"),
        MESSAGE[:-1],
        MESSAGE + b"\n",
        b"X-UIDL: abc\n more\n" + MESSAGE,
        b"content-length : 17\n" + MESSAGE,
    ],
)
def test_what_makes_no_other_message(same: bytes) -> None:
    """Line ends, how the end of it is written, and the notes of mbox servers."""
    assert digests(same) == digests(MESSAGE)


@pytest.mark.parametrize(
    ("other", "header_too"),
    [
        (MESSAGE.replace(b"two", b"Two"), True),
        (MESSAGE.replace(b" two", b"\ttwo"), True),
        (b"X-Other: 1\n" + MESSAGE, True),
        (MESSAGE.replace(b"first", b"First"), False),
        (MESSAGE + b"\nx\n", False),
        (MESSAGE.replace(b"\n\n", b"\n\n\n"), False),
    ],
)
def test_what_makes_another_message(other: bytes, header_too: bool) -> None:
    """Everything else, an empty line among it where something follows."""
    assert digests(other)[1] != digests(MESSAGE)[1]
    assert (digests(other)[0] != digests(MESSAGE)[0]) == header_too


def test_endless_crs_are_not_kept() -> None:
    """A line of nothing but CRs, of any length, takes no memory."""
    fingerprint = Fingerprint()
    for _ in range(100):
        fingerprint.feed(b"\r" * 65536)
    assert len(fingerprint._carried) < 65536
