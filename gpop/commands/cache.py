"""
`gpop cache show|verify|rebuild MAILDIR`: what a statcache holds, whether it is right, a new one.

For an administrator. Started by root it becomes the Maildir's owner before anything in
there is opened, as a session does, since what lies there is the owner's to arrange; and it
follows no symbolic link on the way. It shares the session's code for reading, judging and
making a cache, but `verify` believes neither the cache nor any `W=`: it reads every message.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import compress

from gpop.commands import owner
from gpop.commands.owner import Refused
from gpop.events import printable
from gpop.maildrop import cachefile, errors, importfile, maildir, names, opening, statcache, table
from gpop.maildrop.cachefile import Image
from gpop.maildrop.model import Maildrop
from gpop.maildrop.opening import Options, Verdict
from gpop.maildrop.statcache import BadCache, Header
from gpop.maildrop.table import Known
from gpop.pop3 import encoding

BOOT_ID = "/proc/sys/kernel/random/boot_id"
FORM_WORDS = {
    encoding.FORM_UNKNOWN: "not known yet",
    encoding.FORM_PLAIN_LF: "plain LF",
    encoding.FORM_WIRE: "ready for the wire",
    encoding.FORM_MIXED: "to be encoded",
}

# What each reason of an outcome means; docs/statcache.md has the same words.
REASONS = {
    "unchanged": "new/ and cur/ are as they were when the cache was written",
    "unchanged_since_boot": "the same, but written before the last boot: its body is read and checked once",
    "new_changed": "new/ is not as it was: mail came or went",
    "cur_changed": "cur/ is not as it was: mail came or went, or flags changed",
    "both_changed": "neither new/ nor cur/ is as it was",
    "racy": "a folder changed in the clock tick in which it was looked at, so it is looked at once more",
    "import_changed": "the file of imported unique-ids is not the one that it was made with",
    "settings_changed": "it was written under another max_messages",
    "absent": "there is no .statcache",
    "not_a_file": ".statcache is a link, a directory, a FIFO or a socket",
    "other_owner": ".statcache belongs to another user than the Maildir",
    "unreadable": ".statcache can't be opened or read",
    "truncated": ".statcache is shorter than it says",
    "too_long": ".statcache is longer than it says",
    "wrong_magic": ".statcache is no cache of gpop's",
    "other_version": ".statcache has the format of another version of gpop",
    "header_damaged": "the header's checksum or layout is wrong",
    "body_damaged": "the checksum of listings and table is wrong",
    "table_damaged": "the checksum is right, but the table is none that gpop writes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, (_, text) in ACTIONS.items():
        command = actions.add_parser(action, help=text, description=text)
        command.add_argument("maildir", metavar="MAILDIR", help="the Maildir that holds new/ and cur/")
        command.add_argument(
            "--max-messages",
            type=int,
            metavar="N",
            help="the server's session.max_messages (default: as the cache has it)",
        )


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 1 if that failed, or if `verify` found something wrong."""
    action, _ = ACTIONS[args.action]
    try:
        dir_fd = owner.enter(args.maildir)
    except (Refused, OSError) as error:
        return _failed(args.maildir, error)
    try:
        return action(dir_fd, args)
    except (Refused, OSError, errors.MaildropUnavailable) as error:
        return _failed(args.maildir, error)
    finally:
        os.close(dir_fd)


def _failed(path: str, error: Exception) -> int:
    print(f"gpop cache: {owner.shown(path)}: {owner.words_of(error, path)}", file=sys.stderr)
    return 1


def _options(dir_fd: int, args: argparse.Namespace) -> Options:
    limit = args.max_messages
    if limit is None:
        limit = 0
        try:
            image = cachefile.open_image(dir_fd)
        except BadCache:
            pass
        else:
            limit = image.header.max_messages
            image.close()
    try:
        with open(BOOT_ID, "rb") as file:
            boot_id = file.read().strip()
    except OSError:
        boot_id = b""
    return Options(max_messages=limit, boot_id=boot_id)


# show


def show(dir_fd: int, args: argparse.Namespace) -> int:
    """Print what the cache holds, and what the next session would make of it."""
    folders = maildir.Maildir(dir_fd)
    verdict = opening.judge(folders, _options(dir_fd, args))
    if verdict.image:
        for line in _described(verdict.image):
            print(line)
    for line in _explained(verdict):
        print(line)
    return 0


