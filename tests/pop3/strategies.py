"""What the property tests draw from: octets in which line ends, dots and lone CRs are not rare."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st

# Cheap examples, so many of them; no deadline: a busy machine is not a fault of the code.
thorough = settings(deadline=None, max_examples=300)

_PIECES = [b"\n", b"\r\n", b"\r", b".", b"..", b"a", b"\n\n", b"\r\n\r\n", b"\n.", b"\0", b"\xff", b"To: x"]

messages = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=4), max_size=24).map(b"".join)

_KEYWORDS = b"USER PASS AUTH CAPA STAT LIST UIDL RETR TOP DELE RSET NOOP QUIT APOP STLS UTF8 LANG".split()
_ARGUMENTS = [
    *(b"", b" ", b"tim", b"1", b"2", b"0", b"00001", b"-1", b"1 0", b"1 1", b"1 x", b"4294967297", b"9" * 30),
    *(b"PLAIN", b"login", b"PLAIN =", b"PLAIN AHRpbQBzZWNyZXQ=", b"LOGIN dGlt", b"X-NONE", b"\xff\xfe"),
    *(b"*", b"en", b"de-AT"),
]
_commands = st.tuples(st.sampled_from(_KEYWORDS), st.sampled_from(_ARGUMENTS)).map(b" ".join)
_responses = st.sampled_from([b"*", b"=", b"", b"dGlt", b"AHRpbQBzZWNyZXQ=", b"AAA=", b"AA==", b"!"])
_ends = st.sampled_from([b"\r\n", b"\r\n", b"\n", b""])

# What a client, or something that is none, may send.
client_octets = st.lists(
    st.tuples(_commands | _responses | st.binary(max_size=12) | st.just(b"x" * 300), _ends).map(b"".join),
    max_size=12,
).map(b"".join)


def pieces(octets: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `octets` at the places that `cuts`, any numbers, fall on."""
    places = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    return [octets[start:end] for start, end in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 1 << 16), max_size=6)
