"""What a front writes, and what the log process takes it for: the two have to agree."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from gpop.events import Log
from gpop.log import lines

LATEST = "9999-12-31T23:59:59.999Z"
# What two octets are enough for in a frame, and six for in JSON; spelled out for eyes it takes seven there.
UNPRINTABLE = "\u0378"


def written(**fields) -> bytes:
    """The line that a front writes of these."""
    reading, writing = os.pipe()
    try:
        Log(writing, "front").write("session_closed", **fields)
        return os.read(reading, 1 << 16)
    finally:
        os.close(reading)
        os.close(writing)


def taken(octets: bytes) -> dict:
    """What the log process makes of it."""
    assert octets.endswith(b"\n") and octets.count(b"\n") == 1
    text, fields = lines.checked(octets[:-1], "front")
    return lines.attested(text, fields, 4194304, "", LATEST)[1]


def test_what_a_session_says_of_its_end_does_not_end_its_front():
    """A fault of characters that can't be shown made the line too long for the log process, once shown."""
    for others in range(0, 1000, 50):
        names = {"user": "x" * min(others, 512), "account": "y" * max(0, others - 512)}
        assert taken(written(**names, fault=512 * UNPRINTABLE))["pid"] == 4194304


@given(st.lists(st.text(max_size=600), max_size=12), st.lists(st.text(max_size=40), max_size=12))
def test_whatever_the_fields_are_it_is_a_line(values, names):
    """Nothing that a client, a session or a file name can be made of ends the front that logs it."""
    taken(written(**{f"field{number}": value for number, value in enumerate(values)}, names=names))