def _described(image: Image) -> Iterator[str]:
    header = image.header
    yield f"holds      {header.count} messages of {header.octets} octets together"
    yield f"file       {header.end} octets, written {_time(header.clock_ns)}"
    yield f"setting    max_messages = {header.max_messages}"
    for folder, name in enumerate(names.FOLDERS):
        device, inode, mtime_ns, ctime_ns = statcache.folder_signature(header, folder)
        racy = " (may have changed unnoticed)" if header.flags & statcache.RACY[folder] else ""
        yield f"{name}/       device {device} inode {inode}{racy}"
        yield f"           mtime {_time(mtime_ns)} ctime {_time(ctime_ns)}"
    try:
        known = table.take_apart(table.cut(header, image.load()))
    except BadCache as bad:
        yield f"body       {REASONS[bad.reason]}"
        return
    yield f"octets     {_counts(known, _octets_from)}"
    yield f"forms      {_counts(known, lambda mark: FORM_WORDS[_form(mark)])}"
    no_name = "hashed" if header.imported == statcache.NO_IMPORT else "imported or hashed"
    yield f"unique-ids {_counts(known, lambda mark: _id_from(mark, no_name))}"


def _counts(known: Known, word: Callable[[int], str]) -> str:
    counted = Counter(word(mark) for mark in known.flags)
    return ", ".join(f"{number} {what}" for what, number in counted.most_common()) or "none"


def _octets_from(mark: int) -> str:
    if mark & statcache.ESTIMATED:
        return "estimated (can't be read)"
    return "measured" if mark & statcache.MEASURED else "from W="


def _id_from(mark: int, no_name: str) -> str:
    if mark & statcache.TWIN:
        return "from content (several files have one base name)"
    return no_name if mark & statcache.NAMED else "base names"


def _form(mark: int) -> int:
    return (mark & statcache.FORM_BITS) >> statcache.FORM_SHIFT


def _explained(verdict: Verdict) -> Iterator[str]:
    yield f"now        {verdict.outcome}, {verdict.reason}: {REASONS[verdict.reason]}"
    if verdict.image:
        for folder, name in enumerate(names.FOLDERS):
            was, now = statcache.folder_signature(verdict.image.header, folder), verdict.signatures[folder]
            for what, before, after in zip(("device", "inode", "mtime", "ctime"), was, now, strict=True):
                if before != after:
                    stamp = _time if "time" in what else str
                    yield f"           {name}/: {what} was {stamp(before)}, is {stamp(after)}"


def _time(stamp_ns: int) -> str:
    seconds, rest = divmod(stamp_ns, 1_000_000_000)
    try:
        at = datetime.datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):
        return f"{stamp_ns} ns"
    return f"{at:%Y-%m-%d %H:%M:%S}.{rest:09d}"


# verify


class Truth:
    """The maildrop as it is, every message read."""

    def __init__(self, dir_fd: int, options: Options) -> None:
        recomputed = Options(cache=False, max_messages=options.max_messages)
        opened = opening.open_maildrop(dir_fd, recomputed)
        folders = maildir.Maildir(dir_fd)
        self.numbers: dict[bytes, int] = {}
        self.sizes: dict[bytes, tuple[int, int] | None] = {}
        listed = table.take_apart(table.cut(opened.image.header, opened.image.load()))
        self.inodes = dict(zip(listed.ids, listed.inodes, strict=True))
        for index in range(opened.maildrop.count):
            location = opened.maildrop.location(index)
            self.numbers[location.unique_id] = index + 1
            self.sizes[location.unique_id] = _measured(folders, location.folder, location.name)
        opened.close()
        folders.close()


def _measured(folders: maildir.Maildir, folder: int, name: bytes) -> tuple[int, int] | None:
    try:
        octets, form, _, _ = folders.measure(folder, name)
        return octets, form
    except OSError:
        return None


