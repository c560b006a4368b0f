"""The PROXY protocol: octets of a balancer in, a header or a refusal out."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpop.front.proxy_header import (
    MAX_HEADER_OCTETS,
    MAX_LINE_OCTETS,
    MAX_REST_OCTETS,
    VERSION_2,
    BadHeader,
    Header,
    end_of,
    parse,
)

V4 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 110\r\n"
V6 = b"PROXY TCP6 2001:db8::7 2001:DB8::1 56324 995\r\n"
LONGEST = (
    b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
    b"65535 65535\r\n"
)
PROXY, LOCAL = 0x21, 0x20
TCP4, UDP4, TCP6, UDP6, UNIX = 0x11, 0x12, 0x21, 0x22, 0x31


def version_2(rest: bytes = b"", command: int = PROXY, family: int = TCP4) -> bytes:
    return VERSION_2 + bytes((command, family)) + struct.pack("!H", len(rest)) + rest


def addresses(peer: str = "192.0.2.7", local: str = "198.51.100.1", ports: tuple[int, int] = (56324, 110)):
    packed = [ipaddress.ip_address(each).packed for each in (peer, local)]
    return b"".join(packed) + struct.pack("!HH", *ports)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + struct.pack("!H", len(value)) + value


def ssl(client: int = 1, *facts: bytes) -> bytes:
    return tlv(0x20, bytes((client,)) + struct.pack("!I", 0) + b"".join(facts))


TLS_FACTS = (tlv(0x21, b"TLSv1.3"), tlv(0x22, b"anna"), tlv(0x23, b"TLS_AES_256_GCM_SHA384"))
WITH_TLS = version_2(addresses() + tlv(0x04, b"") + ssl(1, *TLS_FACTS) + tlv(0xE0, b"custom"))
GOOD = {
    "v1, IPv4": V4,
    "v1, IPv6": V6,
    "v1, unknown": b"PROXY UNKNOWN\r\n",
    "v1, unknown, longest": LONGEST,
    "v2, IPv4": version_2(addresses()),
    "v2, IPv6": version_2(addresses("2001:db8::7", "2001:db8::1", (56324, 995)), family=TCP6),
    "v2, local": version_2(command=LOCAL, family=0),
    "v2, local with a rest": version_2(b"whatever this is", command=LOCAL, family=UNIX),
    "v2, unspecified": version_2(b"\xff" * 3, family=0),
    "v2, TLS": WITH_TLS,
    "v2, largest": version_2(addresses() + tlv(0x04, b"x" * (MAX_REST_OCTETS - 15))),
}
good = pytest.mark.parametrize("octets", GOOD.values(), ids=GOOD.keys())


def facts(header: Header) -> tuple:
    return header.peer, header.local, header.tls


@pytest.mark.parametrize(
    ("octets", "peer", "local"),
    [
        (V4, ("192.0.2.7", 56324), ("198.51.100.1", 110)),
        (V6, ("2001:db8::7", 56324), ("2001:db8::1", 995)),
        (GOOD["v2, IPv4"], ("192.0.2.7", 56324), ("198.51.100.1", 110)),
        (GOOD["v2, IPv6"], ("2001:db8::7", 56324), ("2001:db8::1", 995)),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", ("0.0.0.0", 0), ("255.255.255.255", 65535)),
    ],
)
def test_the_client_and_where_it_connected_to(octets, peer, local):
    """Addresses come in one spelling, with their ports."""
    assert facts(parse(octets)) == (peer, local, None)


@pytest.mark.parametrize(
    "name", ["v1, unknown", "v1, unknown, longest", "v2, local", "v2, local with a rest", "v2, unspecified"]
)
def test_who_speaks_for_nobody_says_nothing(name):
    """A health check, or a balancer that does not know: whatever else stands there is not looked at."""
    assert facts(parse(GOOD[name])) == (None, None, None)


def test_an_ipv4_client_in_ipv6_clothes_is_an_ipv4_client():
    """A balancer that listens on both says so; penalties and allow_nets know only one address of it."""
    text = b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 1 110\r\n"
    octets = version_2(addresses("::ffff:192.0.2.7", "::ffff:198.51.100.1", (1, 110)), family=TCP6)
    assert facts(parse(text)) == facts(parse(octets)) == (("192.0.2.7", 1), ("198.51.100.1", 110), None)


def test_what_is_said_of_tls():
    """The version, among TLVs that nobody asks for."""
    assert facts(parse(WITH_TLS)) == (("192.0.2.7", 56324), ("198.51.100.1", 110), "TLSv1.3")


def test_tls_facts_without_tls_are_none():
    """A balancer sends them for clients in cleartext too: only the flag counts."""
    assert parse(version_2(addresses() + ssl(0, *TLS_FACTS))).tls is None
    assert parse(version_2(addresses() + ssl(6, *TLS_FACTS))).tls is None
    assert parse(version_2(addresses() + ssl(1))).tls == "TLS"


def test_an_odd_version_is_made_fit_for_a_log():
    """Bounded, and without control characters."""
    tls = parse(version_2(addresses() + ssl(1, tlv(0x21, b"\xff\x1b[2J" + b"x" * 500)))).tls
    assert tls is not None
    assert tls.startswith("??[2Jxxx") and len(tls) == 32


@good
def test_every_octet_of_a_header_is_needed(octets):
    """Cut anywhere it is not yet whole, and never refused: more may come."""
    for length in range(len(octets)):
        assert end_of(octets[:length]) is None
        with pytest.raises(BadHeader):
            parse(octets[:length])
    parse(octets)


@good
def test_what_follows_a_header_is_the_clients(octets):
    """A first command, a TLS handshake, another header: none of it belongs to this one."""
    for following in (b"\r\n", b"CAPA\r\n", b"\x16\x03\x01\x02\x00", V4, WITH_TLS, b"\n", b"\0"):
        assert end_of(octets + following) == len(octets)
        with pytest.raises(BadHeader):
            parse(octets + following)


@pytest.mark.parametrize(
    "octets",
    [
        V4.replace(b"\r\n", b"\n"),
        V4.replace(b"TCP4 ", b"TCP4  "),
        V4.replace(b" 110", b" 110 "),
        V4.replace(b"TCP4", b"TCP6"),
        V6.replace(b"TCP6", b"TCP4"),
        V4.replace(b"TCP4", b"tcp4"),
        V4.replace(b"TCP4", b"UDP4"),
        V4.replace(b"TCP4", b"UNIX"),
        V4.replace(b"TCP4", b"UNKNOWN4"),
        V4.replace(b" 110", b""),
        V4.replace(b"110", b"0110"),
        V4.replace(b"110", b"65536"),
        V4.replace(b"110", b"+110"),
        V4.replace(b"110", b"-1"),
        V4.replace(b"110", b"1_1"),
        V4.replace(b"110", b"\xb2"),
        V4.replace(b"192.0.2.7", b"192.0.2.07"),
        V4.replace(b"192.0.2.7", b"192.0.2.256"),
        V4.replace(b"192.0.2.7", b"192.0.2"),
        V4.replace(b"192.0.2.7", b"localhost."),
        V6.replace(b"2001:db8::7", b"fe80::1%eth0"),
        V6.replace(b"2001:db8::7", b"2001:db8:::7"),
        b"PROXY \r\n",
        b"PROXY\r\n",
        b"PROXY  UNKNOWN\r\n",
        LONGEST.replace(b"\r\n", b" \r\n"),
        b"PROXY UNKNOWN " + b"x" * 200,
        b"CAPA\r\n",
        b"\r\n\r\n\0\r\nQUIT\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        version_2(addresses(), command=0x11),
        version_2(addresses(), command=0x31),
        version_2(addresses(), command=0x22),
        version_2(addresses(), command=0x2F),
        version_2(addresses(), family=UDP4),
        version_2(addresses("::1", "::1"), family=UDP6),
        version_2(b"/run/a".ljust(216, b"\0"), family=UNIX),
        version_2(addresses(), family=TCP6),
        version_2(addresses(), family=0x41),
        version_2(addresses(), family=0x10),
        version_2(addresses()[:-1]),
        version_2(addresses() + b"\x04\x00"),
        version_2(addresses() + b"\x04\x00\x02x"),
        version_2(addresses() + tlv(0x20, b"\x01\0\0\0")),
        version_2(addresses() + ssl(1, tlv(0x21, b"TLSv1.3")[:-1])),
        version_2(addresses() + tlv(0x04, b"x" * MAX_REST_OCTETS)),
    ],
)
def test_malformed_headers_are_refused(octets):
    """Nothing is guessed, and what can't become right is not waited for."""
    with pytest.raises(BadHeader):
        parse(octets)


