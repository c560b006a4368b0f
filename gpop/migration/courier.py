"""
courierpop3dsizelist: the ids of Courier's POP3 server.

    /3 26 1275660208
    1234567890.M20046P2137.mailserver,S=4542:2,S 4642 17:1275660208:0

Pure. Versions 2 and 3. (courierimapuiddb, which is IMAP's, has dovecot-uidlist's old format: `uidlist`.)
Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

from gpop.maildrop import names
from gpop.migration.plan import ForeignId
from gpop.migration.state import BadState, checked_name, lines, number_of

VERSIONS = {b"/2": 2, b"/3": 3}  # by the number of fields after the size: without and with the UTF-8 flag
# Shown as they are where the name itself is the id; all others are +XX.
ESCAPED = b"'\"+"
PLAIN = bytes(octet for octet in names.GRAPHIC if octet not in ESCAPED)
MAX_SIZE_DIGITS = 15


def parse(octets: bytes) -> list[ForeignId]:
    """
    Return the ids in a file.

    Raises:
        BadState: it is damaged, or none.
    """
    numbered = lines(octets)
    _, first = next(numbered, (1, b""))
    fields = first.split(b" ")
    if fields[0] not in VERSIONS:
        raise BadState(1, "does not begin with /2 or /3: a version that Courier itself ignores")
    if len(fields) not in (2, 3):
        raise BadState(1, "not version, next number and UIDVALIDITY")
    for field in fields[1:]:
        number_of(field, 1, "the next number, or UIDVALIDITY,")
    return [_entry(number, line, VERSIONS[fields[0]]) for number, line in numbered]


def _entry(number: int, line: bytes, fields: int) -> ForeignId:
    name, size, said = _from_the_right(line, number)
    if not (size.isdigit() and len(size) <= MAX_SIZE_DIGITS):
        raise BadState(number, "the size is not a number")
    parts = said.split(b":")
    if not 2 <= len(parts) <= fields:
        raise BadState(number, "the id is not a number, UIDVALIDITY and a flag")
    counter = number_of(parts[0], number, "the message's number")
    validity = number_of(parts[1], number, "UIDVALIDITY")
    # The flag is left alone: releases of 2018 got it wrong.
    return ForeignId(name, unique_id(names.base_name(name), counter, validity))


def _from_the_right(line: bytes, number: int) -> tuple[bytes, bytes, bytes]:
    """Return name, size and id: a name may hold spaces, so they are the last two fields."""
    fields = line.rsplit(b" ", 2)
    if len(fields) != 3:
        raise BadState(number, "not name, size and id")
    return checked_name(fields[0], number), fields[1], fields[2]


def unique_id(base: bytes, counter: int, validity: int) -> bytes:
    """Return what UIDL says of a message with this base name, number and UIDVALIDITY."""
    if counter and validity:
        return b"UID%d-%d" % (counter, validity)
    if counter:
        return b"UID%d" % counter
    return b"".join([b"%c" % octet if octet in PLAIN else b"+%02X" % octet for octet in base])
