"""The log's JSON, read back by the standard library's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.json_text import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    line = json_text(value)
    assert json.loads(line) == value
    assert line.isascii() and line.isprintable()


@pytest.mark.parametrize(
    "text", ["\udc80 not UTF-8", "\ud800", "\x00\x1f\x7f", '"\\', "\u2028", "\U0001f600"]
)
def test_odd_text_is_as_the_standard_library_writes_it(text: str) -> None:
    assert json.loads(json_text(text)) == text
    assert json_text([text]).isprintable()


def test_a_tuple_is_a_list() -> None:
    assert json_text((1, "a")) == '[1, "a"]'


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), b"octets", {1: 2}, {1}, object()]
)
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises((TypeError, AttributeError)):
        json_text(value)
