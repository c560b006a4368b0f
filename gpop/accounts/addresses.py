"""
PURE: what an address of a client counts as: a source, and whether it is in a trusted network.

A source is one IPv4 address or one IPv6 /64, which is what one customer has. Everything that is
counted by address (penalties, logins at once, connections) is counted by source.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Sequence

MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"
ADDRESS_OCTETS = (4, 16)


def packed(peer: str) -> bytes:
    """Return the octets of an address, 4 or 16 (an IPv4 one in IPv6 clothes: 4); of other text, a hash."""
    try:
        return socket.inet_pton(socket.AF_INET, peer)
    except (OSError, ValueError):
        pass
    try:
        address = socket.inet_pton(socket.AF_INET6, peer.partition("%")[0])
    except (OSError, ValueError):
        # 20 octets: as long as no address, so that no text can pass for one.
        return hashlib.blake2b(peer.encode("utf-8", "backslashreplace"), digest_size=20).digest()
    return address[12:] if address.startswith(MAPPED_PREFIX) else address


def is_address(text: str) -> bool:
    """Say whether `text` is an IP address and nothing else: what a client over TCP has, without a zone."""
    return "%" not in text and len(packed(text)) in ADDRESS_OCTETS


def source_of(peer: str) -> bytes:
    """Return the key of the source that `peer` belongs to: itself, or its IPv6 /64."""
    address = packed(peer)
    return address[:8] if len(address) == 16 else address


class Networks:
    """Some networks, as the config has them; `peer in networks` says whether an address is in one."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._prefixes = [_prefix(network) for network in networks]

    def __contains__(self, peer: str) -> bool:
        address = packed(peer)
        size = len(address) * 8
        number = int.from_bytes(address, "big")
        return any(
            size == bits and number >> (bits - length) == prefix for bits, length, prefix in self._prefixes
        )


def _prefix(network: str) -> tuple[int, int, int]:
    """Return (bits of an address, length of the prefix, the prefix as a number)."""
    parsed = ipaddress.ip_network(network, strict=False)
    bits = parsed.max_prefixlen
    return bits, parsed.prefixlen, int(parsed.network_address) >> (bits - parsed.prefixlen)