@pytest.mark.parametrize("octets", [b"x", b"\x16", b"proxy", b"\r\n\r\n\r", b"PROXY\t"])
def test_what_begins_wrong_is_refused_at_once(octets):
    """A client at the wrong address learns it from its first octets."""
    with pytest.raises(BadHeader):
        end_of(octets)


pieces = st.lists(
    st.sampled_from(
        [b"PROXY ", b"TCP4 ", b"UNKNOWN", b"\r\n", b"1.2.3.4 ", b"::1 ", b"7", VERSION_2, b"\x21\x11"]
    )
    | st.binary(max_size=40)
)


@given(st.binary(max_size=400) | pieces.map(b"".join) | st.binary(max_size=80).map(version_2))
@example(b"")
def test_any_octets_lead_to_a_header_or_a_refusal(octets):
    """Never to anything else; and a header is never longer than what is read of one."""
    try:
        end = end_of(octets)
        if end is None:
            assert len(octets) < MAX_HEADER_OCTETS
        else:
            assert 0 < end <= len(octets)
            header = parse(octets[:end])
            assert (header.peer is None) == (header.local is None)
    except BadHeader as error:
        assert str(error).isprintable()


@given(
    tlvs=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=30))),
    cuts=st.lists(st.integers(0, 400), max_size=5),
)
def test_tlvs_of_any_kind_are_skipped_or_refused(tlvs, cuts):
    """TLVs cut or stretched anywhere: the addresses, or a refusal."""
    rest = addresses() + b"".join(tlv(kind, value) for kind, value in tlvs)
    for cut in [len(rest), *cuts]:
        try:
            header = parse(version_2(rest[:cut]))
        except BadHeader:
            assert cut < len(rest) or 0x20 in {kind for kind, _ in tlvs}
        else:
            assert header.peer == ("192.0.2.7", 56324)


def test_the_bounds_are_those_of_the_specification():
    """A line of 107 octets is the longest."""
    assert len(LONGEST) == MAX_LINE_OCTETS == 107
