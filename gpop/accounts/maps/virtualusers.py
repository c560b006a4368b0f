"""
EDGE: all that a config says of names and virtual users, from a typed name to an account's.

The order: `NameRules.login_name` (by auth itself, before its cache), sendmail's table, Postfix's
table, `NameRules.account_name` (by a checker). Auth calls `warm` once and `refresh` before each
checker; only a checker, or a command, calls `account_name`. Executed as root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpop.accounts.maps import grammar
from gpop.accounts.maps.compiled import CompiledMap
from gpop.accounts.maps.mapname import MapName
from gpop.accounts.maps.resolving import (
    PostfixTable,
    Rejected,
    SendmailTable,
    Table,
    Trace,
    no_trace,
    resolve,
)
from gpop.accounts.maps.textfile import TextMap
from gpop.accounts.names import NameRules

AnyMap = TextMap | CompiledMap


class Stage(NamedTuple):
    """One table, with what it is called."""

    label: str
    table: Table
    maps: Sequence[AnyMap]


class VirtualUsers:
    """
    The name rules and maps of one config; `settings` are AuthSettings.

    Attributes:
        rules: what is done with a name before and after the maps.
        stages: the tables in their order, only those that have maps.
    """

    def __init__(self, settings: Any) -> None:
        self.rules = NameRules(
            settings.virtual_case,
            settings.virtual_domain_separators,
            settings.virtual_default_domains,
            settings.virtual_local_domains,
        )
        sendmail = [open_map(name, grammar.SENDMAIL) for name in settings.virtual_sendmail_maps]
        postfix = [open_map(name, grammar.POSTFIX) for name in settings.virtual_postfix_maps]
        delimiters = settings.virtual_recipient_delimiter
        propagate = settings.virtual_propagate_extensions
        self.stages = [
            Stage("sendmail", SendmailTable(sendmail, settings.virtual_sendmail_domains), sendmail),
            Stage("Postfix", PostfixTable(postfix, delimiters, propagate, self.rules.is_local), postfix),
        ]
        self.stages = [stage for stage in self.stages if stage.maps]
        self._stale: set[str] = set()

    @property
    def maps(self) -> list[AnyMap]:
        """Every map."""
        return [each for stage in self.stages for each in stage.maps]

    def warm(self) -> None:
        """Load and read what checkers will need. Raises lmdbfile.LmdbMissing."""
        for each in self.maps:
            if isinstance(each, CompiledMap):
                each.warm()

    def watched_files(self) -> list[str]:
        """Return the files that an answer may have come from."""
        return [each.path if isinstance(each, TextMap) else each.map_name.file for each in self.maps]

    def refresh(self) -> Iterator[AnyMap]:
        """Read texts again that have changed; return them, and compiled maps that have become stale."""
        for each in self.maps:
            if isinstance(each, TextMap):
                if each.refresh():
                    yield each
            elif not each.is_stale():
                self._stale.discard(each.name)
            elif each.name not in self._stale:
                self._stale.add(each.name)
                yield each

    def account_name(self, name: bytes, trace: Trace = no_trace) -> bytes | Rejected:
        """
        Return the name of the account that the login name `name` means, as far as maps know.

        Raises:
            MapError: a map can't be asked; MapLoop: following it has no end.
        """
        for stage in self.stages:
            try:
                found = resolve(stage.table, name, trace)
            finally:
                # Before the next stage: LMDB opens no file twice in a process, and postmap waits for us.
                for each in stage.maps:
                    each.close()
            if isinstance(found, Rejected):
                return found
            name = found
        return self.rules.account_name(name)


def open_map(written: str, text_grammar: str) -> AnyMap:
    """Return the map that `written` names. Raises ValueError, see `MapName`."""
    map_name = MapName(written)
    if map_name.kind == "text":
        return TextMap(written, map_name.file, text_grammar)
    return CompiledMap(map_name)
