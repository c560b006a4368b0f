"""
PURE: the text of a map, as postmap and makemap read it: entries, and lines that are none.

Both want a key, blanks and a value on a line. Postfix lets an entry go on in lines that begin with
a blank; makemap takes such a line for an error. Keys are folded as the compiled map would have
them. Of two entries with one key the first holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpop.accounts.maps import postfix

SENDMAIL, POSTFIX = GRAMMARS = ("sendmail", "postfix")
BLANKS = b" \t\r\f\v"
MAX_ENTRY_OCTETS = 65536
MAX_PROBLEMS = 100  # reported one by one; the rest is a number


class Entries:
    """
    What a text holds.

    Attributes:
        values: by folded key.
        problems: (line number, text) of the first MAX_PROBLEMS lines that are no entry.
        problem_count: all of them.
        duplicates: of these, lines whose key stands there before.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.problems: list[tuple[int, str]] = []
        self.problem_count = 0
        self.duplicates = 0

    def report(self, line: int, text: str) -> None:
        """Note a line that is no entry."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append((line, text))

    def add(self, line: int, entry: bytes, fold: Callable[[bytes], bytes]) -> None:
        """Take in one logical line."""
        if len(entry) > MAX_ENTRY_OCTETS:
            self.report(line, f"{len(entry)} octets, at most {MAX_ENTRY_OCTETS} are allowed")
            return
        if b"\0" in entry:
            self.report(line, "a NUL octet")
            return
        key, _, value = _parts(entry)
        if not value:
            self.report(line, "a key without a value; expected: key, blanks, value")
            return
        if entry.startswith(b'"') and not key.count(b'"') > 1:
            self.report(line, "a quote that does not end")
            return
        key = fold(key)
        if key in self.values:
            self.duplicates += 1
            self.report(
                line, f"{key.decode('utf-8', 'backslashreplace')!r} stands there already; the first holds"
            )
            return
        self.values[key] = value


def _parts(entry: bytes) -> tuple[bytes, bytes, bytes]:
    """Return (key, blank, value) of a logical line; a quoted local part may hold blanks."""
    end = entry.find(b'"', 1) if entry.startswith(b'"') else 0
    place = next((place for place in range(max(end, 0), len(entry)) if entry[place] in BLANKS), len(entry))
    return entry[:place], entry[place : place + 1], entry[place:].strip(BLANKS)


def parse(octets: bytes, grammar: str) -> Entries:
    """Return what `octets` hold."""
    entries = Entries()
    if grammar == POSTFIX:
        for line, entry in _postfix_lines(octets, entries):
            entries.add(line, entry, postfix.folded)
    else:
        for line, entry in _sendmail_lines(octets, entries):
            entries.add(line, entry, bytes.lower)
    return entries


def _sendmail_lines(octets: bytes, entries: Entries) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(octets.split(b"\n"), start=1):
        if line[:1] in (b"", b"#") or not line.strip(BLANKS):
            continue
        if line[0] in BLANKS:
            entries.report(number, "begins with a blank; an entry begins with its key")
        else:
            yield number, line


def _postfix_lines(octets: bytes, entries: Entries) -> Iterator[tuple[int, bytes]]:
    """Put logical lines together: blank lines and comments may stand within one."""
    begin, logical = 0, b""
    for number, line in enumerate(octets.split(b"\n"), start=1):
        text = line.strip(BLANKS)
        if not text or text.startswith(b"#"):
            continue
        if line[0] not in BLANKS:
            if begin:
                yield begin, logical
            begin, logical = number, line
        elif begin:
            logical = logical[: MAX_ENTRY_OCTETS + 1] + line
        else:
            entries.report(number, "goes on with an entry, and there is none before it")
    if begin:
        yield begin, logical
