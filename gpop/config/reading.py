"""
The config file: read, check, and hand each process the settings it needs.

`load` reports every problem at once, each with its key, its line in the file, the value found and
what would be accepted. Errors keep gpop from starting (and a reload from happening); warnings are
printed and logged, and the administrator may have reasons. What settings there are is described in
settings.py; what only the machine can tell (users, files, root) is asked in machine.py.

Executed as root, but by no lasting process: `read-config FILE` prints the settings
and ends, so that broker and sessions carry neither a TOML parser nor these modules.
"""

from __future__ import annotations

import copy
import ipaddress
import marshal
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any, TypeVar

from gpop.accounts.maps.mapname import MapName
from gpop.config import (
    AuthSettings,
    BrokerSettings,
    Config,
    ConfigErrors,
    FrontSettings,
    LogSettings,
    MetricsSettings,
    Problem,
    SessionSettings,
    toml_lines,
)
from gpop.config.kinds import Kind, ListOf, NotAcceptable, as_written, did_you_mean
from gpop.config.settings import SECTIONS, SETTING_OF_KEY, SETTINGS, SOURCE_TYPE, SOURCES, Setting


def load(path: str) -> Config:
    """
    Read and check the config file at `path`, on the machine that is to run it.

    Raises:
        ConfigErrors: with every problem found, and the warnings.
    """
    from gpop.config import machine

    reading = read(path)
    if not reading.unreadable:
        machine.check(reading)
    if reading.errors:
        raise ConfigErrors(sorted(reading.errors, key=_place), sorted(reading.warnings, key=_place))
    return reading.config()


def _place(problem: Problem) -> tuple[str, int]:
    return problem.path, problem.line


def read(path: str) -> Reading:
    """Read `path` and check what the file alone can tell, without looking at the machine."""
    reading = Reading(path)
    document = reading.parse()
    if document is not None:
        reading.check_section((), document)
        reading.check_sources(document)
        folder = os.path.dirname(os.path.abspath(path))
        reading.values["user_settings"] = os.path.join(folder, reading.values["user_settings"])
        _check_combinations(reading)
    return reading


