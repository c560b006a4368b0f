"""What the log process takes for a line of somebody's, and what it makes of it."""

from __future__ import annotations

import json

import pytest

from gpop.events import MAX_LINE_OCTETS
from gpop.log import lines

TS = "2026-11-25T12:00:00.000Z"
PERIOD = ("2026-11-25T11:55:00.000Z", "2026-11-25T12:00:01.000Z")
HEAD = {"ts": TS, "level": "info", "event": "session_closed", "process": "front"}


def taken(text: str, pid: int = 7) -> dict:
    """The line that comes of it, as its reader sees it."""
    text, fields = lines.checked(text.encode("utf-8"), "front")
    text, fields = lines.attested(text, fields, pid, *PERIOD)
    assert text.isascii() and text.isprintable()
    assert json.loads(text) == fields
    return json.loads(text)


def test_an_honest_line_stays_as_it_is_and_says_who_wrote_it():
    """One field more, behind all others; names outside ASCII and lists included."""
    fields = HEAD | {"user": "jös\\x01é", "cache_ms": 1.5, "messages": 3, "fault": None, "names": ["a", 1]}
    assert taken(json.dumps(fields)) == fields | {"pid": 7}
    assert list(taken(json.dumps(fields)))[-1] == "pid"
    assert taken(json.dumps(HEAD | {"event": "front_started", "pid": 7}))["pid"] == 7


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(HEAD | {"process": "auth"}),
        json.dumps(HEAD | {"process": ["front"]}),
        json.dumps(HEAD | {"event": "auth_started"}),
        json.dumps(HEAD | {"event": "broker_stopped"}),
        json.dumps(HEAD | {"event": "log_line_rejected"}),
        json.dumps(HEAD | {"event": ["session_closed"]}),
        json.dumps(HEAD | {"event": "x"}),
        json.dumps({name: value for name, value in HEAD.items() if name != "event"}),
        json.dumps(HEAD | {"level": "fatal"}),
        json.dumps(HEAD | {"level": {}}),
        json.dumps(HEAD | {"pid": 8}),
        json.dumps(HEAD | {"pid": True}),
        json.dumps(HEAD)[:-1] + ', "process": "front"}',
        json.dumps(HEAD)[:-1] + ', "pr\\u006fcess": "auth"}',
        json.dumps(HEAD | {"x": {"process": "auth"}}),
        json.dumps(HEAD | {"x": [[1]]}),
        json.dumps(HEAD | {"x\n": 1}),
        json.dumps(HEAD)[:-1] + ', "x": NaN}',
        json.dumps(HEAD)[:-1] + ', "x": 1e999}',
        json.dumps(HEAD | {f"x{number}": 1 for number in range(100)}),
        json.dumps(HEAD | {"x": "y" * MAX_LINE_OCTETS}),
        json.dumps(HEAD)[:-1],
        json.dumps(HEAD) + json.dumps(HEAD),
        json.dumps(HEAD)[:-1] + ', "x": "\u00e9"}',
        "[" * 4000,
        '{"x":' * 800,
        "[]",
        "{}",
        "",
        "\0",
        "broker_stopped",
    ],
)
def test_what_no_front_writes_is_no_line(text):
    """Whoever it is about, in whatever form: it never comes out."""
    with pytest.raises(lines.BadLine):
        taken(text)


def test_control_characters_are_shown_and_not_meant():
    """Not even a reader that decodes the JSON has one on the terminal."""
    assert taken(json.dumps(HEAD | {"user": "\x1b[2J\n", "x": ["\r"]}))["user"] == "\\x1b[2J\\n"
    assert taken(json.dumps(HEAD)[:-1] + ', "x": "\x7f\\ud800"}')["x"] == "\\x7f\\ud800"


@pytest.mark.parametrize("ts", ["2020-01-01T00:00:00.000Z", "2026-11-25T12:00:02.000Z", "2", 5, None])
def test_a_time_that_can_not_be_is_now(ts):
    """A line can't be put between those of another day; one that has waited for a moment keeps its own."""
    assert taken(json.dumps(HEAD | {"ts": ts}))["ts"] == PERIOD[1]
    assert taken(json.dumps(HEAD))["ts"] == TS


def test_a_field_that_looks_like_the_attested_one_is_none():
    """Octets in a value do not take its place."""
    assert taken(json.dumps(HEAD | {"user": '"pid": 8, '}))["pid"] == 7
