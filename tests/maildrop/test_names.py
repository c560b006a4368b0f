"""Names of messages: unique-ids that can never change, sizes, order, flags."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop import names
from tests.maildrop.store import delivery_time, expected_id, expected_twin_id

PLAIN = b"1234567890.M20046P2137.mailserver,S=4542,W=4642"
octets = st.binary(max_size=90)
any_name = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)


# Frozen: a release that fails one of these makes every client download its mail again.
VECTORS = [
    (PLAIN, PLAIN),
    (b"a" * 70, b"a" * 70),
    (b"a" * 71, b"e83ce68038e16291b935ede73ad12be76f12474f"),
    (b"1700000000.M1P2.host with space", b"34aa23255f74f07afa3bca422da460eb71a9e5d3"),
    (b"1700000000.M1P2.h\xc3\xb6st", b"e1af8426b841bc7cdea36080495f11f8701a6dc8"),
    (b"1700000000.M1P2.host\n", b"c0811f118ac4ee136e860c016bcd9931fa469565"),
    (b"1700000000.M1P2.host\x7f", b"bc91dc186cc8b63c9b4e79baeaac783b6bc5a526"),
    (b"", b"3345524abf6bbe1809449224b5972c41790b6cf2"),
]
TWIN_VECTORS = [
    (PLAIN, bytes(32), b"66b2a47a77627067858bca77ceb556ca6c414bd4"),
    (b"1700000000.M1P2.host", bytes(range(32)), b"b6c50cb7e56c0e24b2ef8bb88db71408f0a4c512"),
]


@pytest.mark.parametrize(("base", "shown"), VECTORS)
def test_unique_ids_are_what_they_always_were(base: bytes, shown: bytes) -> None:
    """The formula for a unique-id never changes."""
    assert names.unique_id(base) == shown


@pytest.mark.parametrize(("base", "digest", "shown"), TWIN_VECTORS)
def test_twin_ids_are_what_they_always_were(base: bytes, digest: bytes, shown: bytes) -> None:
    """The formula for a unique-id of one of several files with a base name never changes."""
    assert names.twin_id(base, digest) == shown


@given(octets)
def test_unique_id_against_the_slow_rule(base: bytes) -> None:
    """RFC 1939 §7: 1 to 70 characters in 0x21 to 0x7E, whatever the file is called."""
    shown = names.unique_id(base)
    assert shown == expected_id(base)
    assert names.is_literal(shown)


@given(octets, octets)
def test_twin_id_against_the_slow_rule(base: bytes, content: bytes) -> None:
    """A twin's unique-id is made of its base name and its content."""
    digest = hashlib.blake2b(content, digest_size=32).digest()
    assert names.twin_id(base, digest) == expected_twin_id(base, content)


@given(st.lists(octets, unique=True, max_size=30))
def test_many_unique_ids_at_once(bases: list[bytes]) -> None:
    """The fast path for many names gives what the formula gives for each."""
    assert names.unique_ids(bases, {}) == [expected_id(base) for base in bases]


def test_a_base_name_that_is_the_hash_of_another() -> None:
    """Unique-ids are unique in the maildrop, even if somebody names a file after another's hash."""
    long = b"1700000000." + b"x" * 80
    hashed = expected_id(long)
    assert names.unique_ids([long, hashed], {}) == [hashed, hashed + b"-2"]
    assert names.unique_ids([hashed, hashed + b"-2", long], {}) == [hashed, hashed + b"-2", hashed + b"-3"]
    assert names.is_derived(hashed + b"-3", hashed)


@given(st.lists(st.sampled_from([b"a" * 40, b"a" * 40 + b"-2", b"b" * 40, b"b" * 40 + b"-3"]), max_size=12))
def test_ids_are_unique_whatever_collides(ids: list[bytes]) -> None:
    """However many are equal, all are told apart, and each is derived from its formula."""
    told = names.unique_ids([b"x"] * len(ids), dict(enumerate(ids)))
    assert len(set(told)) == len(told)
    for shown, formula in zip(told, ids, strict=True):
        assert names.is_derived(shown, formula)


