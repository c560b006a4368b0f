"""
PURE: values as JSON, for the log.

The standard library's encoder would bring `re`, `enum` and a shared library into the broker, a
megabyte that every session copies the page tables of. A log line's values are few and simple.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def json_text(value: Any) -> str:
    """
    Return the JSON (RFC 8259) of None, a boolean, number or text, or of a list or dict of these, in ASCII.

    Raises:
        TypeError: it is something else, or a number that JSON has no form for.
    """
    if isinstance(value, str):
        return _quoted(value)
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and value - value == 0:  # neither infinite nor not a number
        return float.__repr__(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([json_text(item) for item in value]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join([f"{_quoted(name)}: {json_text(item)}" for name, item in value.items()]) + "}"
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _quoted(text: str) -> str:
    plain = text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~":
        return character
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000  # beyond 16 bits JSON wants a pair of surrogates
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
