"""The octets of a .statcache: what is written is read back, and nothing else is."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop import statcache, table
from gpop.maildrop.statcache import (
    CHECKED_OCTETS,
    HEADER_OCTETS,
    NAMED,
    BadCache,
    Facts,
    Header,
    assemble,
    parse_header,
    reseal,
)
from gpop.maildrop.table import NOTHING, Known, cut, render, take_apart

FACTS = Facts(b"boot", 0, 5, 0, (1, 2, 3, 4), (5, 6, 7, 8))
literal = st.text("abc.,=019", min_size=1, max_size=70).map(str.encode).filter(lambda base: base[:1] != b".")
info = st.sampled_from([b"", b":2,", b":2,S", b":2,FS", b":\n", b":\xff"])
odd_name = st.binary(min_size=1, max_size=255).filter(
    lambda name: not name.startswith(b".") and b"/" not in name and b"\0" not in name
)


word = st.integers(0, 2**32 - 1)

# (unique-id, octets, flags, name, inode, stamp), in the order of the arguments of `Known`.
Message = tuple[bytes, int, int, bytes, int, int]


@st.composite
def messages(draw: st.DrawFn) -> list[Message]:
    """Messages, some with names that are no unique-ids."""
    made = []
    for base in draw(st.lists(literal, max_size=12)):
        octets, flags = draw(st.integers(0, 2**40)), draw(st.integers(0, 255)) & ~NAMED
        if draw(st.booleans()):
            made.append((base, octets, flags, base + draw(info), draw(word), draw(word)))
        else:
            made.append((base, octets, flags | NAMED, draw(odd_name), draw(word), draw(word)))
    return made


def columns(some: list[Message], before: table.Columns = NOTHING) -> statcache.Columns:
    return render(before, Known(*([one[field] for one in some] for field in range(6))))


def image_of(some: list[Message], facts: Facts = FACTS) -> bytes:
    return b"".join(assemble(NOTHING, columns(some), sum(one[1] for one in some), facts))


SMALL = image_of(
    [
        (b"1700000000.a", 120, 8, b"1700000000.a:2,S", 11, 12),
        (b"1700000001.b", 7, 9, b"1700000001.b", 2**32 - 1, 0),
    ]
)


@given(messages())
def test_what_is_written_is_read_back(some: list[Message]) -> None:
    """All that is known of a message survives, and the listings say the same."""
    image = image_of(some)
    header = parse_header(image, len(image))
    known = take_apart(cut(header, image))
    fields = (known.ids, known.octets, known.flags, known.names, known.inodes, known.stamps)
    assert list(zip(*fields, strict=True)) == some
    assert (header.count, header.octets) == (len(some), sum(one[1] for one in some))
    assert header.body_crc == zlib.crc32(image[HEADER_OCTETS:])
    uidl = b"".join(b"%d %b\r\n" % (number, one[0]) for number, one in enumerate(some, 1))
    scan = b"".join(b"%d %d\r\n" % (number, one[1]) for number, one in enumerate(some, 1))
    assert image[HEADER_OCTETS : header.uidl_end] == b"+OK unique-id listing follows\r\n" + uidl + b".\r\n"
    assert image[header.uidl_end : header.list_end] == b"+OK scan listing follows\r\n" + scan + b".\r\n"


@given(messages(), messages())
def test_appending_is_the_same_as_writing_anew(first: list[Message], second: list[Message]) -> None:
    """A cache to which messages were appended is octet for octet the one with all of them."""
    image = image_of(first)
    before = cut(Header(image), image)
    total = sum(one[1] for one in first + second)
    assert b"".join(assemble(before, columns(second, before), total, FACTS)) == image_of(first + second)


@given(st.binary(max_size=36).filter(lambda octets: not octets.endswith(b"\0")), st.integers(0, 2**32 - 1))
def test_facts_survive(boot_id: bytes, max_messages: int) -> None:
    """Boot id, settings, stamps (before 1970 too) and flags come back as they were recorded."""
    stamps = (2**64 - 1, 2**64 - 1, -(2**63), 2**63 - 1)
    for flags in range(8):
        facts = Facts(boot_id, max_messages, -1, flags, stamps, (0, 0, 0, 0))
        image = image_of([], facts)
        again = parse_header(image, len(image)).facts()
        for field in Facts.__slots__:
            assert getattr(again, field) == getattr(facts, field)
        assert reseal(Header(SMALL), facts)[CHECKED_OCTETS:] != SMALL[CHECKED_OCTETS:HEADER_OCTETS]


def test_every_truncation_is_noticed() -> None:
    """A header that is cut short, or a file that is shorter than its header says, is no cache."""
    for length in range(len(SMALL)):
        with pytest.raises(BadCache):
            parse_header(SMALL[:length], length)


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    """Any octet of the header, the unused ones included, is covered by its checksum."""
    for at in range(HEADER_OCTETS):
        for bit in range(8):
            damaged = bytearray(SMALL)
            damaged[at] ^= 1 << bit
            with pytest.raises(BadCache):
                parse_header(bytes(damaged), len(damaged))


HEADER_FIELDS = list(statcache.HEADER.unpack(SMALL[:HEADER_OCTETS]))


@given(st.sampled_from([3, 5, 6, 8, 18, 19, 20, 21]), st.integers(0, 2**32 - 1))
def test_a_forged_header_never_leads_out_of_the_file(field: int, value: int) -> None:
    """With the checksum made right again, a layout is accepted only if all of it lies in the file."""
    fields = HEADER_FIELDS.copy()
    fields[field] = value
    header_octets = statcache.HEADER.pack(*fields)[:CHECKED_OCTETS]
    forged = header_octets + struct.pack("<I", zlib.crc32(header_octets)) + SMALL[HEADER_OCTETS:]
    try:
        header = parse_header(forged, len(forged))
    except BadCache:
        return
    assert HEADER_OCTETS < header.uidl_end < header.list_end < header.table_end <= header.end == len(SMALL)
    assert header.flags_at(header.count) == header.table_end


def forged(body: bytes, count: int = 2) -> bytes:
    """SMALL with another body of the same layout, and right checksums."""
    fields = HEADER_FIELDS.copy()
    fields[7] = zlib.crc32(body)
    header = statcache.HEADER.pack(*fields)[:CHECKED_OCTETS]
    return header + struct.pack("<I", zlib.crc32(header)) + body


@given(st.integers(0, len(SMALL) - HEADER_OCTETS - 1), st.integers(1, 255))
def test_a_forged_body_is_taken_apart_or_refused(at: int, flip: int) -> None:
    """Names from a cache never lead out of a folder, even if its owner made the checksums right."""
    body = bytearray(SMALL[HEADER_OCTETS:])
    body[at] ^= flip
    image = forged(bytes(body))
    try:
        known = take_apart(cut(parse_header(image, len(image)), image))
    except BadCache:
        return
    assert len(known.ids) == len(known.octets) == len(known.names) == 2
    for name in known.names:
        assert name and not name.startswith(b".") and b"/" not in name and b"\0" not in name


def test_a_forged_line_hides_no_dot_file() -> None:
    """Whatever stands in the place of the space behind a message-number."""
    image = image_of([(b"1.a", 1, 8, b"1.a", 0, 0)])
    with pytest.raises(BadCache):
        take_apart(cut(Header(image), image.replace(b"1 1.a", b"1\xff.1a")))


@pytest.mark.parametrize("tail", [b"/x", b"\0", b"../../x", b".x"])
def test_names_that_leave_the_folder_are_refused(tail: bytes) -> None:
    """A table that names something else than an entry of new/ or cur/ is no table."""
    image = image_of([(b"a", 1, NAMED, tail, 0, 0)])
    with pytest.raises(BadCache):
        take_apart(cut(Header(image), image))


@given(st.binary(max_size=400))
def test_any_octets_are_refused_in_words(octets: bytes) -> None:
    """Whatever lies there, the answer is a reason."""
    with pytest.raises(BadCache) as refused:
        parse_header(octets, len(octets))
    assert refused.value.reason.isidentifier()


def test_the_header_is_what_the_docs_say() -> None:
    """docs/statcache.md gives each field's offset; this is the table it gives."""
    rows = [
        row.split("|") for row in (_docs().split("## Header")[1].split("## ")[0]).splitlines() if "|" in row
    ]
    documented = {cells[1].strip(): cells[2].strip() for cells in rows[2:]}
    assert documented["0"] == "8"
    assert sum(int(size) for size in documented.values()) == HEADER_OCTETS
    assert [int(at) for at in documented] == [
        sum(int(size) for size in list(documented.values())[:row]) for row in range(len(documented))
    ]


TIMES = " \N{MULTIPLICATION SIGN} "


def test_the_table_is_what_the_docs_say() -> None:
    """docs/statcache.md has the columns in order, with their widths; the header knows where they are."""
    table = _docs().split("## Table")[1].split("## ")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines() if TIMES in row.partition("|")[2]]
    header, count = Header(SMALL), 2
    at = [header.list_end]
    for row in rows:
        width, _, times = row.partition(TIMES)
        at.append(at[-1] + int(width) * (count + 1 if times == "(n + 1)" else count))
    starts = (header.octets_at, header.uidl_start_at, header.list_start_at, header.tail_start_at)
    rest = (header.inodes_at, header.stamps_at, header.flags_at)
    assert at == [each(0) for each in (*starts, *rest)] + [header.table_end]


def _docs() -> str:
    return (Path(__file__).parents[2] / "docs" / "statcache.md").read_text("utf-8")
