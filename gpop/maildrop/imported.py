"""
Unique-ids that another server gave: the octets of a Maildir's `.unique-ids`, and what they change.

    gpop-unique-ids 1 5f3c0a91 3
    1 000061ae4c0907b0 1234567890.M20046P2137.mailserver,S=4542,W=4642
    0 UID17-1275660208 1035478339.27041_118.foo+bar
    - 1700000000.M1P1.host 1700000000.M1P1.host

The last is of a message that a client has removed and that is kept, hidden from POP3 (removal.py).

Pure: octets in, ids out. The file is written by `gpop uidl import` and for hiding, and read whenever a
maildrop is listed; unlike the statcache it can't be made anew, so what is damaged is a fault and
never an empty file (docs/unique-ids.md). Executed by the session, as the mail user.
"""

from __future__ import annotations

from zlib import crc32

from gpop.maildrop import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

# The first line: format, its version, the CRC-32 of everything below, and how many lines that is.
FORMAT_MARK = b"gpop-unique-ids 1 "
# Where its owner can write, its size is his choice: so much a session is ready to read and to keep.
MAX_ENTRIES = 1_000_000
MAX_FILE_OCTETS = 128 * 1024 * 1024
MAX_ORDER = (1 << 32) - 1
# In place of the order of a message that no session shows; `-` in the file.
HIDDEN = -1
MAX_ORDER_DIGITS = 10
# So many messages are looked up in the octets; for more the whole file is taken apart.
FEW = 8
HEX = b"0123456789ABCDEF"
# What stands in the file as it is; any other octet of a base name is written %XX.
PLAIN = bytes(octet for octet in names.GRAPHIC if octet != ord("%"))