def test_thousands_of_identical_twins_take_no_time() -> None:
    """Telling apart is not quadratic in the number of equal ones."""
    told = names.unique_ids([b"x"] * 20000, dict.fromkeys(range(20000), b"f" * 40))
    assert told[-1] == b"f" * 40 + b"-20000"


@pytest.mark.parametrize(
    ("shown", "formula", "derived"),
    [
        (b"abc", b"abc", True),
        (b"abc-2", b"abc", True),
        (b"abc-", b"abc", False),
        (b"abc-x", b"abc", False),
        (b"abcd", b"abc", False),
        (b"ab", b"abc", False),
        (b"", b"abc", False),
    ],
)
def test_derived(shown: bytes, formula: bytes, derived: bool) -> None:
    """A shown unique-id belongs to a file only if its formula gave it, perhaps with a number."""
    assert names.is_derived(shown, formula) is derived


@pytest.mark.parametrize(
    ("base", "claimed"),
    [
        (PLAIN, 4642),
        (b"1.a,W=7", 7),
        (b"1.a,W=7,S=5", 7),
        (b"1.a,S=5,W=12", 12),
        (b"1.a,S=0,W=0", 0),
        (b"1.a", -1),
        (b"1.a,S=5", -1),
        (b"1.a,W=", -1),
        (b"1.a,W=-3", -1),
        (b"1.a,W=+3", -1),
        (b"1.a,W= 3", -1),
        (b"1.a,W=3x", -1),
        (b"1.a,W=\xb2", -1),
        (b"1.a,W=1234567890123", -1),
        (b"1.a,S=5,W=4", -1),
        (b"1.a,S=5,W=13", -1),
        (b"1.a,S=500,W=0", -1),
    ],
)
def test_claimed_octets(base: bytes, claimed: int) -> None:
    """`W=` is believed if it is a number that can be true beside `S=`; else the file is read."""
    assert names.wire_octets(base) == claimed


@given(octets)
def test_claims_never_fail(base: bytes) -> None:
    """Whatever a file is called, its sizes are numbers or unknown."""
    assert names.wire_octets(base) >= -1
    assert names.file_octets(base) >= -1


@given(st.lists(st.one_of(octets, st.from_regex(rb"\A[0-9]{0,12}[.][a-z0-9]{0,3}\Z")), max_size=20))
def test_order(bases: list[bytes]) -> None:
    """Messages are in order of delivery time, then of their names' octets."""
    assert sorted(bases, key=names.order_key) == sorted(bases, key=lambda base: (delivery_time(base), base))


@given(st.lists(st.from_regex(rb"\A[0-9]{10}[.][a-z0-9:,.]{0,3}\Z"), max_size=20))
def test_usual_names_sort_as_octets(bases: list[bytes]) -> None:
    """The fast path for names that begin with ten digits and a dot is the same order."""
    assert names.have_usual_times(bases)
    assert sorted(bases) == sorted(bases, key=names.order_key)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        (b"1.a", b"1.a:2,S"),
        (b"1.a:2,", b"1.a:2,S"),
        (b"1.a:2,S", b"1.a:2,S"),
        (b"1.a:2,TF", b"1.a:2,FST"),
        (b"1.a:2,aRb", b"1.a:2,RSab"),
        (b"1.a:1,x", b"1.a:1,x"),
        (b"1.a:2,F,x", b"1.a:2,F,x"),
        (b"1.a:x", b"1.a:x"),
    ],
)
def test_seen_name(name: bytes, seen: bytes) -> None:
    """A retrieved message gets the S flag, flags in order; what is no such info is left alone."""
    assert names.seen_name(name) == seen


@given(any_name)
def test_seen_name_keeps_the_base_name(name: bytes) -> None:
    """Whatever the flags, the base name, and so the unique-id, stays."""
    assert names.base_name(names.seen_name(name)) == names.base_name(name)
    assert names.seen_name(names.seen_name(name)) == names.seen_name(name)


@pytest.mark.parametrize("name", [b"", b".", b"..", b".x", b"a/b", b"/a", b"a\0b", b"a" * 256])
def test_names_that_are_no_messages(name: bytes) -> None:
    """No name leads out of its folder, and no dot file is a message."""
    assert not names.is_message_name(name)
