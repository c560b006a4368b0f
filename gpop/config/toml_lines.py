"""
On which line of a TOML text each key and each array element stands.

`tomllib` gives values without positions, and an administrator who is told "line 31" finds the
mistake at once. This module reads a text that tomllib has already accepted, so it checks
nothing: it only follows the grammar far enough to know where things are.

It knows nothing of gpop's settings. Executed as root by the process that reads the config.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

Path = tuple[str | int, ...]

TOKEN = re.compile(
    r"""
      (?P<string> \"{3} (?: \\. | [^\\] )*? \"{3,5} (?!\") | '{3} .*? '{3,5} (?!')
                | " (?: \\. | [^"\\\n] )* " | ' [^'\n]* ' )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<word> [^\s\#\[\]{}=,."']+ )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


END = Token("end", "", 0)


def lines_of(text: str) -> dict[Path, int]:
    """
    Return the line (from 1) of every table, key and array element in a valid TOML `text`.

    Paths are as a program would index the parsed value: ("accounts", "sources", 0, "path").
    """
    reader = _Reader(text)
    reader.read_document()
    return reader.lines


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._tokens = list(_tokens(text))
        self._next = 0
        self._table: Path = ()
        # Path of each array of tables -> index of its last element, to which later headers refer.
        self._newest: dict[Path, int] = {}

    def read_document(self) -> None:
        while (token := self._peek()) is not END:
            if token.kind in ("newline", "comment"):
                self._take()
            elif token.text == "[":
                self._read_header()
            else:
                self._read_pair(self._table)

    def _read_header(self) -> None:
        line = self._take().line
        is_array = self._peek().text == "["
        if is_array:
            self._take()
        path: Path = ()
        words = self._read_key()
        for word in words[:-1]:
            path = self._into_newest((*path, word))
        path = (*path, words[-1])
        if is_array:
            self._newest[path] = self._newest.get(path, -1) + 1
            self.lines.setdefault(path, line)
            self._take()
        self._take()
        self._table = self._into_newest(path)
        self.lines[self._table] = line

    def _into_newest(self, path: Path) -> Path:
        return (*path, self._newest[path]) if path in self._newest else path

    def _read_pair(self, table: Path) -> None:
        line = self._peek().line
        path = table
        for word in self._read_key():
            path = (*path, word)
            self.lines.setdefault(path, line)
        self._take()
        self._read_value(path)

    def _read_key(self) -> list[str]:
        words = [_unquoted(self._take())]
        while self._peek().text == ".":
            self._take()
            words.append(_unquoted(self._take()))
        return words

    def _read_value(self, path: Path) -> None:
        opening = self._peek().text
        if opening == "[":
            self._read_array(path)
        elif opening == "{":
            self._read_inline_table(path)
        else:
            # A number with a fraction or a date is several tokens.
            while not (self._peek().kind in ("newline", "comment", "end") or self._peek().text in ",]}"):
                self._take()

    def _read_array(self, path: Path) -> None:
        self._take()
        index = 0
        while (token := self._peek()).text != "]":
            if token.kind in ("newline", "comment") or token.text == ",":
                self._take()
                continue
            element = (*path, index)
            self.lines[element] = token.line
            self._read_value(element)
            index += 1
        self._take()

    def _read_inline_table(self, path: Path) -> None:
        self._take()
        while (token := self._peek()).text != "}":
            if token.kind in ("newline", "comment") or token.text == ",":
                self._take()
            else:
                self._read_pair(path)
        self._take()

    def _peek(self) -> Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else END

    def _take(self) -> Token:
        token = self._peek()
        if token is END:
            raise ValueError("a TOML text that tomllib has not accepted")
        self._next += 1
        return token


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in TOKEN.finditer(text):
        yield Token(match.lastgroup or "", match.group(), line)
        line += match.group().count("\n")


def _unquoted(token: Token) -> str:
    if token.kind != "string":
        return token.text
    return str(tomllib.loads(f"key = {token.text}")["key"])
