"""
PURE: following a name through tables of maps until it maps no further.

A `Table` is one or several maps that are read in one way. What a map says is a name that is
asked for again, until nothing is found, or a name maps to itself; a loop or a chain that
is too long is an error of the map (`MapLoop`). `Trace` is told of every step, for
`gpop virtusers lookup`. It knows no file: a map is whatever has `get`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpop.accounts.maps import postfix, sendmail
from gpop.accounts.maps.errors import MapError, MapLoop

# sendmail gives up after 50 (MaxRuleRecursion); Postfix after 1,000, which no login needs.
MAX_STEPS = 50
MAX_NAME_OCTETS = 255  # as in a LOGIN frame and in a passwd-file


class Map(Protocol):
    """One map: its name in the config, and what it has for a key."""

    name: str

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None if there is none. Raises MapError."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The name is no login's; `reason` is for the log, `text` what the map says."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A step: `map_name` was asked for `key`; `value` is None where it does not have it."""

    map_name: str
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Became:
    """A step: a value made `name` into `result`."""

    name: bytes
    result: bytes


Trace = Callable[[Asked | Became], None]


def no_trace(_step: Asked | Became) -> None:
    """What there is to say to who did not ask."""


class Table(Protocol):
    """Some maps that are read in one way."""

    def look_up(self, name: bytes, trace: Trace) -> list[bytes] | Rejected | None:
        """Return the names that `name` is mapped to, None if it is not. Raises MapError."""


class SendmailTable:
    """Maps with sendmail's order, for names in `domains` (all, if there are none given)."""

    def __init__(self, maps: Sequence[Map], domains: Sequence[str] = ()) -> None:
        self._maps = maps
        self._domains = frozenset(domain.lower().encode() for domain in domains)

    def look_up(self, name: bytes, trace: Trace) -> list[bytes] | Rejected | None:
        """See `Table`."""
        domain = name.rpartition(b"@")[2].lower()
        if self._domains and domain not in self._domains:
            return None
        for key, arguments in sendmail.patterns(name):
            value = _ask(self._maps, key, trace)
            if value is None:
                continue
            text = sendmail.rejection(value)
            if text is not None:
                return Rejected("virtual_user_rejected", _shown(text))
            return postfix.split_list(sendmail.rewrite(value, arguments))
        return None


class PostfixTable:
    """Maps with Postfix's order; `delimiters`, `propagate` and `is_local` as in `postfix`."""

    def __init__(
        self, maps: Sequence[Map], delimiters: str, propagate: bool, is_local: Callable[[bytes], bool]
    ) -> None:
        self._maps = maps
        self._delimiters = delimiters.encode()
        self._propagate = propagate
        self._is_local = is_local

    def look_up(self, name: bytes, trace: Trace) -> list[bytes] | Rejected | None:
        """See `Table`."""
        for key, extension in postfix.patterns(name, self._delimiters, self._is_local):
            value = _ask(self._maps, key, trace)
            if value is not None:
                return postfix.results(value, name, extension, self._propagate)
        return None


def _ask(maps: Sequence[Map], key: bytes, trace: Trace) -> bytes | None:
    """Ask every map for one key before anybody asks for another key, as Postfix does."""
    for each in maps:
        value = each.get(key)
        trace(Asked(each.name, key, value))
        if value is not None:
            return value
    return None


def resolve(table: Table, name: bytes, trace: Trace = no_trace) -> bytes | Rejected:
    """
    Follow `name` through `table`; return the name at the end of the way.

    Raises:
        MapLoop: there is no end.
        MapError: a map can't be asked, or says what can't be a name.
    """
    way = [name]
    while True:
        found = table.look_up(name, trace)
        if found is None or isinstance(found, Rejected):
            return name if found is None else found
        result = _the_one(found, name)
        if isinstance(result, Rejected):
            return result
        trace(Became(name, result))
        if _same(result, name):
            return result
        seen = any(_same(result, each) for each in way)
        way.append(result)
        if seen or len(way) > MAX_STEPS:
            words = "a loop" if seen else f"more than {MAX_STEPS} steps"
            raise MapLoop(f"{words}: {' -> '.join(map(_shown, way[-8:]))}")
        name = result


def _the_one(found: list[bytes], name: bytes) -> bytes | Rejected:
    """Return the one name of a value: mail may go to many, a login is one account's."""
    if not found:
        raise MapError(f"the entry for {_shown(name)} names nobody")
    # "joe: joe, archive@example.org" is how Postfix keeps a copy of joe's mail: joe is joe.
    result = next((each for each in found if _same(each, name)), found[0])
    if len(found) > 1 and not _same(result, name):
        text = f"{_shown(name)} is {len(found)} addresses: {', '.join(map(_shown, found[:8]))}"
        return Rejected("virtual_user_is_a_list", text)
    if not 0 < len(result) <= MAX_NAME_OCTETS or any(octet < 0x20 or octet == 0x7F for octet in result):
        raise MapError(f"the entry for {_shown(name)} is no login name: {_shown(result)}")
    return result


def _same(one: bytes, other: bytes) -> bool:
    return one == other or postfix.folded(one) == postfix.folded(other)


def _shown(octets: bytes) -> str:
    text = octets[:200].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
