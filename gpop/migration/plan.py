"""
What an import would do to one Maildir, message by message; and every reason not to do it.

Pure: files, foreign ids and imported ids in, verdicts out. A plan with a doubt is carried out in no
part: which of two messages a client knows under an id is not to be guessed. Executed by
`gpop uidl`, as the Maildir's owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from gpop.maildrop import imported, names
from gpop.maildrop.imported import ImportedId

# Verdicts that change nothing to worry about.
TAKEN = "taken"  # gets the other server's id
PRESENT = "already there"  # has it since an import before
DEFAULT = "default"  # the other server has no id for it: it keeps the one that gpop gives

# Doubts, and the reasons for them.
TWO_FILES = "two files"
TWO_IDS = "two ids"
ONE_ID = "one id for two messages"
BAD_ID = "unusable id"
BAD_NAME = "unusable name"
BAD_ORDER = "unusable order"
OTHER_ID = "has another id"
DEFAULT_ID = "default id of another message"


class MaildirFile(NamedTuple):
    """A file in new/ or cur/ (`folder`); two with the same device and inode are one message."""

    name: bytes
    inode: tuple[int, int]
    folder: int = 0


class ForeignId(NamedTuple):
    """What another server says of a message: its file's name (or base name), its id, and its place from 1."""

    name: bytes
    unique_id: bytes
    order: int = 0  # 0: after those that have one


class Verdict(NamedTuple):
    """What happens to one message; `reason` is empty unless it is in doubt."""

    base: bytes
    what: str
    unique_id: bytes
    reason: str = ""


@dataclass
class Plan:
    """
    What an import would do.

    Attributes:
        verdicts: one per message in the Maildir, by base name; more if there are several doubts.
        added: what is to be added to the imported ids; empty if there is any doubt.
        without_file: ids of the other server whose message is not in the Maildir (any more).
    """

    verdicts: list[Verdict] = field(default_factory=list)
    added: dict[bytes, ImportedId] = field(default_factory=dict)
    without_file: int = 0

    @property
    def doubts(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.reason]

    def counts(self) -> Counter[str]:
        """How many verdicts there are of each kind."""
        return Counter(verdict.what for verdict in self.verdicts)


def plan(
    files: Iterable[MaildirFile],
    foreign: Iterable[ForeignId],
    there: dict[bytes, ImportedId],
    doubts: Iterable[Verdict] = (),
) -> Plan:
    """
    Return what would be done to the Maildir with these files and these imported ids.

    `doubts` are those of who has found the foreign ids.
    """
    inodes: dict[bytes, set[tuple[int, int]]] = {}
    for file in files:
        inodes.setdefault(names.base_name(file.name), set()).add(file.inode)
    said: dict[bytes, list[ForeignId]] = {}
    made = Plan([*doubts])
    for one in foreign:
        base = names.base_name(one.name)
        if base in inodes:
            said.setdefault(base, []).append(one)
        else:
            made.without_file += 1
    for base in sorted(inodes):
        made.verdicts += _judged(base, len(inodes[base]), said.get(base, []), there)
    wanted = {verdict.base: verdict.unique_id for verdict in made.verdicts if verdict.what == TAKEN}
    made.verdicts += _shared(wanted, there)
    made.verdicts += _taken_from_default(wanted, inodes, there)
    if not made.doubts:
        orders = _orders({base: said[base][0].order for base in said}, there)
        made.added = {base: ImportedId(unique_id, orders[base]) for base, unique_id in wanted.items()}
    made.verdicts.sort(key=lambda verdict: verdict.base)
    return made


def usable(one: ForeignId) -> ForeignId:
    """Return an id, or gpop's own in place of one that no client may be told."""
    if names.is_literal(one.unique_id):
        return one
    return one._replace(unique_id=names.unique_id(names.base_name(one.name)))


def _judged(base: bytes, files: int, said: list[ForeignId], there: dict[bytes, ImportedId]) -> list[Verdict]:
    """Return the verdict on a message, or its doubts, as far as it can be told without the others."""
    if not said:
        known = there.get(base)
        return [Verdict(base, PRESENT, known.unique_id) if known else Verdict(base, DEFAULT, b"")]
    wanted = said[0].unique_id
    doubts = []
    if files > 1:
        doubts.append((TWO_FILES, f"{files} different files have this base name"))
    if len({one.unique_id for one in said}) > 1:
        ids = ", ".join(sorted({repr(one.unique_id)[1:] for one in said}))
        doubts.append((TWO_IDS, f"the other server has several ids for this name: {ids}"))
    if not names.is_literal(wanted):
        doubts.append(
            (
                BAD_ID,
                "the id is not 1 to 70 octets from 0x21 to 0x7E, as RFC 1939 demands; see --replace-unusable",
            )
        )
    if not imported.is_base(base):
        doubts.append((BAD_NAME, "a file without a base name can't have an imported id"))
    if not 0 <= said[0].order <= imported.MAX_ORDER:
        doubts.append((BAD_ORDER, f"the order is not 0 to {imported.MAX_ORDER}"))
    if base in there and there[base].unique_id != wanted:
        doubts.append((OTHER_ID, f"was imported as {there[base].unique_id!r} before"))
    if doubts:
        return [Verdict(base, what, wanted, reason) for what, reason in doubts]
    return [Verdict(base, PRESENT if base in there else TAKEN, wanted)]


def _shared(wanted: dict[bytes, bytes], there: dict[bytes, ImportedId]) -> list[Verdict]:
    """Return the doubts about ids that two messages would have."""
    doubts = []
    of_id = {one.unique_id: base for base, one in there.items()}
    for base, unique_id in wanted.items():
        other = of_id.setdefault(unique_id, base)
        if other != base:
            doubts.append(Verdict(base, ONE_ID, unique_id, f"{other!r} has this id, too"))
    return doubts


def _taken_from_default(
    wanted: dict[bytes, bytes], bases: Iterable[bytes], there: dict[bytes, ImportedId]
) -> list[Verdict]:
    """Return the doubts about ids that another message has by default, and would lose."""
    of_default = {names.unique_id(base): base for base in bases if base not in wanted and base not in there}
    return [
        Verdict(base, DEFAULT_ID, unique_id, f"{of_default[unique_id]!r} has this id by default")
        for base, unique_id in wanted.items()
        if unique_id in of_default
    ]


def _orders(said: dict[bytes, int], there: dict[bytes, ImportedId]) -> dict[bytes, int]:
    """
    Return the order of each message, so that those of an earlier import keep theirs.

    A source that numbers its messages from 1 each time gives other numbers once a message is gone. What
    comes after the last known message then follows it; what is new between known ones gets the number of
    the one before, beside which it stands by delivery time.
    """
    if all(there[base].order == order for base, order in said.items() if base in there):
        return said
    orders = dict(said)
    last = max((one.order for one in there.values()), default=0)
    at = 0
    left = sum(1 for base, order in said.items() if order and base in there)
    for base in sorted((base for base, order in said.items() if order), key=lambda base: said[base]):
        if base in there:
            at = max(at, there[base].order)
            left -= 1
        elif left == 0:
            last += 1
            orders[base] = last
        else:
            orders[base] = at or 1
    return orders
