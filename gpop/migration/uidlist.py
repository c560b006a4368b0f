"""
dovecot-uidlist (versions 1 and 3) and courierimapuiddb: which number IMAP gave to which file.

    3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1
    25006 :1234567890.M20046P2137.mailserver,S=4542,W=4642
    25017 W2481 P000000ff O3 :1234567891.M1P2.mailserver:2,F

Pure. Version 1 has `1 VALIDITY NEXT`, then `UID NAME`; Courier's file is the same. A name is what the
file was last called: only its base counts. Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

from typing import NamedTuple

from gpop.maildrop import names
from gpop.migration.state import BadState, checked_name, lines, number_of

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Entry(NamedTuple):
    """A message; `fields` by letter, P (POP3 unique-id) and O (POP3 order) among them."""

    uid: int
    name: bytes
    fields: dict[bytes, bytes]


class UidList(NamedTuple):
    """A whole file; entries by base name, in the order of UIDs."""

    uid_validity: int
    entries: dict[bytes, Entry]


def parse(octets: bytes) -> UidList:
    """
    Return what a file says.

    Raises:
        BadState: it is damaged, or none.
    """
    numbered = lines(octets)
    _, first = next(numbered, (1, b""))
    version, uid_validity, next_uid = _header(first)
    entries: dict[bytes, Entry] = {}
    last = 0
    for number, line in numbered:
        entry = _entry(number, line) if version == 3 else _old_entry(number, line)
        if entry.uid <= last:
            raise BadState(number, f"the UID {entry.uid} follows {last}: they have to ascend")
        if version == 1 and entry.uid >= next_uid:
            raise BadState(number, f"the UID {entry.uid} is not below {next_uid}, the next one by line 1")
        last = entry.uid
        base = names.base_name(entry.name)
        entries.pop(base, None)  # one file was numbered anew: the later line holds
        entries[base] = entry
    return UidList(uid_validity, entries)


def _header(line: bytes) -> tuple[int, int, int]:
    """Return version, UIDVALIDITY, next UID."""
    version, _, rest = line.partition(b" ")
    if version == b"1":
        fields = rest.split(b" ")
        if len(fields) != 2:
            raise BadState(1, "not 1, UIDVALIDITY and the next UID")
        validity, following = fields
    elif version == b"3":
        values = {field[:1]: field[1:] for field in rest.split(b" ") if field}
        if any(key not in LETTERS for key in values):
            raise BadState(1, "a field that does not begin with a letter")
        validity, following = values.get(b"V", b""), values.get(b"N", b"")
    else:
        raise BadState(1, "not of version 1 or 3 of the format")
    return (
        int(version),
        number_of(validity, 1, "UIDVALIDITY", 1),
        number_of(following, 1, "the next UID", 1),
    )


def _old_entry(number: int, line: bytes) -> Entry:
    uid, _, name = line.partition(b" ")
    return Entry(number_of(uid, number, "the UID", 1), checked_name(name, number), {})


def _entry(number: int, line: bytes) -> Entry:
    digits, _, rest = line.partition(b" ")
    uid = number_of(digits, number, "the UID", 1)
    fields: dict[bytes, bytes] = {}
    while not rest.startswith(b":"):  # at a field's place: within a value it is nothing special
        field, found, rest = rest.partition(b" ")
        if not found:
            raise BadState(number, "no file name")
        if not field or field[:1] not in LETTERS:
            raise BadState(number, "a field that does not begin with a letter")
        fields[field[:1]] = field[1:]
    if b"O" in fields:
        number_of(fields[b"O"], number, "the POP3 order")
    return Entry(uid, checked_name(rest[1:], number), fields)


def orders(entries: dict[bytes, Entry]) -> dict[bytes, int]:
    """Return the place of each message in POP3: those with O first, by that, then the others; by UID."""
    if not any(b"O" in entry.fields for entry in entries.values()):
        return {base: entry.uid for base, entry in entries.items()}
    ranked = sorted(
        entries.values(),
        key=lambda entry: (b"O" not in entry.fields, int(entry.fields.get(b"O", 0)), entry.uid),
    )
    return {names.base_name(entry.name): place for place, entry in enumerate(ranked, 1)}
