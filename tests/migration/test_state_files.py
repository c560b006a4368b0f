"""What other servers left behind: every format as it is, and nothing but an error from what is none."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.migration import courier, fake_uids, header_ids, state, uidlist
from gpop.migration.header_ids import HeaderNotUsable
from gpop.migration.plan import ForeignId
from gpop.migration.state import BadState
from gpop.migration.uidl_format import WELL_KNOWN, BadFormat, Facts, Format

BASE = b"1234567890.M20046P2137.mailserver,S=4542,W=4642"
NAME = BASE + b":2,Sb"
FACTS = Facts(25006, 1275660208, BASE)
HEADER = b"3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1\n"


# Vectors


@pytest.mark.parametrize(
    ("text", "unique_id"),
    [
        ("%f", BASE),
        ("%{filename}", BASE),
        ("%g", BASE),
        ("%{guid}", BASE),
        ("%Mf", b"402e7cdcde57aa31299f0a98d3977cbe"),
        ("%{filename | md5}", b"402e7cdcde57aa31299f0a98d3977cbe"),
        ("%{filename|md5|hexlify}", b"402e7cdcde57aa31299f0a98d3977cbe"),
        ("%08Xu%08Xv", b"000061ae4c0907b0"),
        ("%{uid | hex(8)}%{uidvalidity | hex(8)}", b"000061ae4c0907b0"),
        ("dovecot", b"000061ae4c0907b0"),
        ("%08Xv%08Xu", b"4c0907b0000061ae"),
        ("uw", b"4c0907b0000061ae"),
        ("%v.%u", b"1275660208.25006"),
        ("cyrus", b"1275660208.25006"),
        ("%v-%u", b"1275660208-25006"),
        ("cyrus-courier", b"1275660208-25006"),
        ("stalwart", b"127566020825006"),
        ("cyrus-old", b"25006"),
        ("UID%u-%v", b"UID25006-1275660208"),
        ("%Xu", b"61ae"),
        ("%{uid | hex}", b"61ae"),
        ("%{uid | hex(8) | upper}", b"000061AE"),
        ("%Uf", BASE.upper()),
        ("%3f", b"123"),
        ("100%%%u", b"100%25006"),
    ],
)
def test_ids_that_are_made_of_numbers_and_names(text: str, unique_id: bytes) -> None:
    """The worked vectors, and both spellings of Dovecot's formats."""
    assert Format(text).expand(FACTS) == unique_id


def test_a_guid_of_its_own() -> None:
    """Where the list has one it goes before the file name."""
    assert Format("%g").expand(FACTS._replace(guid=b"abc")) == b"abc"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%m", "of mbox files"),
        ("%{md5}", "not known here"),
        ("%q", "not known here"),
        ("%{uid | rot13}", "not known here"),
        ("%{uid", "not a variable"),
        ("%", "not a variable"),
        ("fixed", "the same id"),
        ("", "the same id"),
        ("ä%u", "only ASCII"),
    ],
)
def test_a_format_that_is_not_understood(text: str, reason: str) -> None:
    """It is refused in words, never guessed."""
    with pytest.raises(BadFormat, match=reason):
        Format(text)


@given(st.text(max_size=40) | st.text("%{}|0189XMLUuvfgm(hex) ", max_size=30))
def test_any_format_is_expanded_or_refused(text: str) -> None:
    """An operator's slip is never a traceback."""
    try:
        form = Format(text)
    except BadFormat as error:
        assert str(error)
    else:
        assert isinstance(form.expand(FACTS), bytes)


def test_courier_shows_number_and_validity() -> None:
    """And the escaped name where there is no number."""
    assert courier.parse(b"/3 18 1275660208\n%b 4642 17:1275660208:0\n" % NAME) == [
        ForeignId(NAME, b"UID17-1275660208")
    ]
    assert courier.unique_id(b"1035478339.27041_118.foo+bar\"x'.org", 0, 1275660208) == (
        b"1035478339.27041_118.foo+2Bbar+22x+27.org"
    )
    assert courier.unique_id(b"x", 17, 0) == b"UID17"
    assert courier.unique_id(b"a b\xff", 0, 0) == b"a+20b+FF"


def test_courier_s_files() -> None:
    """Version 2 has no flag; old ones no UIDVALIDITY; names may hold spaces."""
    said = courier.parse(b"/2 9\nname with space:2,S 12 3:0\n1.b 5 0:0\n")
    assert said == [ForeignId(b"name with space:2,S", b"UID3"), ForeignId(b"1.b", b"1.b")]
    assert courier.parse(b"/3 1 5\n") == []


