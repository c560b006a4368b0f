"""
What a message's file name says: base name, sizes, order, flags; and the unique-id made of it.

    1234567890.M20046P2137.mailserver,S=4542,W=4642:2,Sb
    |------------------ base name -----------------| info

Pure: octets in, octets out; nothing here knows whether the file exists. The formulas for
unique-ids are fixed for ever: a client that is told another one downloads everything again.
Executed by the session, as the mail user.
"""

from __future__ import annotations

from _blake2 import blake2b

NEW, CUR = 0, 1
FOLDERS = ("new", "cur")

# RFC 1939 §7: 1 to 70 characters from 0x21 to 0x7E.
MAX_UNIQUE_ID_OCTETS = 70
GRAPHIC = bytes(range(0x21, 0x7F))
DIGITS = b"0123456789"
HEX = b"0123456789abcdef"
HASH_OCTETS = 20
CONTENT_DIGEST_OCTETS = 32
# A size in a name is believed up to this many digits (1 TB); a longer one is nonsense.
MAX_SIZE_DIGITS = 12
# NAME_MAX on every file system that holds a Maildir.
MAX_NAME_OCTETS = 255


def is_message_name(name: bytes) -> bool:
    """Whether `name` can be a message's: one component that stays in its folder, no dot file."""
    return (
        0 < len(name) <= MAX_NAME_OCTETS
        and not name.startswith(b".")
        and b"/" not in name
        and b"\0" not in name
    )


def base_name(name: bytes) -> bytes:
    """Return what stays the same when flags change or the message moves to cur/: up to the first `:`."""
    return name.partition(b":")[0]


# Unique-ids (design §4)


def is_literal(base: bytes) -> bool:
    """Whether a base name may itself be a unique-id (RFC 1939 §7)."""
    return 0 < len(base) <= MAX_UNIQUE_ID_OCTETS and not base.translate(None, GRAPHIC)


def unique_id(base: bytes) -> bytes:
    """Return the unique-id of the only message with this base name."""
    return base if is_literal(base) else hashed_id(base)


def twin_id(base: bytes, content_digest: bytes) -> bytes:
    """
    Return the unique-id of one of several different files with this base name.

    `content_digest` is the BLAKE2b-256 of the file's octets as stored.
    """
    return hashed_id(base + b"\0" + content_digest)


def hashed_id(octets: bytes) -> bytes:
    """Return the unique-id of a message whose base name can't be one, or is another message's id."""
    digest: str = blake2b(octets, digest_size=HASH_OCTETS).hexdigest()
    return digest.encode("ascii")


def looks_hashed(shown: bytes) -> bool:
    """Whether a unique-id may be one of the hashes; a base name hardly ever looks like one."""
    return len(shown) >= 2 * HASH_OCTETS and not shown[: 2 * HASH_OCTETS].translate(None, HEX)


def is_derived(shown: bytes, formula: bytes) -> bool:
    """Whether `shown` is what a formula gave, or that with the `-2`, `-3` that tells equal ones apart."""
    stem, _, suffix = shown.rpartition(b"-")
    return shown == formula or (stem == formula and suffix.isdigit())


def is_default(shown: bytes, base: bytes) -> bool:
    """Whether a message with this base name may have this unique-id though none was imported for it."""
    return is_derived(shown, unique_id(base)) or is_derived(shown, hashed_id(base))


def unique_ids(bases: list[bytes], given: dict[int, bytes]) -> list[bytes]:
    """
    Return the unique-id of each message, in message order; `given` are those of twins, by index.

    No two are equal: of equal ones (identical twins; or a base name that looks like the hash
    of another) the first keeps it, the others get `-2`, `-3`.
    """
    together = b"".join(bases)
    if together.translate(None, GRAPHIC) or max(map(len, bases), default=1) > MAX_UNIQUE_ID_OCTETS:
        ids = [unique_id(base) for base in bases]
    else:
        # All graphic, none too long: each is its own unique-id, but for the one that may be empty.
        ids = bases.copy() if all(bases) else [base or unique_id(base) for base in bases]
    for index, twin in given.items():
        ids[index] = twin
    if len(set(ids)) < len(ids):
        tell_apart(ids)
    return ids


def tell_apart(
    ids: list[bytes], reserved: frozenset[bytes] = frozenset(), owners: frozenset[int] = frozenset()
) -> None:
    """
    Make equal unique-ids unequal, in place: the first keeps it, the others get `-2`, `-3`.

    Those that are `reserved` belong to the messages at the indexes `owners`, which keep them.
    """
    taken = reserved.union(ids)
    seen = dict.fromkeys(reserved, 1)
    for index, shown in enumerate(ids):
        if index in owners:
            continue
        if shown not in seen:
            seen[shown] = 1
            continue
        number = seen[shown] + 1
        while b"%b-%d" % (shown, number) in taken:
            number += 1
        seen[shown] = number
        ids[index] = b"%b-%d" % (shown, number)


# Sizes


def wire_octets(base: bytes) -> int:
    """
    Return the octets on the wire that a base name claims with `W=`, or -1.

    A claim that can't be true beside `S=` (each stored octet becomes one or two, and a
    missing final line end adds two) is none.
    """
    _, found, claim = base.partition(b",W=")
    if not found:
        return -1
    claimed = _number(claim)
    _, found, size = base.partition(b",S=")
    if found and not (stored := _number(size)) <= claimed <= 2 * stored + 2 and stored >= 0:
        return -1
    return claimed


def file_octets(base: bytes) -> int:
    """Return the file size that a base name claims with `S=`, or -1."""
    return _number(base.partition(b",S=")[2])


def _number(field: bytes) -> int:
    """Return the number that a field begins with, which a comma ends, or -1 if it is none."""
    digits = field.partition(b",")[0]
    return int(digits) if len(digits) <= MAX_SIZE_DIGITS and digits.isdigit() else -1


# Order


def order_key(base: bytes) -> tuple[int, bytes, bytes]:
    """Return what messages are ordered by: delivery time (the leading digits), then the name's octets."""
    seconds = base[: len(base) - len(base.lstrip(DIGITS))].lstrip(b"0")
    return len(seconds), seconds, base


def have_usual_times(bases: list[bytes]) -> bool:
    """Whether all begin with ten digits and a dot: such names sort as octets as they do by time."""
    count = len(bases)
    together = b"".join([base[:11] for base in bases])  # looked at all at once, because there may be 100,000
    return len(together) == 11 * count and together[10::11] == b"." * count == together.translate(
        None, DIGITS
    )


# Flags


def seen_name(name: bytes) -> bytes:
    """Return the name that a message gets in cur/ once it was retrieved: with the S flag, flags sorted."""
    base, _, info = name.partition(b":")
    if info and not (info == b"2," or (info.startswith(b"2,") and info[2:].isalpha())):
        return name  # another program's kind of info: nothing we may write into
    return base + b":2," + bytes(sorted({*info[2:], ord("S")}))
