"""Which file is which message: certain, or a doubt with its reason, and never a guess."""

from __future__ import annotations

from hashlib import sha1

from hypothesis import given
from hypothesis import strategies as st

from gpop.migration import matching
from gpop.migration.matching import Listed, Matched, Stored

# (header, body): few of each, so that many are alike in part.
messages = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y", "zz"])), max_size=12)
Message = tuple[str, str]


def size(message: Message) -> int:
    return len(message[0]) + len(message[1])


def digest(*parts: str) -> bytes:
    return sha1("\0".join(parts).encode()).digest()


def match(server: list[Message], files: list[Message], bases: list[bytes] | None = None) -> Matched:
    """Match what a server lists with files, in the order in which they are given."""
    bases = bases or [b"%d" % (100 + index) for index in range(len(files))]
    groups = matching.by_header(
        [
            Listed(number, size(each), b"id%d" % number, digest(each[0]))
            for number, each in enumerate(server, 1)
        ],
        [
            Stored(index, bases[index], frozenset([size(each), 2 * size(each)]), digest(each[0]))
            for index, each in enumerate(files)
        ],
    )
    wanted, stored = matching.to_compare(groups)
    return matching.matched(
        groups,
        {one.number: digest(*server[one.number - 1]) for one in wanted},
        {one.index: digest(*files[one.index]) for one in stored},
    )


def pairs(found: Matched) -> list[tuple[int, int]]:
    return [(pair.listed.number, pair.stored.index) for pair in found.pairs]


@given(messages, st.randoms(use_true_random=False))
def test_the_same_messages_in_any_order(server: list[Message], chance: object) -> None:
    """Every message finds a file with its content, no file is found twice, and nothing is in doubt."""
    files = list(server)
    chance.shuffle(files)  # type: ignore[attr-defined]
    found = match(server, files)
    assert not found.doubts and not found.later
    assert [number for number, _ in pairs(found)] == list(range(1, len(server) + 1))
    assert len({index for _, index in pairs(found)}) == len(files)
    assert all(server[number - 1] == files[index] for number, index in pairs(found))


@given(messages, messages)
def test_two_maildrops_that_have_not_the_same_messages(server: list[Message], files: list[Message]) -> None:
    """Whatever there is: a pair has one header, and every message is paired or in doubt."""
    found = match(server, files)
    for pair in found.pairs:
        assert server[pair.listed.number - 1][0] == files[pair.stored.index][0]
    numbers = [pair.listed.number for pair in found.pairs] + [doubt.listed.number for doubt in found.doubts]
    assert sorted(numbers) == list(range(1, len(server) + 1))
    assert len(found.pairs) + len(found.later) == len(files)


def test_size_and_header_decide() -> None:
    """With one candidate only on either side no content is asked for."""
    groups = matching.by_header(
        [Listed(1, 10, b"a", b"h"), Listed(2, 11, b"b", b"h"), Listed(3, 10, b"c", b"i")],
        [
            Stored(0, b"1", frozenset([10]), b"h"),
            Stored(1, b"2", frozenset([11, 9]), b"h"),
            Stored(2, b"3", frozenset([10]), b"i"),
        ],
    )
    assert matching.to_compare(groups) == ([], [])
    found = matching.matched(groups, {}, {})
    assert [(pair.listed.unique_id, pair.stored.base) for pair in found.pairs] == [
        (b"a", b"1"), (b"b", b"2"), (b"c", b"3"),
    ]  # fmt: skip


def test_identical_ones_keep_their_order() -> None:
    """Of messages that are the same the first takes the file that was delivered first."""
    found = match([("a", "x")] * 3, [("a", "x")] * 3, [b"30.c", b"9.a", b"20.b"])
    assert pairs(found) == [(1, 1), (2, 2), (3, 0)]
    assert {pair.proof for pair in found.pairs} == {matching.BY_ORDER}


def test_more_identical_ones_than_files() -> None:
    """If the server has more of them, one is in doubt: its file is not there."""
    found = match([("a", "x")] * 3, [("a", "x")] * 2)
    assert [(doubt.listed.number, doubt.reason) for doubt in found.doubts] == [(3, matching.TOO_FEW)]


def test_a_file_that_was_changed() -> None:
    """Same header, another content: that is not taken for the message."""
    found = match([("a", "xxx"), ("b", "")], [("a", "yy"), ("b", "")])
    assert [(doubt.listed.number, doubt.reason) for doubt in found.doubts] == [(1, matching.NO_CONTENT)]
    assert pairs(found) == [(2, 1)]


def test_a_size_that_lies_is_no_obstacle() -> None:
    """Listed with a size that no file has, a message is found by its content."""
    groups = matching.by_header([Listed(1, 999, b"a", b"h")], [Stored(0, b"1", frozenset([10]), b"h")])
    listed, stored = matching.to_compare(groups)
    assert [one.number for one in listed] == [1] and [one.index for one in stored] == [0]
    assert [pair.proof for pair in matching.matched(groups, {1: b"c"}, {0: b"c"}).pairs] == [
        matching.BY_CONTENT
    ]
    groups = matching.by_header([Listed(1, 999, b"a", b"h")], [Stored(0, b"1", frozenset([10]), b"h")])
    assert matching.matched(groups, {1: b"c"}, {0: b"d"}).doubts[0].reason == matching.NO_CONTENT


def test_files_that_share_a_base_name() -> None:
    """Ids are kept by base name, so two files with one can't both have theirs."""
    found = match([("a", ""), ("b", ""), ("c", "")], [("a", ""), ("b", ""), ("c", "")], [b"1", b"1", b"2"])
    assert [(doubt.listed.number, doubt.reason) for doubt in found.doubts] == [
        (1, matching.SHARED_NAME), (2, matching.SHARED_NAME),
    ]  # fmt: skip
    assert pairs(found) == [(3, 2)]


def test_mail_that_came_later() -> None:
    """Files that the server has no message for are later mail, in their order."""
    found = match([("a", "")], [("c", ""), ("a", ""), ("b", "")])
    assert found.later == [b"100", b"102"] and not found.doubts


def test_sizes_that_servers_list() -> None:
    """As stored, with CRLF, and with CRLF but for the line end that is missing."""
    assert matching.sizes_of(10, 12, True) == {10, 12}
    assert matching.sizes_of(10, 14, False) == {10, 14, 12}
