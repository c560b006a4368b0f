"""
The kinds of values a setting can accept: each says so in words, and checks one value.

A kind looks at the value alone, never at the machine or at another setting. Executed as root by
the short-lived process that reads the config.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpop.accounts.maps.mapname import TYPES, MapName
from gpop.accounts.names import ANY_ADDRESS

MAX_PORT = 65535
# Of a value, in a message about it.
LONGEST_VALUE = 100


class NotAcceptable(ValueError):
    """A value is not what its setting accepts; the text may say more than `Kind.words` does."""


class Kind(Protocol):
    """What a setting accepts: in words, and as a check that returns the value in its normal form."""

    @property
    def words(self) -> str: ...

    def check(self, value: object) -> Any: ...


@dataclass(frozen=True)
class Flag:
    words: str = "true or false"

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise NotAcceptable
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number; `true` is one in Python and is not one here."""

    low: int
    high: int

    @property
    def words(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def check(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise NotAcceptable
        return value


@dataclass(frozen=True)
class Seconds:
    low: float
    high: float = 86400

    @property
    def words(self) -> str:
        return f"a number of seconds from {self.low:g} to {self.high:g}"

    def check(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotAcceptable
        if isinstance(value, float) and not math.isfinite(value):  # an int may be too large to ask this of
            raise NotAcceptable
        if not self.low <= value <= self.high:
            raise NotAcceptable
        return value


@dataclass(frozen=True)
class Choice:
    choices: tuple[str, ...]

    @property
    def words(self) -> str:
        quoted = [json.dumps(choice) for choice in self.choices]
        return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))

    def check(self, value: object) -> str:
        if value not in self.choices:
            raise NotAcceptable(did_you_mean(value, self.choices))
        return str(value)


@dataclass(frozen=True)
class Text:
    """A string that matches `pattern` as a whole."""

    words: str
    pattern: str

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise NotAcceptable
        return value


@dataclass(frozen=True)
class RelativeFolder:
    words: str = 'a folder relative to the home, such as "Maildir"'

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[^\x00-\x1f\x7f]+", value):
            raise NotAcceptable
        if value.startswith(("/", "~")) or "%" in value or ".." in value.split("/"):
            raise NotAcceptable("it is looked up inside each home: no leading / or ~, no .., no %-variables")
        return value


@dataclass(frozen=True)
class ListenAddress:
    words: str = 'an IP address and a port, such as "127.0.0.1:110" or "[::1]:110"'

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise NotAcceptable
        host, colon, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            raise NotAcceptable(_hint_for_address(value)) from None
        if bracketed != (address.version == 6):
            raise NotAcceptable("an IPv6 address stands in square brackets, an IPv4 address does not")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > MAX_PORT:
            raise NotAcceptable("the port is a number from 0 to 65535; 0 takes any free one")
        return f"[{address}]:{int(port)}" if bracketed else f"{address}:{int(port)}"


def _hint_for_address(value: str) -> str:
    if value.startswith("*:"):
        return f'for every address of this machine say "0.0.0.0{value[1:]}" and "[::]{value[1:]}"'
    if value.count(":") > 1 and "[" not in value:
        return "an IPv6 address stands in square brackets"
    return "" if ":" in value else "the port is missing"


@dataclass(frozen=True)
class Network:
    words: str = 'an IP address or network, such as "192.0.2.0/24" or "2001:db8::/32"'

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise NotAcceptable
        try:
            return str(ipaddress.ip_network(value))
        except ValueError:
            pass
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise NotAcceptable from None
        raise NotAcceptable(f'the address has bits set behind the prefix; the network is "{network}"')


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate with its chain, and its key: two files, or one that holds all of it."""

    words: str = '["/path/of/chain.pem", "/path/of/key.pem"] or one file with both, "/path/of/both.pem"'

    def check(self, value: object) -> list[str]:
        files = [value, value] if isinstance(value, str) else value
        if not isinstance(files, list) or len(files) != CHAIN_AND_KEY:
            raise NotAcceptable
        if not all(isinstance(file, str) and re.fullmatch(r"/[^\x00-\x1f\x7f]+", file) for file in files):
            raise NotAcceptable("the paths are absolute")
        return files


CHAIN_AND_KEY = 2


@dataclass(frozen=True)
class MapFile:
    """A virtual user map."""

    words: str = f'a type ({", ".join(TYPES)}) and an absolute path, such as "hash:/etc/mail/virtusertable"'

    def check(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise NotAcceptable
        try:
            return MapName(value).written
        except ValueError as error:
            raise NotAcceptable(str(error)) from None


@dataclass(frozen=True)
class DomainOfAddress:
    """A table from addresses of this machine to domains."""

    words: str = 'a table from local addresses to domains, such as { "192.0.2.1" = "example.org" }'

    def check(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise NotAcceptable
        checked: dict[str, str] = {}
        for address, domain in value.items():
            if not isinstance(domain, str) or not re.fullmatch(DOMAIN_PATTERN, domain):
                raise NotAcceptable(f"{as_written(domain)} is no domain")
            try:
                key = address if address == ANY_ADDRESS else str(ipaddress.ip_address(address))
            except ValueError:
                raise NotAcceptable(f'{json.dumps(address)} is neither an IP address nor "*"') from None
            if key in checked:
                raise NotAcceptable(f"{json.dumps(address)} stands there twice")
            checked[key] = domain
        return checked


# Of any script, as names of clients are; no blank, no "@".
DOMAIN_PATTERN = r"[^\x00-\x20\x7f@%.]+(\.[^\x00-\x20\x7f@%.]+)*"


@dataclass(frozen=True)
class ListOf:
    """A list; `reading` checks the elements one by one so that each can be complained about."""

    element: Kind
    may_be_empty: bool

    @property
    def words(self) -> str:
        return f"a list, each {self.element.words}"

    def check(self, value: object) -> list[object]:
        if not isinstance(value, list):
            raise NotAcceptable
        if not value and not self.may_be_empty:
            raise NotAcceptable("the list must not be empty")
        return value


def did_you_mean(word: object, candidates: Sequence[str]) -> str:
    """Return `did you mean "..."?` for the candidate closest to `word`, or nothing."""
    close = difflib.get_close_matches(str(word), candidates, n=1)
    return f"did you mean {json.dumps(close[0])}?" if close else ""


def as_written(value: object) -> str:
    """Return a value roughly as it stands in TOML, on one line of bounded length."""
    if value is None:
        return ""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        return "..."  # nested too deeply, or a number of more digits than Python writes
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
