"""
EDGE: a map as text, kept in memory and read again when it has changed. Executed by auth, as root.

As bounded as a passwd-file. A line that is no entry costs nobody else anything; the problems
are there to be reported.
"""

from __future__ import annotations

from gpop.accounts.maps import grammar
from gpop.accounts.maps.errors import MapError
from gpop.accounts.rereading import RereadFile


class TextMap(RereadFile):
    """The map `name`, the text at `path` in one of grammar.GRAMMARS; see `resolving.Map`."""

    def __init__(self, name: str, path: str, text_grammar: str) -> None:
        super().__init__(path)
        self.name = name
        self._values: dict[bytes, bytes] = {}
        self._grammar = text_grammar

    def __len__(self) -> int:
        return len(self._values)

    def take_in(self, octets: bytes, mode: int) -> None:
        """See `RereadFile`."""
        entries = grammar.parse(octets, self._grammar)
        self._values = entries.values
        self.problems, self.problem_count = entries.problems, entries.problem_count

    def close(self) -> None:
        """Nothing is open."""

    def get(self, key: bytes) -> bytes | None:
        """See `resolving.Map`."""
        if self.fault:
            raise MapError(f"{self.name}: {self.fault}")
        return self._values.get(key)
