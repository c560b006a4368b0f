"""
Has a maildrop lost unique-ids that were served before? Seen when it is listed, before the users call.

Pure: compares what the old cache has with what goes into the new one. That messages are gone is
nobody's accident as such: POP3 and IMAP clients remove mail all day, and retention does. An accident is
a message that is still there under another id, because its clients download it again:

    changed   its base name is as it was: ids were imported or an import is gone, a twin came or went
    renamed   its file has another base name: a restore, a copy or a script that renames messages
    replaced  all that was there is gone, as much is there now, and POP3 had no part in that: another
              maildrop, an old backup, or messages renamed and rewritten

Executed by the session, as the mail user, and only where more has changed than that mail came.
"""

from __future__ import annotations

from gpop.maildrop import names
from gpop.maildrop.statcache import NAMED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.reconcile import Messages
    from gpop.maildrop.table import Known

# A maildrop with less in it may be emptied and filled by its user between two polls.
FEWEST_REPLACED = 10
# So many different sizes among those that are gone are found again among those that came: no coincidence.
FEWEST_SIZES = 5


def changes(known: Known, removed: int, messages: Messages, ids: list[bytes]) -> dict[str, int | str] | None:
    """
    Return the counts for the log if messages have other unique-ids than they had; None if not.

    `removed` of the known ones went through POP3.
    """
    gone = set(known.ids).difference(ids)
    if not gone:
        return None
    served = set(known.ids)
    lost = [index for index, shown in enumerate(known.ids) if shown in gone]
    came = [index for index, shown in enumerate(ids) if shown not in served]
    bases = {_base(known, index) for index in lost}
    changed = [index for index in came if messages.found[index][0] in bases]
    came = [index for index in came if messages.found[index][0] not in bases]
    renamed = max(_same_files(known, lost, messages, came), _same_sizes(known, lost, messages, came))
    # Of what is gone by itself.
    count, gone_count = len(known.ids), max(0, len(gone) - removed)
    is_replaced = len(gone) == count and gone_count >= FEWEST_REPLACED and len(ids) >= count - removed
    if not (changed or renamed or is_replaced):
        return None
    return {"changed": len(changed), "renamed": renamed, "gone": gone_count, "messages": count}


def _base(known: Known, index: int) -> bytes:
    name = known.names[index]
    return names.base_name(name) if known.flags[index] & NAMED else known.ids[index]


def _same_files(known: Known, lost: list[int], messages: Messages, came: list[int]) -> int:
    """How many of those that came have mtime (ns) and size of one that is gone: renamed, moved, restored."""
    files = {known.stamps[index] for index in lost if known.stamps[index]}
    return sum(messages.stamps[index] in files for index in came)


def _same_sizes(known: Known, lost: list[int], messages: Messages, came: list[int]) -> int:
    """
    How many of those that came have the octets of one that is gone, if most of these are found again.

    Sizes are counted once each: alerts that are all equally long come and go all day.
    """
    sizes = {known.octets[index] for index in lost}
    found = sizes.intersection([messages.octets[index] for index in came])
    return len(found) if len(found) >= FEWEST_SIZES and 2 * len(found) >= len(lost) else 0