class Reading:
    """One reading of a config file: the values so far, and the problems found."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.values: dict[str, Any] = {each.field: copy.copy(each.default) for each in SETTINGS}
        self.values["sources"] = []
        # What the machine says of tls.certificates, and of server.seccomp.
        self.values["certificate_ends"] = {}
        self.values.update(session_calls=b"", service_calls=b"", log_calls=b"")
        # The good elements of lists with their places, for checks that compare them.
        self.elements: dict[str, list[tuple[toml_lines.Path, Any]]] = {
            each.field: [((*each.key.split("."), index), value) for index, value in enumerate(each.default)]
            for each in SETTINGS
            if isinstance(each.kind, ListOf)
        }
        self.elements["sources"] = []
        # Set if the text could not be parsed at all, so that nothing is known about its settings.
        self.unreadable = False
        self._lines: dict[toml_lines.Path, int] = {}

    def config(self) -> Config:
        return Config(
            self._pick(BrokerSettings),
            self._pick(FrontSettings),
            self._pick(AuthSettings),
            self._pick(SessionSettings),
            self._pick(MetricsSettings),
            self._pick(LogSettings),
            sorted(self.warnings, key=_place),
        )

    def _pick(self, settings_class: type[Settings]) -> Settings:
        return settings_class(**{each.name: self.values[each.name] for each in fields(settings_class)})

    # Reporting

    def error(self, where: toml_lines.Path, text: str, value: object = None) -> None:
        self.errors.append(self._problem(where, text, value))

    def warn(self, where: toml_lines.Path, text: str, value: object = None) -> None:
        self.warnings.append(self._problem(where, text, value))

    def warn_about_file(self, path: str, line: int, text: str) -> None:
        """A warning about another file that the settings name."""
        self.warnings.append(Problem(path, line, "", "", text))

    def _problem(self, where: toml_lines.Path, text: str, value: object) -> Problem:
        written = as_written(value)
        if written and where not in self._lines:
            written += " (the default)"
        return Problem(self.path, self._line_of(where), _dotted(where), written, text)

    def _line_of(self, where: toml_lines.Path) -> int:
        """The line of `where`, or of the closest thing around it that stands in the file; 0 if none does."""
        while where and where not in self._lines:
            where = where[:-1]
        return self._lines.get(where, 0)

    # Reading

    def parse(self) -> dict[str, Any] | None:
        """Return the document, or None after reporting why there is none."""
        try:
            text = _text_of(self.path)
            document = tomllib.loads(text)
            self._lines = toml_lines.lines_of(text)
        except OSError as error:
            self._give_up(0, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            octet = error.object[error.start]
            self._give_up(line, f"octet 0x{octet:02x} is not UTF-8, which TOML is written in")
        except tomllib.TOMLDecodeError as error:
            self._give_up(*_explain_syntax(str(error), text))
        except RecursionError:
            self._give_up(0, "arrays or tables are nested deeper than can be read")
        except ValueError:  # Python's own limit, of some 4,000
            self._give_up(0, "a number in it has more digits than can be read")
        else:
            return document
        return None

    def _give_up(self, line: int, text: str) -> None:
        self.unreadable = True
        self.errors.append(Problem(self.path, line, "", "", text))

    def check_section(self, section: tuple[str, ...], table: Mapping[str, Any]) -> None:
        """Check the keys of one table and of the tables in it."""
        for name, value in table.items():
            where = (*section, name)
            # A quoted key may hold a dot; no setting's name does.
            key = "" if "." in name else ".".join(where)
            if key in SETTING_OF_KEY:
                self._check_setting(where, SETTING_OF_KEY[key], value)
            elif key in SECTIONS and isinstance(value, dict):
                self.check_section(where, value)
            elif key in SECTIONS:
                self.error(where, f"this is a section: write [{key}] on a line and its settings below", value)
            elif key != "accounts.sources":
                self.error(where, _unknown(where), value)

    def _check_setting(self, where: toml_lines.Path, setting: Setting, value: object) -> None:
        checked = self.check_value(where, setting.kind, value)
        if isinstance(setting.kind, ListOf) and isinstance(checked, list):
            places = [(*where, index) for index in range(len(checked))]
            checked = list(map(self.check_value, places, repeat(setting.kind.element), checked))
            pairs = zip(places, checked, strict=True)
            self.elements[setting.field] = [(place, each) for place, each in pairs if each is not None]
            checked = [each for each in checked if each is not None]
        if checked is not None:
            self.values[setting.field] = checked

    def check_value(self, where: toml_lines.Path, kind: Kind, value: object) -> Any:
        """Return the value in its normal form, or None after reporting it."""
        try:
            return kind.check(value)
        except NotAcceptable as error:
            self.error(where, "; ".join(filter(None, (f"expected {kind.words}", str(error)))), value)
            return None

    def check_sources(self, document: Mapping[str, Any]) -> None:
        """Check [[accounts.sources]]."""
        accounts = document.get("accounts")
        sources = accounts.get("sources", []) if isinstance(accounts, dict) else []
        if not isinstance(sources, list) or not all(isinstance(each, dict) for each in sources):
            self.error(("accounts", "sources"), "expected tables, each headed [[accounts.sources]]", sources)
        elif not sources:
            text = 'nobody could log in: add [[accounts.sources]] with type = "pam" or type = "passwd-file"'
            self.error(("accounts", "sources"), text)
        else:
            for index, source in enumerate(sources):
                self._check_source(("accounts", "sources", index), source)

    def _check_source(self, where: toml_lines.Path, source: Mapping[str, Any]) -> None:
        if "type" not in source:
            self.error(where, f"the type is missing: expected type = {SOURCE_TYPE.words}")
            return
        source_type = self.check_value((*where, "type"), SOURCE_TYPE, source["type"])
        if source_type is None:
            return
        known = {setting.name: setting for setting in SOURCES[source_type]}
        plain = {"type": source_type}
        for name in source.keys() - known.keys() - {"type"}:
            hint = did_you_mean(name, tuple(known)) or f"known are {', '.join(known)}"
            text = f"a source of type {source_type} has no such setting; {hint}"
            self.error((*where, name), text, source[name])
        for name, setting in known.items():
            if name not in source and setting.default is None:
                self.error(where, f"{name} is missing: expected {setting.kind.words}")
            else:
                value = source.get(name, setting.default)
                plain[name] = self.check_value((*where, name), setting.kind, value)
        if plain.get("path"):
            plain["path"] = os.path.join(os.path.dirname(os.path.abspath(self.path)), plain["path"])
        if plain in self.values["sources"]:
            self.error(where, "the same source stands here for the second time", plain)
        elif None not in plain.values():
            self.values["sources"].append(plain)
            self.elements["sources"].append((where, plain))


Settings = TypeVar(
    "Settings", BrokerSettings, FrontSettings, AuthSettings, SessionSettings, MetricsSettings, LogSettings
)


def _check_combinations(reading: Reading) -> None:
    """What is acceptable value by value and still worth an error or a warning."""
    addresses = {address for _, address in reading.elements["listen"] + reading.elements["listen_tls"]}
    _check_metrics(reading, addresses)
    _check_listening(reading, addresses)
    _check_cleartext(reading)
    _check_proxies(reading, addresses)
    _check_maps(reading)
    _check_sessions(reading)


def _check_listening(reading: Reading, addresses: set[str]) -> None:
    """Whether each address is listened on once, and there is TLS where it is to be."""
    values = reading.values
    seen: set[str] = set()
    for where, address in reading.elements["listen"] + reading.elements["listen_tls"]:
        host, _, port = address.rpartition(":")
        including = f"[::]:{port}" if host.startswith("[") else f"0.0.0.0:{port}"
        if port != "0" and address in seen:
            reading.error(where, "this address is listened on twice", address)
        elif port != "0" and including in addresses - {address}:
            reading.error(where, f'"{including}" already includes this address', address)
        seen.add(address)
    if values["listen_tls"] and not values["tls_certificates"]:
        text = "without a certificate there is no TLS: set tls.certificates"
        reading.error(("server", "listen_tls"), text, values["listen_tls"])


def _check_maps(reading: Reading) -> None:
    for key in ("virtual_sendmail_maps", "virtual_postfix_maps"):
        files: set[str] = set()
        for where, name in reading.elements[key]:
            file = MapName(name).file
            if file in files:
                reading.error(where, f"{file} stands here for the second time", name)
            files.add(file)


def _check_sessions(reading: Reading) -> None:
    """What breaks the standard, surprises users, or lets nobody in."""
    values = reading.values
    if values["autologout_s"] < RFC_AUTOLOGOUT_S:
        text = f"below the {RFC_AUTOLOGOUT_S} seconds that RFC 1939 section 3 demands at least"
        reading.warn(("session", "autologout_s"), text, values["autologout_s"])
    if values["expire_retrieved_days"] == 0:
        text = "removes what was retrieved at once, also for clients that are set to leave it on the server"
        reading.warn(("session", "expire_retrieved_days"), text, 0)
    if values["last_valid_uid"] < values["first_valid_uid"]:
        text = f"below accounts.first_valid_uid, {values['first_valid_uid']}: nobody could log in"
        reading.error(("accounts", "last_valid_uid"), text, values["last_valid_uid"])
    if not values["lock"]:
        text = "two sessions may use one maildrop at once, which RFC 1939 section 8 forbids"
        reading.warn(("session", "lock"), text, False)


def _check_cleartext(reading: Reading) -> None:
    """Whether an address that others can reach is one where they can log in."""
    values = reading.values
    trusted = [ipaddress.ip_network(each) for each in values["trusted_networks"]]
    allowed = values["cleartext"] == "always" or (
        values["cleartext"] == "trusted" and not all(each.is_loopback for each in trusted)
    )
    if values["tls_certificates"] or values["xclient_networks"] or allowed:
        return
    for where, address in reading.elements["listen"]:
        loopback = ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
        if not loopback and address not in values["proxy_listen"]:  # a balancer may have the TLS
            text = "without a certificate no password is taken from other machines: set tls.certificates"
            reading.warn(where, text, address)


def _check_metrics(reading: Reading, addresses: set[str]) -> None:
    for where, address in reading.elements["metrics_listen"]:
        host, _, port = address.rpartition(":")
        if port != "0" and address in addresses:
            reading.error(where, "mail is served there; expected an address of its own", address)
        if not ipaddress.ip_address(host.strip("[]")).is_loopback:
            text = "whoever can reach this address can read the metrics: nobody is asked for a password"
            reading.warn(where, text, address)


def _check_proxies(reading: Reading, addresses: set[str]) -> None:
    """Whether the addresses for load balancers are listened on, and somebody may connect there."""
    values = reading.values
    for where, address in reading.elements["proxy_listen"]:
        if address not in addresses:
            text = "not an address of server.listen or server.listen_tls; expected one that stands there too"
            reading.error(where, text, address)
    if values["proxy_listen"] and not values["proxy_networks"]:
        text = "nobody may connect to the addresses of server.proxy_listen; expected the balancers' addresses"
        reading.error(("server", "proxy_networks"), text, [])
    elif values["proxy_networks"] and not values["proxy_listen"]:
        text = "without server.proxy_listen nobody sends a PROXY header, and these are trusted for nothing"
        reading.warn(("server", "proxy_networks"), text)
    for key in ("proxy_networks", "xclient_networks"):
        for where, network in reading.elements[key]:
            if network in EVERYBODY:
                text = "everybody may take any address for their own, so that penalties stop nobody"
                reading.warn(where, text, network)


EVERYBODY = ("0.0.0.0/0", "::/0")
RFC_AUTOLOGOUT_S = 600


def _text_of(path: str) -> str:
    with open(path, "rb") as file:
        # Editors of Windows begin a file with the mark, and end its lines like this.
        return file.read().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")


def _explain_syntax(message: str, text: str) -> tuple[int, str]:
    """The line and the words of a TOMLDecodeError, which names the place in its text only."""
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if not found:
        return 0, f"not TOML: {message}"
    line = int(found[1]) if found[1] else text.removesuffix("\n").count("\n") + 1
    column = f" (column {found[2]})" if found[2] else " (the file ends too early)"
    # A cannot-overwrite message is about a key or table that stands twice.
    hint = "; it stands there twice" if "overwrite" in message or "twice" in message else ""
    return line, f"not TOML: {message[: found.start()]}{column}{hint}"


def _unknown(where: tuple[str, ...]) -> str:
    known = [*SETTING_OF_KEY, *SECTIONS, "accounts.sources"]
    elsewhere = [key for key in known if key.rpartition(".")[2] == where[-1]]
    hint = f'did you mean "{elsewhere[0]}"?' if elsewhere else did_you_mean(".".join(where), known)
    return "; ".join(filter(None, ("unknown setting", hint)))


def _dotted(where: toml_lines.Path) -> str:
    """("accounts", "sources", 0, "path") as an administrator counts: accounts.sources[1].path"""
    words = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where)
    return words.removeprefix(".")


def main(arguments: Sequence[str]) -> int:
    """Print the settings in `arguments[0]` for `programs.config_answer`; 1 if they cannot be used."""
    answer: dict[str, Any]
    try:
        config = load(arguments[0])
        answer = {"settings": config.as_plain(), "warnings": [str(each) for each in config.warnings]}
    except ConfigErrors as error:
        answer = {
            "errors": [str(each) for each in error.problems],
            "warnings": [str(each) for each in error.warnings],
        }
    sys.stdout.buffer.write(marshal.dumps(answer))
    sys.stdout.flush()
    return 1 if "errors" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
