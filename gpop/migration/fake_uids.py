"""
nupop's fake unique-ids: a file whose mtime is a small number has the id that `.fake_uids` has under it.

    17 UID17-1275660208

Pure. nupop's own source is lost, and the format of its file with it: a line with the number, blanks and the
id is what is understood here; whoever has another one makes that of it first. The mtimes are read and
never set. Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

from gpop.migration.state import BadState, lines, number_of

# FAKE_UID_MAX in nupop's src/fake_uid.h: from here on an mtime is a time.
FAKE_UID_MAX = 60000


def parse(octets: bytes) -> dict[int, bytes]:
    """
    Return the ids in a file by number.

    Raises:
        BadState: a line is not of that format, or a number comes twice.
    """
    ids: dict[int, bytes] = {}
    for number, line in lines(octets):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise BadState(number, "not a number and a unique-id")
        key = number_of(fields[0], number, "the key", 1)
        if key in ids:
            raise BadState(number, f"the key {key} for a second time")
        ids[key] = fields[1]
    return ids
