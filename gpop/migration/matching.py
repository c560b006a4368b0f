"""
PURE: which file is which message of the old server's, and which unique-id it therefore keeps.

A message and a file belong together if their headers are the same and the size that the server lists is
one that servers give such a file, with no other candidate on either side. Where that does not decide
(equal headers, a size that nobody would give), contents are compared. Messages of one content are the
same message to every client, so these take their files in order. What is left of the server's messages is
a *doubt*, with its reason; what is left of the files is mail that came later. Nothing is ever guessed.

    by_header -> what to compare -> (the caller reads these) -> matched

Knows no server and no file. Executed by `gpop uidl`, as the mail user.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from gpop.maildrop import names


@dataclass(frozen=True, slots=True)
class Listed:
    """A message as the server lists it, and the digest of its header."""

    number: int
    octets: int
    unique_id: bytes
    header: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """
    A file of the Maildir: its base name, the sizes that a server may list it with, its header's digest.

    `index` is its place among the caller's files.
    """

    index: int
    base: bytes
    sizes: frozenset[int]
    header: bytes


@dataclass(frozen=True, slots=True)
class Pair:
    """A message and the file that it is; `proof` says what showed it."""

    listed: Listed
    stored: Stored
    proof: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """A message of the server's whose file is not known for certain, and why."""

    listed: Listed
    reason: str


@dataclass(slots=True)
class Group:
    """The messages and files that have one header, in their orders; `pairs` need no more proof."""

    listed: list[Listed]
    stored: list[Stored]
    pairs: list[Pair]


# What showed that a message and a file belong together.
BY_SIZE = "header and size"
BY_CONTENT = "content"
BY_ORDER = "content, in order among identical ones"

NO_HEADER = "no file has its header"
NO_CONTENT = "no file has its content, though one or more have its header"
TOO_FEW = "identical messages, of which the server has more than there are files"
SHARED_NAME = "several files have the base name of its file, and ids are kept by base name"


def sizes_of(file_size: int, wire_octets: int, is_ended: bool) -> frozenset[int]:
    """
    Return the sizes that servers list a file with.

    As it is stored (qmail-pop3d); with CRLF (RFC 1939 §11); and with CRLF, but without the line end that a
    server adds to an unended last line when it sends it.
    """
    return frozenset((file_size, wire_octets, wire_octets if is_ended else wire_octets - 2))


def by_header(listed: Iterable[Listed], stored: Iterable[Stored]) -> list[Group]:
    """Return messages and files by header, with those paired that header and size decide."""
    groups: dict[bytes, Group] = defaultdict(lambda: Group([], [], []))
    for message in listed:
        groups[message.header].listed.append(message)
    for file in sorted(stored, key=lambda file: names.order_key(file.base)):
        groups[file.header].stored.append(file)
    for group in groups.values():
        _pair_by_size(group)
    return list(groups.values())


def _pair_by_size(group: Group) -> None:
    """Pair what has no other candidate on either side."""
    by_size: dict[int, list[Stored]] = defaultdict(list)
    for file in group.stored:
        for size in file.sizes:
            by_size[size].append(file)
    messages_of: Counter[int] = Counter()
    for message in group.listed:
        messages_of.update(file.index for file in by_size.get(message.octets, ()))
    for message in group.listed:
        candidates = by_size.get(message.octets, ())
        if len(candidates) == 1 and messages_of[candidates[0].index] == 1:
            group.pairs.append(Pair(message, candidates[0], BY_SIZE))
    numbers = {pair.listed.number for pair in group.pairs}
    indexes = {pair.stored.index for pair in group.pairs}
    group.listed = [message for message in group.listed if message.number not in numbers]
    group.stored = [file for file in group.stored if file.index not in indexes]


def to_compare(groups: Iterable[Group]) -> tuple[list[Listed], list[Stored]]:
    """Return the messages and the files whose contents have to be known for `matched`."""
    open_groups = [group for group in groups if group.listed and group.stored]
    return (
        [message for group in open_groups for message in group.listed],
        [file for group in open_groups for file in group.stored],
    )


@dataclass(frozen=True, slots=True)
class Matched:
    """All that is known in the end; `later` are base names of files that the server has no message for."""

    pairs: list[Pair]
    doubts: list[Doubt]
    later: list[bytes]


def matched(groups: list[Group], of_messages: dict[int, bytes], of_files: dict[int, bytes]) -> Matched:
    """Return what belongs together, given contents: of messages by number, of files by index."""
    pairs: list[Pair] = []
    doubts: list[Doubt] = []
    for group in groups:
        pairs += group.pairs
        if group.stored and group.listed:
            more, doubtful = _by_content(group, of_messages, of_files)
            pairs += more
            doubts += doubtful
        else:
            doubts += [Doubt(message, NO_HEADER) for message in group.listed]
    every = [file for group in groups for file in group.stored] + [pair.stored for pair in pairs]
    files = {file.index: file.base for file in every}
    shared = {base for base, count in Counter(files.values()).items() if count > 1}
    doubts += [Doubt(pair.listed, SHARED_NAME) for pair in pairs if pair.stored.base in shared]
    pairs = [pair for pair in pairs if pair.stored.base not in shared]
    taken = {pair.stored.index for pair in pairs}
    later = [base for index, base in files.items() if index not in taken and base not in shared]
    return Matched(
        sorted(pairs, key=lambda pair: pair.listed.number),
        sorted(doubts, key=lambda doubt: doubt.listed.number),
        sorted(later, key=names.order_key),
    )


def _by_content(
    group: Group, of_messages: dict[int, bytes], of_files: dict[int, bytes]
) -> tuple[list[Pair], list[Doubt]]:
    """Pair what is left of a group, in order where several have one content."""
    files: dict[bytes, deque[Stored]] = defaultdict(deque)
    for file in group.stored:
        files[of_files[file.index]].append(file)
    several = {content for content, same in files.items() if len(same) > 1}
    pairs: list[Pair] = []
    doubts: list[Doubt] = []
    for message in sorted(group.listed, key=lambda message: message.number):
        content = of_messages[message.number]
        if content not in files:
            doubts.append(Doubt(message, NO_CONTENT))
        elif not files[content]:
            doubts.append(Doubt(message, TOO_FEW))
        else:
            pairs.append(
                Pair(message, files[content].popleft(), BY_ORDER if content in several else BY_CONTENT)
            )
    return pairs, doubts