class BadImport(Exception):
    """These octets are no file of imported unique-ids; `line` (from 1) and `reason` say why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class ImportConflict(Exception):
    """A message would get another unique-id than it has, or one that another message has."""


class ImportedId:
    """
    What another server said of a message.

    Attributes:
        unique_id: 1 to 70 octets from 0x21 to 0x7E.
        order: messages are in this order, by number from 1. Those without one, 0, come after these,
            by delivery time and name. HIDDEN: the message is not shown.
    """

    __slots__ = ("order", "unique_id")

    def __init__(self, unique_id: bytes, order: int = 0) -> None:
        self.unique_id = unique_id
        self.order = order

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImportedId):
            return NotImplemented
        return self.unique_id == other.unique_id and self.order == other.order

    def __hash__(self) -> int:
        return hash((self.unique_id, self.order))

    def __repr__(self) -> str:
        return f"ImportedId({self.unique_id!r}, {self.order})"


# The file


def render(ids: dict[bytes, ImportedId]) -> bytes:
    """
    Return the octets of the file that has these ids, by base name.

    Raises:
        ValueError: one of them can't be in it, or two are the same.
    """
    if len({one.unique_id for one in ids.values()}) < len(ids) or len(ids) > MAX_ENTRIES:
        raise ValueError("two messages with one unique-id, or too many messages")
    lines = []
    for base, one in sorted(ids.items()):
        if not (is_base(base) and names.is_literal(one.unique_id) and HIDDEN <= one.order <= MAX_ORDER):
            raise ValueError(f"{base!r} can't have {one!r}")
        order = b"-" if one.order == HIDDEN else b"%d" % one.order
        lines.append(b"%b %b %b\n" % (order, one.unique_id, quoted(base)))
    body = b"".join(lines)
    return FORMAT_MARK + b"%08x %d\n" % (crc32(body), len(lines)) + body


def is_base(base: bytes) -> bool:
    """Whether a message can have this base name."""
    return names.is_message_name(base) and b":" not in base


def quoted(base: bytes) -> bytes:
    """Return a base name as it stands in the file: without space, line end or anything like it."""
    if not base.translate(None, PLAIN):
        return base
    return b"".join([b"%c" % octet if octet in PLAIN else b"%%%02X" % octet for octet in base])


def _unquoted(field: bytes) -> bytes | None:
    """Return the base name of a field; None if `quoted` writes no such field."""
    pieces = field.split(b"%")
    base = pieces[0]
    for piece in pieces[1:]:
        code = piece[:2]
        if len(code) < 2 or code.translate(None, HEX):
            return None
        base += bytes((int(code, 16),)) + piece[2:]
    return base if quoted(base) == field else None


def parse(octets: bytes) -> dict[bytes, ImportedId]:
    """
    Return the ids in a file, by base name.

    Raises:
        BadImport: it is not as `render` writes it.
    """
    return _entries(_body(octets))


def _entries(body: bytes) -> dict[bytes, ImportedId]:
    ids: dict[bytes, ImportedId] = {}
    seen: set[bytes] = set()
    for number, line in enumerate(body.split(b"\n")[:-1], 2):
        base, one = _entry(number, line)
        if base in ids:
            raise BadImport(number, "a second line for one base name")
        if one.unique_id in seen:
            raise BadImport(number, "a second message with one unique-id")
        ids[base] = one
        seen.add(one.unique_id)
    return ids


def _body(octets: bytes) -> bytes:
    """Return what follows the first line, checked. Raises BadImport."""
    at = octets.find(b"\n", 0, 64)
    first, body = octets[:at], octets[at + 1 :]
    if at < 0 or not first.startswith(FORMAT_MARK):
        raise BadImport(1, f"does not begin with {FORMAT_MARK.decode().strip()!r}")
    fields = first[len(FORMAT_MARK) :].split(b" ")
    if len(fields) != 2 or not (fields[1].isdigit() and len(fields[1]) <= MAX_ORDER_DIGITS):
        raise BadImport(1, "not a checksum and the number of lines")
    count, lines = int(fields[1]), body.count(b"\n")
    if count > MAX_ENTRIES:
        raise BadImport(1, f"more than {MAX_ENTRIES} messages")
    if lines != count or not (body.endswith(b"\n") or not body):
        raise BadImport(lines + 2, f"{lines} lines where {count} were written")
    if fields[0] != b"%08x" % crc32(body):
        raise BadImport(1, "the checksum is wrong: the file is damaged, or was changed by hand")
    return body


def _entry(number: int, line: bytes) -> tuple[bytes, ImportedId]:
    fields = line.split(b" ")
    if len(fields) != 3:
        raise BadImport(number, "not order, unique-id and base name")
    order, unique_id, field = fields
    is_number = order.isdigit() and len(order) <= MAX_ORDER_DIGITS and int(order) <= MAX_ORDER
    if not (is_number or order == b"-"):
        raise BadImport(number, "the order is no number")
    if not names.is_literal(unique_id):
        raise BadImport(number, "the unique-id is not 1 to 70 octets from 0x21 to 0x7E")
    base = field if not field.translate(None, PLAIN) else _unquoted(field)
    if base is None or not is_base(base):
        raise BadImport(number, "not the base name of a message")
    return base, ImportedId(unique_id, int(order) if is_number else HIDDEN)


class Lookup:
    """
    What a file says of single messages: of a few without taking it all apart, since a refresh for one new
    message is to stay quick where 100,000 ids were imported.
    """

    __slots__ = ("_asked", "_body", "_ids")

    def __init__(self, octets: bytes) -> None:
        """Check the file. Raises BadImport, as all that is asked of it may."""
        self._body = b"\n" + _body(octets)
        self._ids: dict[bytes, ImportedId] | None = None
        self._asked = 0

    def all(self) -> dict[bytes, ImportedId]:
        """Return all ids by base name, as `parse`."""
        if self._ids is None:
            self._ids = _entries(self._body[1:])
        return self._ids

    def of(self, base: bytes) -> ImportedId | None:
        """Return what was imported for a message."""
        self._asked += 1
        if self._ids is not None or self._asked > FEW:
            return self.all().get(base)
        end = self._body.find(b" %b\n" % quoted(base))
        if end < 0:
            return None
        line = self._body[self._body.rfind(b"\n", 0, end) + 1 : end]
        return _entry(self._body.count(b"\n", 0, end) + 1, b"%b %b" % (line, quoted(base)))[1]

    def has_id(self, unique_id: bytes) -> bool:
        """Whether some message has this id, be it in the maildrop or not."""
        return b" %b " % unique_id in self._body


def merged(there: dict[bytes, ImportedId], added: dict[bytes, ImportedId]) -> dict[bytes, ImportedId]:
    """
    Return both: what is there is never changed, and nothing of it is lost.

    Raises:
        ImportConflict: naming the base name and both ids, or both base names and the id.
    """
    of_id = {one.unique_id: base for base, one in there.items()}
    both = dict(there)
    for base, one in added.items():
        if base in there:
            if there[base].unique_id != one.unique_id:
                was = there[base].unique_id
                raise ImportConflict(f"{base!r} has the unique-id {was!r}, and would get {one.unique_id!r}")
            continue
        other = of_id.setdefault(one.unique_id, base)
        if other != base:
            raise ImportConflict(f"{base!r} would get the unique-id {one.unique_id!r} that {other!r} has")
        both[base] = one
    return both


def hidden(
    there: dict[bytes, ImportedId], shown: dict[bytes, bytes], is_there: Container[bytes] | None
) -> dict[bytes, ImportedId]:
    """
    Return the ids with the messages in `shown` hidden: their unique-ids by base name.

    Those that were hidden before and are not among the base names `is_there` any more are forgotten;
    with None nothing is.
    """
    kept = {
        base: one
        for base, one in there.items()
        if one.order != HIDDEN or is_there is None or base in is_there
    }
    for base, unique_id in shown.items():
        kept[base] = ImportedId(unique_id, HIDDEN)
    return kept


# What they change


def unique_ids(bases: list[bytes], twins: dict[int, bytes], ids: dict[bytes, ImportedId]) -> list[bytes]:
    """
    Return the unique-id of each message, in message order, as `names.unique_ids` without an import.

    An imported id goes before the default one, but for twins: which of them it is can't be told. What
    another server has given to one message, here or gone, no other message gets: its default id is
    then the hash of its base name.
    """
    reserved = frozenset([one.unique_id for one in ids.values()])
    shown = []
    owners = set()
    for index, base in enumerate(bases):
        if index in twins:
            shown.append(twins[index])
        elif base in ids:
            shown.append(ids[base].unique_id)
            owners.add(index)
        else:
            default = names.unique_id(base)
            shown.append(names.hashed_id(base) if default in reserved else default)
    names.tell_apart(shown, reserved, frozenset(owners))
    return shown


def order_key(base: bytes, ids: dict[bytes, ImportedId]) -> tuple[int, tuple[int, bytes, bytes]]:
    """Return what messages are ordered by: the other server's order, then delivery time and name."""
    one = ids.get(base)
    return one.order if one and one.order else MAX_ORDER + 1, names.order_key(base)
