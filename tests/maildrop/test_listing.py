"""What readdir said of a folder: parted, encoded, and its checksum."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop.listing import PART, Listing

file_name = st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name)
files = st.lists(st.tuples(file_name, st.integers(0, 2**64 - 1)), max_size=8)


def listing(some: list[tuple[bytes, int]]) -> Listing:
    made = Listing([], [])
    for name, inode in some:
        made.add(name, inode)
    return made


@given(files)
def test_names_come_back_as_octets(some: list[tuple[bytes, int]]) -> None:
    """Names of any octets; of inodes the low 32 bits, which are what the table keeps."""
    made = listing(some)
    assert made.names == [os.fsdecode(name) for name, _ in some]
    assert made.encoded() == [name for name, _ in some]
    assert [*made.files()] == [(name, inode % 2**32) for name, inode in some]


@given(files, st.sets(st.integers(0, 7)))
def test_parted_is_all_of_it(some: list[tuple[bytes, int]], chosen: set[int]) -> None:
    """What is not chosen keeps its order, and the listing stays as it was."""
    made = listing(some)
    indexes = sorted(index for index in chosen if index < len(some))
    there, rest = made.parted(indexes)
    assert there.encoded() == [some[index][0] for index in indexes]
    assert rest.encoded() == [name for index, (name, _) in enumerate(some) if index not in chosen]
    assert rest.inodes == [inode for index, (_, inode) in enumerate(some) if index not in chosen]
    assert made.encoded() == [name for name, _ in some]


@given(files, files)
def test_equal_checksums_are_equal_listings(
    one: list[tuple[bytes, int]], other: list[tuple[bytes, int]]
) -> None:
    assert (listing(one).checksum() == listing(other).checksum()) == (one == other)


def test_a_checksum_is_that_of_all_files() -> None:
    """Made of some at a time: each of them counts, on either side of the borders."""
    some = [(b"%d" % number, number) for number in range(2 * PART + 1)]
    sums = {listing(some).checksum()}
    for at in (0, PART - 1, PART, 2 * PART):
        sums.add(listing(some[:at] + some[at + 1 :]).checksum())
        sums.add(listing([*some[:at], (some[at][0], 1 << 50), *some[at + 1 :]]).checksum())
        sums.add(listing([*some[:at], (b"x", some[at][1]), *some[at + 1 :]]).checksum())
    assert len(sums) == 13