def verify(dir_fd: int, args: argparse.Namespace) -> int:
    """Recompute everything and print each difference; 1 if a client would be told something wrong."""
    options = _options(dir_fd, args)
    verdict = opening.judge(maildir.Maildir(dir_fd), options)
    for line in _explained(verdict):
        print(line)
    if verdict.image is None:
        return 0  # nothing that could be wrong: the next session makes it anew
    try:
        known = table.take_apart(table.cut(verdict.image.header, verdict.image.load()))
    except BadCache as bad:
        print(f"wrong      {REASONS[bad.reason]}")
        return 1
    truth = Truth(dir_fd, options)
    # A file that was put in another's place is measured by the next session, if that is no hit.
    same = [inode == truth.inodes.get(shown) for shown, inode in zip(known.ids, known.inodes, strict=True)]
    wrong = [*_inconsistencies(dir_fd, verdict.image, known), *_wrong_messages(known, truth, same)]
    stale = [*_wrong_messages(known, truth, [not each for each in same]), *_wrong_listing(known, truth)]
    if verdict.outcome == opening.HIT:
        wrong, stale = wrong + stale, []
    for line in wrong:
        print(f"wrong      {line}")
    for line in stale:
        print(f"stale      {line}")
    if not wrong:
        print(f"right      {len(known.ids)} messages compared with their files")
    return 1 if wrong else 0


def _inconsistencies(dir_fd: int, image: Image, known: Known) -> Iterator[str]:
    """What can be told wrong from the cache alone: listings, totals and table have to say the same."""
    header: Header = image.header
    if header.octets != sum(known.octets):
        yield f"octets of all messages: header says {header.octets}, table {sum(known.octets)}"
    same = table.render(table.NOTHING, known)
    again = statcache.assemble(table.NOTHING, same, header.octets, header.facts())
    if b"".join(again) != image.load():
        yield "listings and table do not belong together"
    if header.imported != importfile.signature(dir_fd):
        return  # what it says of ids is stale, and no file is there any more that could say more
    maildrop = Maildrop(image, importfile.Confirmation(dir_fd).is_imported)
    for index in range(maildrop.count):
        try:
            maildrop.location(index)
        except errors.MessageChanged as error:
            yield f"message {index + 1}: {error}"


def _wrong_messages(known: Known, truth: Truth, wanted: list[bool]) -> Iterator[str]:
    messages = zip(known.ids, known.octets, known.flags, strict=True)
    for shown, octets, mark in compress(messages, wanted):
        true = truth.sizes.get(shown)
        if true is None:
            continue  # gone, or can't be read: nothing to compare with
        if octets != true[0]:
            yield f"{printable(shown)}: listed with {octets} octets ({_octets_from(mark)}), has {true[0]}"
        if _form(mark) not in (encoding.FORM_UNKNOWN, true[1]):
            yield f"{printable(shown)}: taken for {FORM_WORDS[_form(mark)]}, is {FORM_WORDS[true[1]]}"


def _wrong_listing(known: Known, truth: Truth) -> Iterator[str]:
    listed = {shown: number for number, shown in enumerate(known.ids, 1)}
    for shown, number in listed.items():
        if shown not in truth.numbers:
            yield f"{printable(shown)}: listed as message {number}, not there"
        elif truth.numbers[shown] != number:
            yield f"{printable(shown)}: listed as message {number}, is {truth.numbers[shown]}"
    for shown in truth.numbers.keys() - listed.keys():
        yield f"{printable(shown)}: not listed, is message {truth.numbers[shown]}"


# rebuild


def rebuild(dir_fd: int, args: argparse.Namespace) -> int:
    """Remove the cache and make a new one."""
    options = _options(dir_fd, args)
    try:
        os.unlink(cachefile.CACHE_NAME, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Refused(f"{cachefile.CACHE_NAME} can't be removed: {error.strerror}") from error
    opened = opening.open_maildrop(dir_fd, options)
    count, octets = opened.maildrop.stat()
    print(f"rebuilt    {count} messages of {octets} octets together, in {opened.cache_ms:.1f} ms")
    for event, fields in opened.warnings:
        print(f"warning    {event} " + " ".join(f"{name}={value}" for name, value in fields.items()))
    written = opened.image.fd >= 0
    opened.close()
    return 0 if written else 1


ACTIONS = {
    "show": (show, "say what the cache holds, whether it would be a hit now and if not, why"),
    "verify": (verify, "read every message and name each difference from the cache"),
    "rebuild": (rebuild, "make the cache anew, believing nothing that it holds"),
}
