"""
PURE: the PROXY protocol, with which a load balancer says for whom it opened a connection.

Versions 1 (a line) and 2 (octets) of HAProxy's proxy-protocol.txt, the receiver's side: octets in, a
`Header` or a `BadHeader` out, whatever the octets are. Bounded. It refuses to know who may send one:
that is decided before the first octet is read.

Left out, which the specification leaves to the receiver: CRC32C is not verified, TCP has done that;
connections that came over UDP or a unix socket are refused, no client of ours has one.
"""

from __future__ import annotations

import ipaddress
import struct

VERSION_1 = b"PROXY "
VERSION_2 = b"\r\n\r\n\0\r\nQUIT\n"
# §2.1: the longest line there can be, CRLF counted.
MAX_LINE_OCTETS = 107
# §2.2: signature, version and command, family and protocol, length of the rest.
FIXED_PART = struct.Struct("!12sBBH")
# The longest rest that is read. Addresses are 36 octets; a client's certificate may be among the TLVs.
MAX_REST_OCTETS = 8192
MAX_HEADER_OCTETS = FIXED_PART.size + MAX_REST_OCTETS

LOCAL, PROXY = 0, 1  # commands
UNSPECIFIED = 0x00
# Family and protocol -> how the two addresses and the two ports are packed.
ADDRESSES = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH")}

TLV = struct.Struct("!BH")
TYPE_SSL, SUBTYPE_VERSION = 0x20, 0x21
SSL_FACTS = struct.Struct("!BI")  # what the client did, and the result of verifying its certificate
CLIENT_USED_TLS = 0x01
MAX_VERSION_OCTETS = 32
PRINTABLE = bytes(octet if 0x20 < octet < 0x7F else ord("?") for octet in range(256))
TLS_UNNAMED = "TLS"  # used, in a version that nobody names

MAX_PORT, MAX_PORT_DIGITS = 65535, 5

Address = tuple[str, int]


class BadHeader(Exception):
    """These octets are no PROXY header, or one that is not accepted; the text says why."""


class Header:
    """
    What a header says.

    `peer` is the client and `local` the address it connected to; both are None if the balancer speaks for
    itself (LOCAL: a health check) or does not know (UNKNOWN): then the ends of the connection are meant.
    `tls` is the version of the client's own TLS, in characters fit for a log; None if it used none.
    """

    __slots__ = ("local", "peer", "tls")

    def __init__(
        self, peer: Address | None = None, local: Address | None = None, tls: str | None = None
    ) -> None:
        self.peer = peer
        self.local = local
        self.tls = tls


def end_of(octets: bytes) -> int | None:
    """
    Return where the header that `octets` begin with ends; None if all belong to it and more must come.

    Raises:
        BadHeader: no accepted header begins with these octets.
    """
    if VERSION_2.startswith(octets[: len(VERSION_2)]):
        if len(octets) < FIXED_PART.size:
            return None
        length: int = FIXED_PART.unpack_from(octets)[3]
        if length > MAX_REST_OCTETS:
            raise BadHeader(f"it has {length} octets behind its fixed part, more than {MAX_REST_OCTETS}")
        end = FIXED_PART.size + length
        return end if len(octets) >= end else None
    if not VERSION_1.startswith(octets[: len(VERSION_1)]):
        raise BadHeader("it begins as no PROXY header does")
    newline = octets.find(b"\n", 0, MAX_LINE_OCTETS)
    if newline >= 0:
        return newline + 1
    if len(octets) >= MAX_LINE_OCTETS:
        raise BadHeader("the line does not end")
    return None


def parse(octets: bytes) -> Header:
    """
    Return what the header that `octets` are, whole, says.

    Raises:
        BadHeader: they are no header, or not exactly one.
    """
    if end_of(octets) != len(octets):
        raise BadHeader("it is cut short, or something follows it")
    return _version_2(octets) if octets.startswith(VERSION_2) else _version_1(octets)


def normal_address(text: str) -> str:
    """
    Return an IP address in its one spelling; an IPv4 one in IPv6 clothes as the IPv4 address that it is.

    Raises:
        ValueError: it is none, or has a zone, which means something on the sender's machine only.
    """
    if "%" in text:
        raise ValueError(text)
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)


def port_number(text: str) -> int:
    """
    Return the port that `text` is in decimal, without zeros in front.

    Raises:
        ValueError: it is none.
    """
    if not text.isascii() or not text.isdigit() or len(text) > MAX_PORT_DIGITS:
        raise ValueError(text)
    port = int(text)
    if port > MAX_PORT or str(port) != text:
        raise ValueError(text)
    return port


def _version_1(line: bytes) -> Header:
    """`PROXY TCP4 peer local peer-port local-port`, single spaces, CRLF."""
    if not line.endswith(b"\r\n"):
        raise BadHeader("the line ends without CR")
    words = line[:-2].decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return Header()
    if words[1] not in ("TCP4", "TCP6") or len(words) != 6:
        raise BadHeader("it is not TCP4 or TCP6 with two addresses and two ports, nor UNKNOWN")
    family = ":" if words[1] == "TCP6" else "."
    if family not in words[2] or family not in words[3]:
        raise BadHeader("an address is of the other family")
    try:
        peer, local = [
            (normal_address(address), port_number(port))
            for address, port in zip(words[2:4], words[4:6], strict=True)
        ]
    except ValueError:
        raise BadHeader("an address or a port is none") from None
    return Header(peer, local)


def _version_2(octets: bytes) -> Header:
    _, version_and_command, family, _ = FIXED_PART.unpack_from(octets)
    version, command = version_and_command >> 4, version_and_command & 0x0F
    if version != 2 or command not in (LOCAL, PROXY):
        raise BadHeader(f"version {version}, command {command}")
    rest = octets[FIXED_PART.size :]
    if command == LOCAL or family == UNSPECIFIED:
        return Header()
    layout = ADDRESSES.get(family)
    if layout is None:
        raise BadHeader(f"the connection is not TCP: family and protocol 0x{family:02x}")
    if len(rest) < layout.size:
        raise BadHeader("the addresses are cut short")
    peer, local, peer_port, local_port = layout.unpack_from(rest)
    tls = _tls(_tlvs(rest[layout.size :]).get(TYPE_SSL))
    return Header((_address(peer), peer_port), (_address(local), local_port), tls)


def _address(octets: bytes) -> str:
    return normal_address(str(ipaddress.ip_address(octets)))


def _tlvs(octets: bytes) -> dict[int, bytes]:
    """Return values by type; of several of one type the last. What nobody asks for is skipped."""
    found = {}
    at = 0
    while at < len(octets):
        if at + TLV.size > len(octets):
            raise BadHeader("a TLV is cut short")
        kind, length = TLV.unpack_from(octets, at)
        at += TLV.size
        if at + length > len(octets):
            raise BadHeader("a TLV ends behind the header")
        found[kind] = octets[at : at + length]
        at += length
    return found


def _tls(value: bytes | None) -> str | None:
    if value is None:
        return None
    if len(value) < SSL_FACTS.size:
        raise BadHeader("the TLS facts are cut short")
    client, _ = SSL_FACTS.unpack_from(value)
    if not client & CLIENT_USED_TLS:
        return None
    version = _tlvs(value[SSL_FACTS.size :]).get(SUBTYPE_VERSION, b"")[:MAX_VERSION_OCTETS]
    return version.translate(PRINTABLE).decode("ascii") or TLS_UNNAMED
