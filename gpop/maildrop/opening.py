"""
EDGE: opens a maildrop: is the statcache still true, and if not, what has to be done.

    judge     one read, three stats: hit, refresh or rebuild, and why
    renewal   list what changed, measure what is new, write the cache, or do without it
    opened    what the session works with after that

docs/statcache.md has the table of states. Executed by the session, as the mail user.
"""

from __future__ import annotations

import os
import time

from gpop.maildrop import cachefile, importfile, reconcile, statcache, system
from gpop.maildrop.cachefile import Draft, Image
from gpop.maildrop.errors import MaildropUnavailable
from gpop.maildrop.maildir import Maildir
from gpop.maildrop.opened import Opened
from gpop.maildrop.removal import UNLINK
from gpop.maildrop.renewal import Memory, renew, unwritable
from gpop.maildrop.statcache import HEADER_OCTETS, BadCache, Facts
from gpop.maildrop.table import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.hit import Hit
    from gpop.maildrop.statcache import Signature

    Warnings = list[tuple[str, dict[str, int | str]]]

HIT, REFRESH, REBUILD, OFF = "hit", "refresh", "rebuild", "off"
# Reasons of a rebuild that nobody needs to look into.
HARMLESS_REASONS = ("absent", "other_version")
# Reasons of a refresh for which the old cache is only good for what it knows of octets.
DISTRUSTED_REASONS = ("settings_changed", "import_changed")


class Options:
    """What the config decides about maildrops."""

    __slots__ = (
        "audit", "boot_id", "cache", "clock_wait_s", "expire_days", "max_messages", "move_to_cur", "removal",
    )  # fmt: skip

    def __init__(
        self,
        cache: bool = True,
        max_messages: int = 0,
        boot_id: bytes = b"",
        clock_wait_s: float = 0.02,
        move_to_cur: bool = True,
        expire_days: int = -1,
        removal: str = UNLINK,
        audit: bool = False,
    ) -> None:
        self.cache = cache
        self.max_messages = max_messages
        self.boot_id = boot_id  # of this run of the kernel; empty: unknown
        self.clock_wait_s = clock_wait_s
        self.move_to_cur = move_to_cur
        self.expire_days = expire_days  # how long retrieved messages stay; -1: until somebody removes them
        self.removal = removal  # what becomes of the removed ones (removal.py)
        self.audit = audit  # whether each of these is noted

    def with_removal(self, removal: str) -> Options:
        """Return the options for an account that has a setting of its own."""
        return Options(
            self.cache,
            self.max_messages,
            self.boot_id,
            self.clock_wait_s,
            self.move_to_cur,
            self.expire_days,
            removal,
            self.audit,
        )


class Verdict:
    """
    What to do about a cache: `outcome` and the `reason` for the log.

    `image` is there for a hit and a refresh; `signatures` are those of the folders now.
    """

    __slots__ = ("image", "outcome", "reason", "signatures")

    def __init__(
        self, outcome: str, reason: str, signatures: tuple[Signature, Signature], image: Image | None
    ) -> None:
        self.outcome = outcome
        self.reason = reason
        self.signatures = signatures
        self.image = image


def judge(folders: Maildir, options: Options) -> Verdict:
    """
    Decide what the maildrop's cache is worth now. Changes nothing.

    Raises:
        MaildropUnavailable: a folder is missing or can't be looked at.
        OSError: the file of imported unique-ids can't be looked at.
    """
    try:
        image = cachefile.open_image(folders.dir_fd)
    except BadCache as bad:
        return Verdict(REBUILD, bad.reason, folders.signatures(), None)
    try:
        signatures = folders.signatures()
        header = image.header
        if header.max_messages != options.max_messages:
            return Verdict(REFRESH, "settings_changed", signatures, image)
        reason = reconcile.change_reason(header, signatures, importfile.signature(folders.dir_fd))
        if reason != "unchanged":
            return Verdict(REFRESH, reason, signatures, image)
        if image.octets is None and (header.boot_id != options.boot_id or not options.boot_id):
            # A large body that a crash may have torn: read and checked once, then served from memory.
            image.octets = image.load()
            return Verdict(HIT, "unchanged_since_boot", signatures, image)
        return Verdict(HIT, reason, signatures, image)
    except BadCache as bad:
        image.close()
        return Verdict(REBUILD, bad.reason, signatures, None)
    except BaseException:
        image.close()
        raise