def test_dovecot_s_list() -> None:
    """Fields in any order, values with colons, names with flags and spaces, lines that are replaced."""
    found = uidlist.parse(
        HEADER
        + b"25006 :%b\n" % NAME
        + b"25017 W2481 P000000ff O3 :NAME 2:2,F\n"
        + b"25018 P :NAME3\n"
        + b"25019 Pa:b S7 Zunknown :NAME4:2,\n"
        + b"25020 :NAME3:2,S\n"
    )
    assert found.uid_validity == 1275660208
    assert list(found.entries) == [BASE, b"NAME 2", b"NAME4", b"NAME3"]
    assert found.entries[b"NAME 2"].fields == {b"W": b"2481", b"P": b"000000ff", b"O": b"3"}
    assert found.entries[b"NAME4"].fields[b"P"] == b"a:b"
    assert found.entries[b"NAME3"] == (25020, b"NAME3:2,S", {})


def test_old_lists() -> None:
    """Dovecot's version 1 and Courier's courierimapuiddb."""
    found = uidlist.parse(b"1 1275660208 25022\n25006 %b\n25007 with space:2,S\n" % NAME)
    assert [(entry.uid, base) for base, entry in found.entries.items()] == [
        (25006, BASE),
        (25007, b"with space"),
    ]


def test_dovecot_s_order() -> None:
    """By UID; or, if there are orders, those with one first."""
    body = b"1 %b:a\n2 %b:b\n3 %b:c\n4 %b:d\n"
    plain = uidlist.parse(HEADER + body % (b"", b"", b"", b""))
    assert uidlist.orders(plain.entries) == {b"a": 1, b"b": 2, b"c": 3, b"d": 4}
    some = uidlist.parse(HEADER + body % (b"", b"O9 ", b"", b"O4 "))
    assert uidlist.orders(some.entries) == {b"d": 1, b"b": 2, b"a": 3, b"c": 4}


# What is refused


