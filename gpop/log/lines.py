"""
What may stand in a line of the log that comes from a process without rights, and what becomes of it.

Such a process may have been taken over by whoever it talks to. So it is believed about what happened
to it, and about nothing else: not who it is, not that it is another's event, not a time long past. Nothing
here reads or writes anything. Executed by the log process, as the service user.
"""

from __future__ import annotations

import json
from typing import Any

from gpop.events import EVENTS_BY_PIPE, MAX_LINE_OCTETS, SEVERITIES, printable_text
from gpop.json_text import json_text

# A line of gpop's own has some 30; more of them make nothing clearer.
MOST_FIELDS = 64
SCALARS = frozenset((str, int, float, bool, type(None)))


class BadLine(Exception):
    """A line that no correct process writes; the text says what is wrong, never what it held."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two values with one name some readers take the first, some the last: not what was checked, perhaps.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadLine("a name stands in it twice")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise BadLine("a number in it is infinite")
    return number


def _no_number(_text: str) -> None:
    raise BadLine("a number in it is none of JSON's")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_float=_finite, parse_constant=_no_number
)


def checked(octets: bytes, process: str) -> tuple[str, dict[str, Any]]:
    """
    Return a line, without its end, as text and as fields, if `process` ("front", "metrics") may write it.

    Raises:
        BadLine: it may not, or it is no line.
    """
    if len(octets) >= MAX_LINE_OCTETS:
        raise BadLine("it is too long")
    text = _text(octets)
    try:
        fields = _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise BadLine("it is not JSON") from None
    if type(fields) is not dict:
        raise BadLine("it is no object")
    if fields.get("process") != process:
        raise BadLine("it is in the name of another process")
    event = fields.get("event")
    if type(event) is not str or event not in EVENTS_BY_PIPE[process]:
        raise BadLine("its event is none of this process's")
    level = fields.get("level")
    if type(level) is not str or level not in SEVERITIES:
        raise BadLine("its level is none")
    _check_fields(fields)
    if "\\" in text or not text.isprintable():
        fields = {name: _printable(value) for name, value in fields.items()}
        text = json_text(fields)
    return text, fields


def _text(octets: bytes) -> str:
    try:
        text = octets.decode("ascii")
    except UnicodeDecodeError:
        raise BadLine("it is not ASCII") from None
    if text[:1] != "{" or text[-1:] != "}":
        raise BadLine("it is no object")
    return text


def _check_fields(fields: dict[str, Any]) -> None:
    """Names are names, and values what `json_text` takes: none has a depth that a reader would not expect."""
    if len(fields) > MOST_FIELDS or not all(map(str.isidentifier, fields)):
        raise BadLine("its fields are not those of an event")
    kinds = set(map(type, fields.values()))
    if kinds <= SCALARS:
        return
    items = [item for value in fields.values() if type(value) is list for item in value]
    if not kinds <= SCALARS | {list} or not set(map(type, items)) <= SCALARS:
        raise BadLine("a field of it is more than a value or a list")


def _printable(value: Any) -> Any:
    """Whatever is shown by somebody's terminal, with `jq -r` say, moves no cursor there."""
    if isinstance(value, str):
        return printable_text(value)
    return [_printable(item) for item in value] if isinstance(value, list) else value


def attested(
    text: str, fields: dict[str, Any], pid: int, earliest: str, latest: str
) -> tuple[str, dict[str, Any]]:
    """
    Return a checked line with what is known of who wrote it, its `pid`, and with a time that can be.

    `earliest` and `latest` are times as in `ts`; what says to be from before or after that is from `latest`.

    Raises:
        BadLine: it says that it is from another process.
    """
    if fields.setdefault("pid", pid) != pid or type(fields["pid"]) is not int:
        raise BadLine("it is in the name of another process")
    ts = fields.get("ts")
    if type(ts) is not str or len(ts) != len(latest) or not earliest <= ts <= latest:
        fields["ts"] = latest
        text = json_text(fields)
    elif '"pid": ' not in text:
        text = f'{text[:-1]}, "pid": {pid}}}'
    else:
        # It is there already, or these octets stand in a value.
        text = json_text(fields)
    if len(text) >= MAX_LINE_OCTETS:
        raise BadLine("it is too long")
    return text, fields