def open_maildrop(dir_fd: int, options: Options) -> Opened:
    """
    Open the maildrop of a Maildir; `dir_fd` stays the caller's and has to stay open until `close`.

    Raises:
        MaildropUnavailable: new/ or cur/ can't be read. Never an empty maildrop instead.
    """
    started = time.monotonic()
    folders = Maildir(dir_fd)
    warnings: Warnings = []
    try:
        if options.cache:
            verdict = judge(folders, options)
        else:
            verdict = Verdict(OFF, "disabled", folders.signatures(), None)
        image = verdict.image
        if image is None or verdict.outcome != HIT:
            image = _renewed(folders, options, verdict, warnings)
        elif verdict.reason != "unchanged":
            image = _written_again(folders, options, image, warnings)
    except OSError as error:
        folders.close()
        raise MaildropUnavailable(f"the maildrop can't be read: {error}", error.errno) from error
    except BaseException:
        folders.close()
        raise
    opened = Opened(folders, options, verdict, image, warnings)
    opened.cache_ms = (time.monotonic() - started) * 1000
    return opened


def opened_by_hit(dir_fd: int, options: Options, hit: Hit) -> Opened:
    """
    Return the open maildrop of a hit found by `hit.look`, for the commands that want more than it says.

    Takes over its descriptor. Raises MaildropUnavailable: the statcache has been damaged meanwhile.
    """
    body, fd = hit[-2:]
    try:
        head = system.pread(fd, HEADER_OCTETS, 0)
        header = statcache.parse_header(head, system.fstat(fd).st_size)
    except (OSError, BadCache) as error:
        os.close(fd)
        raise MaildropUnavailable(f"the statcache was damaged while it was in use: {error}") from error
    verdict = Verdict(HIT, "unchanged", (header.new, header.cur), None)
    return Opened(Maildir(dir_fd), options, verdict, Image(header, head + body if body else None, fd), [])


def absent_maildrop() -> Opened:
    """Return the empty maildrop of a user who has no Maildir yet."""
    nowhere = (0, 0, 0, 0)
    octets = b"".join(statcache.assemble(NOTHING, NOTHING, 0, Facts(b"", 0, 0, 0, nowhere, nowhere)))
    image = Image(statcache.Header(octets), octets, -1)
    verdict = Verdict(OFF, "maildir_absent", (nowhere, nowhere), None)
    return Opened(None, Options(cache=False), verdict, image, [])


def _written_again(folders: Maildir, options: Options, image: Image, warnings: Warnings) -> Image:
    """
    Write an image that was checked because another run of the kernel wrote it under this one.

    So it is checked once, not on every poll until mail comes.
    """
    if not options.boot_id or image.octets is None:
        return image
    facts = image.header.facts()
    facts.boot_id = options.boot_id
    draft = None
    try:
        draft = Draft(folders.dir_fd)
        fresh = cachefile.write_cache(draft, cachefile.with_facts(image.octets, facts))
    except OSError as error:
        warnings.append(unwritable(error))
        return image
    finally:
        if draft:
            draft.discard()
    image.close()
    return fresh


def _renewed(folders: Maildir, options: Options, verdict: Verdict, warnings: Warnings) -> Image:
    """Carry out a refresh or rebuild; what proves damaged only now makes the one into the other."""
    old, image = verdict.image, None
    try:
        if old:
            noted: Warnings = []
            try:
                memory = Memory(old, trusted=verdict.reason not in DISTRUSTED_REASONS)
                image = renew(folders, options, memory, noted)
                warnings += noted
                return image
            except BadCache as bad:
                verdict.outcome, verdict.reason = REBUILD, bad.reason
        if verdict.outcome == REBUILD and verdict.reason not in HARMLESS_REASONS:
            warnings.append(("cache_damaged", {"reason": verdict.reason}))
        image = renew(folders, options, Memory(None), warnings)
        return image
    finally:
        if old and old is not image:
            old.close()
