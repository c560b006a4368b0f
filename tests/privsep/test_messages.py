"""Frames: what is encoded is decoded; what is not exactly a frame is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.privsep import messages

LIMIT = 40


def values_of(kind: int) -> st.SearchStrategy[dict[str, object]]:
    by_type = {
        messages.INT: lambda cap: st.integers(-(2**63), 2**63 - 1),
        messages.OCTETS: lambda cap: st.binary(max_size=min(cap, LIMIT)),
        # Four octets at the most for a character.
        messages.TEXT: lambda cap: st.text(
            st.characters(exclude_categories=["Cs"]), max_size=min(cap // 4, LIMIT)
        ),
        messages.INTS: lambda cap: st.lists(st.integers(0, 2**32 - 1), max_size=min(cap, LIMIT)),
    }
    fields = {name: by_type[kind_of_field](cap) for name, kind_of_field, cap in messages.FRAMES[kind].fields}
    return st.fixed_dictionaries(fields)


FRAMES = st.sampled_from(sorted(messages.FRAMES)).flatmap(
    lambda kind: st.tuples(st.just(kind), values_of(kind))
)


@given(FRAMES)
def test_what_is_encoded_is_decoded(frame):
    """Every frame within its caps arrives as it was sent."""
    kind, fields = frame
    decoded = messages.decode(messages.encode(kind, **fields))
    assert (decoded.kind, decoded.fields) == (kind, fields)


@given(st.binary(max_size=200))
def test_any_octets_are_a_frame_or_refused(octets):
    """Whatever a taken-over process sends, decoding ends in a frame or in BadFrame."""
    try:
        messages.decode(octets)
    except messages.BadFrame as error:
        assert str(error)


@given(FRAMES, st.data())
def test_a_changed_frame_is_a_frame_or_refused(frame, data):
    """One octet changed, cut off or added anywhere: a frame within its caps, or BadFrame."""
    kind, fields = frame
    octets = bytearray(messages.encode(kind, **fields))
    at = data.draw(st.integers(0, len(octets) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if change == "flip":
        octets[at] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del octets[at:]
    else:
        octets.append(0)
    try:
        decoded = messages.decode(bytes(octets))
    except messages.BadFrame:
        return
    assert change == "flip"
    for name, kind_of_field, cap in messages.FRAMES[decoded.kind].fields:
        if kind_of_field == messages.OCTETS:
            assert len(decoded.fields[name]) <= cap


def test_a_name_over_its_cap_is_not_encoded():
    """Caps hold on the sending side too: a front can't send auth more than a name may have."""
    with pytest.raises(messages.BadFrame, match=r"pipelined\.octets"):
        messages.encode(messages.PIPELINED, octets=b"x" * (messages.MAX_PIPELINED_OCTETS + 1))


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, "1", None])
def test_what_is_no_integer_of_a_frame_is_not_encoded(value):
    """It is a bad frame, as every other field that does not fit, and no error of another kind."""
    with pytest.raises(messages.BadFrame):
        messages.encode(messages.KICKED, sessions=value)


def test_a_count_below_zero_is_not_encoded():
    with pytest.raises(messages.BadFrame):
        messages.encode(messages.TOTALS, close_reason="", cache="", cache_reason="", fault="", counts=[-1])


def test_fields_must_be_exactly_those_of_the_kind():
    """A missing or an unknown field is an error of ours, found at once."""
    with pytest.raises(messages.BadFrame):
        messages.encode(messages.DRAIN)
    with pytest.raises(messages.BadFrame):
        messages.encode(messages.READY, pid=1)


def test_a_frame_shows_no_field_in_its_repr():
    """A login frame in a log or a traceback must not show the password."""
    frame = messages.Frame(messages.LOGIN, {"password": b"secret-word"})
    assert "secret-word" not in repr(frame)


def test_a_serve_frame_that_ends_before_its_path_is_refused():
    """The broker takes only the maildrop's key from it, which ended the broker with a struct.error."""
    for length in range(messages.HEADER.size + messages.KEY_PATH_AT):
        with pytest.raises(messages.BadFrame):
            messages.maildrop_key(bytes(length))
