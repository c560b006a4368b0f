"""
Dovecot's `pop3_uidl_format`: how a unique-id is made of UID, UIDVALIDITY, file name and GUID.

    %08Xu%08Xv        %{uid | hex(8)}%{uidvalidity | hex(8)}        %v.%u        %f        %g        %Mf

Pure. Both spellings are understood, that of 2.3 and before and that of 2.4; what is not is refused, not
guessed. Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple

# What other servers than Dovecot do with the same numbers.
WELL_KNOWN = {
    "dovecot": "%08Xu%08Xv",
    "uw": "%08Xv%08Xu",
    "cyrus": "%v.%u",
    "cyrus-old": "%u",
    "cyrus-courier": "%v-%u",
    "stalwart": "%v%u",
}
DEFAULT = "dovecot"
VARIABLES = {"u": "uid", "v": "uidvalidity", "f": "filename", "g": "guid"}
MAX_WIDTH = 70

SHORT = re.compile(r"%(0?)(\d{0,2})([XMLU]*)([a-zA-Z%])")
LONG = re.compile(r"%\{([^{}]*)\}")
HEX = re.compile(r"hex\((\d{1,2})\)")


class BadFormat(Exception):
    """The format is none that is understood; the text says what of it."""


class Facts(NamedTuple):
    """What a message's id can be made of; no `guid`: the base name stands for it."""

    uid: int
    uidvalidity: int
    filename: bytes
    guid: bytes = b""

    def value(self, variable: str) -> int | bytes:
        if variable == "guid":
            return self.guid or self.filename
        value: int | bytes = getattr(self, variable)
        return value


# One step of making a value: hexadecimal, MD5, padding, ...
Step = Callable[["int | bytes"], "int | bytes"]


class Format:
    """A format, understood."""

    def __init__(self, text: str) -> None:
        """`text` may also be one of WELL_KNOWN. Raises BadFormat."""
        self._pieces: list[bytes | tuple[str, list[Step]]] = []
        rest = WELL_KNOWN.get(text, text)
        while rest:
            literal = rest.partition("%")[0]
            self._pieces.append(_ascii(literal))
            rest = rest[len(literal) :]
            if rest:
                rest = self._take(rest)
        if not any(isinstance(piece, tuple) for piece in self._pieces):
            raise BadFormat(f"{text!r}: every message would have the same id")

    def _take(self, rest: str) -> str:
        """Understand the variable that `rest` begins with; returns what follows it."""
        if found := LONG.match(rest):
            self._pieces.append(_long(found[1]))
        elif (found := SHORT.match(rest)) is None:
            raise BadFormat(f"{rest[:12]!r}: not a variable")
        elif found[4] == "%":
            self._pieces.append(b"%")
        else:
            self._pieces.append(_short(*found.groups()))
        return rest[found.end() :]

    def expand(self, facts: Facts) -> bytes:
        """Return the unique-id of a message."""
        made = []
        for piece in self._pieces:
            if isinstance(piece, bytes):
                made.append(piece)
                continue
            variable, steps = piece
            value = facts.value(variable)
            for step in steps:
                value = step(value)
            made.append(_octets(value))
        return b"".join(made)


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise BadFormat(f"{text!r}: only ASCII can be part of a unique-id") from None


def _octets(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else b"%d" % value


def _short(zero: str, width: str, modifiers: str, letter: str) -> tuple[str, list[Step]]:
    if letter not in VARIABLES:
        hint = " (of mbox files)" if letter == "m" else ""
        raise BadFormat(f"%{letter}: a variable that is not known here{hint}; known are %u %v %f %g")
    steps: list[Step] = [MODIFIERS[modifier] for modifier in modifiers]
    if width and int(width):
        steps.append(_padded(int(width)) if zero else _cut(int(width)))
    return VARIABLES[letter], steps


def _long(text: str) -> tuple[str, list[Step]]:
    variable, *filters = (word.strip() for word in text.split("|"))
    if variable not in VARIABLES.values():
        known = " ".join(VARIABLES.values())
        raise BadFormat(f"%{{{variable}}}: a variable that is not known here; known are {known}")
    steps: list[Step] = []
    for word in filters:
        if found := HEX.fullmatch(word):
            steps += [_hex, _padded(int(found[1]))]
        elif word in FILTERS:
            steps.append(FILTERS[word])
        else:
            raise BadFormat(
                f"{word!r}: a filter that is not known here; known are hex(N) {' '.join(FILTERS)}"
            )
    return variable, steps


def _hex(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        if not value.isdigit() or len(value) > MAX_WIDTH:
            return b""  # which no message may have as its id, so that is a doubt
        value = int(value)
    return b"%x" % value


def _md5(value: int | bytes) -> bytes:
    return hashlib.md5(_octets(value), usedforsecurity=False).hexdigest().encode()


def _padded(width: int) -> Step:
    return lambda value: _octets(value).rjust(min(width, MAX_WIDTH), b"0")


def _cut(width: int) -> Step:
    return lambda value: _octets(value)[:width]


MODIFIERS: dict[str, Step] = {
    "X": _hex,
    "M": _md5,
    "L": lambda value: _octets(value).lower(),
    "U": lambda value: _octets(value).upper(),
}
FILTERS: dict[str, Step] = {
    "hex": _hex,
    "md5": _md5,
    "hexlify": _octets,  # of an MD5, which is in hex here already
    "lower": MODIFIERS["L"],
    "upper": MODIFIERS["U"],
}