@pytest.mark.parametrize(
    ("octets", "line", "reason"),
    [
        (b"", 1, "version 1 or 3"),
        (b"2 V1 N2\n", 1, "version 1 or 3"),
        (b"3 V0 N2\n", 1, "UIDVALIDITY"),
        (b"3 V1 N0\n", 1, "next UID"),
        (b"3 V1\n", 1, "next UID"),
        (b"3 V1 N2 g1\n", 1, "a letter"),
        (b"1 0 5\n", 1, "UIDVALIDITY"),
        (b"1 5\n", 1, "the next UID"),
        (HEADER + b"0 :a\n", 2, "the UID"),
        (HEADER + b"x :a\n", 2, "the UID"),
        (HEADER + b"4294967296 :a\n", 2, "the UID"),
        (HEADER + b"5 :a\n4 :b\n", 3, "ascend"),
        (HEADER + b"5 :a\n5 :b\n", 3, "ascend"),
        (HEADER + b"5 :../a\n", 2, "name of a file"),
        (HEADER + b"5 :\n", 2, "name of a file"),
        (HEADER + b"5 :a\0\n", 2, "name of a file"),
        (HEADER + b"5 W3\n", 2, "no file name"),
        (HEADER + b"5 w3 :a\n", 2, "a letter"),
        (HEADER + b"5 :a\n6 Ox :b\n", 3, "the POP3 order"),
        (HEADER + b"5 :a\n6 :b", 3, "cut off"),
        (HEADER + b"5 :" + b"a" * 5000 + b"\n", 2, "longer than"),
        (b"1 7 9\n9 a\n", 2, "not below 9"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(octets: bytes, line: int, reason: str) -> None:
    """Truncated, hostile, or of another kind."""
    with pytest.raises(BadState, match=reason) as caught:
        uidlist.parse(octets)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("octets", "line", "reason"),
    [
        (b"", 1, "/2 or /3"),
        (b"/1 2 3\n", 1, "/2 or /3"),
        (b"3 2 3\n", 1, "/2 or /3"),
        (b"/3\n", 1, "not version"),
        (b"/3 a b\n", 1, "next number"),
        (b"/3 1 2\na\n", 2, "not name"),
        (b"/3 1 2\na x 1:2:0\n", 2, "size"),
        (b"/3 1 2\na 5 1\n", 2, "the id"),
        (b"/2 1 2\na 5 1:2:0\n", 2, "the id"),
        (b"/3 1 2\na 5 x:2:0\n", 2, "the message's number"),
        (b"/3 1 2\na/b 5 1:2:0\n", 2, "name of a file"),
        (b"/3 1 2\na 5 1:2:0", 2, "cut off"),
    ],
)
def test_a_damaged_size_list_is_refused_with_its_line(octets: bytes, line: int, reason: str) -> None:
    """The same for Courier's."""
    with pytest.raises(BadState, match=reason) as caught:
        courier.parse(octets)
    assert caught.value.line == line


def test_fake_uids() -> None:
    """A number, blanks, an id; blank lines mean nothing."""
    assert fake_uids.parse(b"17 a\n\n18\tb  \n") == {17: b"a", 18: b"b"}
    for octets, line in ((b"17 a\n17 b\n", 2), (b"x a\n", 1), (b"0 a\n", 1), (b"17 a b\n", 1), (b"17 a", 1)):
        with pytest.raises(BadState) as caught:
            fake_uids.parse(octets)
        assert caught.value.line == line


STARTS = st.sampled_from([b"", HEADER, b"1 7 9\n", b"/3 1 2\n", b"/2 1 2\n"])
PIECES = st.binary(max_size=20) | st.sampled_from([b"5 :a\n", b"6 P :b\n", b"a 5 1:2:0\n", b" ", b":", b"\n"])


@given(STARTS, st.lists(PIECES, max_size=12))
def test_any_octets_are_understood_or_refused_with_a_line(start: bytes, pieces: list[bytes]) -> None:
    """Whatever a user has put there."""
    octets = start + b"".join(pieces)
    for parse in (uidlist.parse, courier.parse, fake_uids.parse):
        try:
            parse(octets)
        except BadState as bad:
            assert 1 <= bad.line <= octets.count(b"\n") + 1 and bad.reason


def test_a_file_beyond_all_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken apart."""
    monkeypatch.setattr(state, "MAX_STATE_OCTETS", 10)
    with pytest.raises(BadState, match="larger than"):
        uidlist.parse(HEADER)


# Headers


POPA3D = (
    b"Delivered-To: joe@example.org\n",
    b"Date: Mon, 1 Jan 2024 00:00:00 +0000\n",
    b"Received: from a\n\tby b;\n Mon, 1 Jan 2024 00:00:01 +0000\n",
    b"message-id: <1@example.org>\n",
    b"Received: from c\n",
    b"X-Delivery-ID: 7\n",
    b"Subject: Date: nothing\n",
)


def popa3d_id(*hashed: bytes) -> bytes:
    """The formula once more."""
    digest = hashlib.md5(b"".join(hashed)).digest()
    return (digest[3::-1] + digest[7:3:-1]).hex().encode()


def test_popa3d_s_hash() -> None:
    """Continuation lines count; Date and Message-ID until the first Received; only one of those."""
    assert header_ids.popa3d(b"".join(POPA3D)) == popa3d_id(*POPA3D[:3], POPA3D[5])
    assert header_ids.popa3d(POPA3D[1] + POPA3D[3]) == popa3d_id(POPA3D[1], POPA3D[3])
    assert header_ids.popa3d(b"".join(POPA3D).replace(b"\n", b"\r\n")) == popa3d_id(*POPA3D[:3], POPA3D[5])
    assert header_ids.popa3d(b"x-delivery-id: 7\nDated: x\n") == popa3d_id()
    assert len(header_ids.popa3d(b"")) == 16


def test_x_uidl() -> None:
    """Any case, one of it, blanks around it cut off."""
    assert header_ids.x_uidl(b"Subject: x\nx-uidl:  abc \nTo: y\n") == b"abc"
    assert header_ids.x_uidl(b"X-UIDL:\n abc\nX-UIDL: abc\n") == b"abc"
    assert header_ids.x_uidl(b"Subject: X-UIDL: no\n") is None
    assert header_ids.x_uidl(b"") is None
    with pytest.raises(HeaderNotUsable, match="several"):
        header_ids.x_uidl(b"X-UIDL: a\nX-UIDL: b\n")


def test_where_a_header_ends() -> None:
    """At the first blank line, whichever line ends the file has; or with the file; or nowhere in sight."""
    assert header_ids.header_of(b"A: 1\nB: 2\n\nX-UIDL: no\n") == b"A: 1\nB: 2\n"
    assert header_ids.header_of(b"A: 1\r\n\r\nX-UIDL: no\n\n") == b"A: 1\r\n"
    assert header_ids.header_of(b"\nX-UIDL: no\n") == header_ids.header_of(b"\r\nX: no\n") == b""
    assert header_ids.header_of(b"A: 1") == b"A: 1"
    with pytest.raises(HeaderNotUsable, match="longer than"):
        header_ids.header_of(b"a" * header_ids.MAX_HEADER_OCTETS)


@given(st.binary(max_size=200))
def test_any_message_has_a_header(octets: bytes) -> None:
    """Or says why not."""
    header = header_ids.header_of(octets)
    assert octets.startswith(header)
    assert len(header_ids.popa3d(header)) == 16
    try:
        header_ids.x_uidl(header)
    except HeaderNotUsable:
        return


def test_every_well_known_format_is_one() -> None:
    """And none is the same as another."""
    assert len({Format(name).expand(FACTS) for name in WELL_KNOWN}) == len(WELL_KNOWN)


def test_a_file_of_line_ends_costs_no_more_memory_than_it_is_large() -> None:
    """A hostile user's file of 128 MiB took a gigabyte, before its first line was looked at."""
    octets = b"\n" * 4_000_000
    tracemalloc.start()
    try:
        assert next(state.lines(octets)) == (1, b"")
        assert sum(1 for _ in state.lines(octets[:1000])) == 1000
        with pytest.raises(BadState):
            uidlist.parse(octets)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000
