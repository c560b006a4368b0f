"""
Ids that are made of a message's header: X-UIDL as qpopper and others keep it, and popa3d's MD5.

Pure: takes the header's octets. Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

# A header that goes on for longer than this has no end that anybody is to wait for.
MAX_HEADER_OCTETS = 256 * 1024
# Which octets of the MD5 popa3d shows, in this order.
POPA3D_OCTETS = (3, 2, 1, 0, 7, 6, 5, 4)
HASHED_BEFORE_RECEIVED = (b"received", b"date", b"message-id")


class HeaderNotUsable(Exception):
    """The header does not say what it is asked for; the text says why."""


def header_of(octets: bytes) -> bytes:
    """
    Return the header of a message of which these are the first octets, the blank line left out.

    Raises:
        HeaderNotUsable: it is longer than MAX_HEADER_OCTETS.
    """
    for blank in (b"\n", b"\r\n"):
        if octets.startswith(blank):
            return b""
    ends = [at for at in (octets.find(b"\n\n"), octets.find(b"\n\r\n")) if at >= 0]
    if ends:
        return octets[: min(ends) + 1]
    if len(octets) >= MAX_HEADER_OCTETS:
        raise HeaderNotUsable(f"the header is longer than {MAX_HEADER_OCTETS} octets")
    return octets


def fields_of(header: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield each field's name in lower case, and its raw lines with their ends."""
    name, raw = b"", list[bytes]()
    for line in _lines(header):
        if line[:1] in (b" ", b"\t") and raw:
            raw.append(line)
            continue
        if raw:
            yield name, raw
        name, raw = line.partition(b":")[0].lower(), [line]
    if raw:
        yield name, raw


def _lines(header: bytes) -> list[bytes]:
    # A CR alone is an octet like any other, so not `splitlines`.
    return [line + b"\n" for line in header.removesuffix(b"\n").split(b"\n")]


def x_uidl(header: bytes) -> bytes | None:
    """
    Return the unique-id in the X-UIDL field, None if there is none.

    Raises:
        HeaderNotUsable: there are several that differ.
    """
    found = {
        b"".join(raw).partition(b":")[2].strip()
        for name, raw in fields_of(header)
        if name.rstrip() == b"x-uidl"
    }
    if len(found) > 1:
        raise HeaderNotUsable("several X-UIDL fields that differ")
    return found.pop() if found else None


def popa3d(header: bytes) -> bytes:
    """
    Return popa3d's unique-id: half an MD5 of some fields, each with its name and its line ends as LF.

    Delivered-To, X-Delivery-ID and the first Received; before that Date and Message-ID as well.
    """
    digest = hashlib.md5(usedforsecurity=False)
    received = False
    for name, raw in fields_of(header):
        # It looks for a capital X, and for any case elsewhere.
        delivery_id = name == b"x-delivery-id" and raw[0].startswith(b"X")
        if name == b"delivered-to" or delivery_id or (name in HASHED_BEFORE_RECEIVED and not received):
            digest.update(b"".join(raw).replace(b"\r\n", b"\n"))
        received = received or name == b"received"
    octets = digest.digest()
    return bytes(octets[at] for at in POPA3D_OCTETS).hex().encode()
