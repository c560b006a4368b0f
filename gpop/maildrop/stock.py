"""
EDGE: takes stock of the folders of a Maildir, so that no delivery can hide from the next session; and
looks for single messages in them, so that none is said to be gone that only was renamed.

What is recorded of a folder is its signature, and a delivery in the same clock tick leaves
that as it is. So the order matters: the file system's clock first (the ctime of the draft
of the new cache), then the signatures, then the listing, then the signatures once more.
`reconcile.racy_flags` says why this proves something. Executed by the session, as the mail user.
"""

from __future__ import annotations

import time

from gpop.maildrop import names, reconcile, system
from gpop.maildrop.cachefile import Draft
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.statcache import RACY_CUR, RACY_NEW

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpop.maildrop.listing import Listing
    from gpop.maildrop.maildir import Maildir, Places
    from gpop.maildrop.statcache import Signature

# A folder that changes while it is listed is listed again, so many times in all.
LIST_TRIES = 3
# The clock of a file system steps every 1 to 10 ms, where it does not stamp in whole seconds.
CLOCK_POLL_S = 0.001


class Stock:
    """
    The folders at one moment.

    Attributes:
        clock_ns: the file system's clock before that moment.
        signatures: of new/ and cur/.
        racy: header flags of the folders whose signature does not prove anything.
        listings: the files in those folders that were listed.
    """

    __slots__ = ("clock_ns", "listings", "racy", "signatures")

    def __init__(self, clock_ns: int, signatures: tuple[Signature, Signature], racy: int) -> None:
        self.clock_ns = clock_ns
        self.signatures = signatures
        self.racy = racy
        self.listings: dict[int, Listing] = {}

    def is_of_last_tick(self) -> bool:
        """Whether a folder has changed in this very tick of the clock: one more change would not show."""
        new, cur = self.signatures
        return self.clock_ns in (*new[2:], *cur[2:])


def take_stock(
    folders: Maildir, draft: Draft | None, clock_wait_s: float, to_list: Callable[[Stock], list[int]]
) -> Stock:
    """
    List the folders that `to_list` names, at a moment when they hold still.

    Readdir may miss a file that is renamed meanwhile: so a folder that changed while it was
    listed, or may have in the tick of its last change, is listed again. One that never holds
    still gets what all its listings hold together, and is looked at again by the next session.

    Raises:
        MaildropUnavailable: a folder can't be listed.
        OSError: the draft has no clock (any more).
    """
    deadline = time.monotonic() + clock_wait_s
    seen: dict[int, dict[bytes, int]] = {NEW: {}, CUR: {}}
    for _ in range(LIST_TRIES):
        stock = _settled(folders, draft, deadline)
        _list(folders, stock, to_list(stock))
        is_still = folders.signatures() == stock.signatures
        if is_still and not stock.is_of_last_tick():
            return stock
        for folder, listed in stock.listings.items():
            seen[folder].update(listed.files())
    # Both, whatever changed: a message on its way from new/ to cur/ must be in one of them.
    _list(folders, stock, [NEW, CUR])
    _add_lingering(folders, stock, seen)
    if not is_still:
        stock.racy = RACY_NEW | RACY_CUR
    return stock


def look_for(folders: Maildir, wanted: set[bytes] | None, clock_wait_s: float) -> tuple[Places, bool]:
    """
    Return where the files with these base names are (or all files), and whether that is certain.

    It is not if a folder changed meanwhile, or may have in the tick of its last change (which is waited
    out for `clock_wait_s`), or where nothing can be written that tells the clock.

    Raises:
        MaildropUnavailable: a folder can't be listed.
    """
    try:
        clock = Draft(folders.dir_fd)
        try:
            before = _settled(folders, clock, time.monotonic() + clock_wait_s)
        finally:
            clock.discard()
    except OSError:
        return folders.places(wanted), False
    places = folders.places(wanted)
    return places, folders.signatures() == before.signatures and not before.is_of_last_tick()


def _add_lingering(folders: Maildir, stock: Stock, seen: dict[int, dict[bytes, int]]) -> None:
    """
    Add files that only earlier listings hold.

    Of a file that has another name by now that name will do. One whose message is nowhere in
    the last listing is added even if it is gone: it may have been renamed right there. Who
    asks for such a message has it looked for; one that was removed will not be found.
    """
    bases = {names.base_name(name) for listed in stock.listings.values() for name in listed.encoded()}
    for folder, listed in stock.listings.items():
        for name in seen[folder].keys() - dict(listed.files()).keys():
            if names.base_name(name) not in bases or folders.inode(folder, name):
                listed.add(name, seen[folder][name])


def _list(folders: Maildir, stock: Stock, which: list[int]) -> None:
    # new/ before cur/: a message that moves meanwhile is met twice, which is noticed, but never missed.
    stock.listings = {folder: folders.files(folder) for folder in which}


def _settled(folders: Maildir, draft: Draft | None, deadline: float) -> Stock:
    """Read the clock, then the signatures; once more until these are older, unless that takes too long."""
    if draft is None:
        return Stock(0, folders.signatures(), RACY_NEW | RACY_CUR)
    touched = False
    while True:
        clock_ns = draft.clock_ns()
        new, cur = folders.signatures()
        left_ns = (deadline - time.monotonic()) * 1e9
        if not any(0 <= stamp_ns - clock_ns < left_ns for stamp_ns in (*new[2:], *cur[2:])):
            return Stock(clock_ns, (new, cur), reconcile.racy_flags(clock_ns, new, cur))
        if touched:
            system.sleep(CLOCK_POLL_S)
        draft.touch()
        touched = True
