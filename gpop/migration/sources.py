"""
EDGE: where foreign ids come from that another server has left in the Maildir: one source per family.

Reads state files and messages, whatever stands there, with bounds; writes nothing, and sets no mtime.
Executed by `gpop uidl import`, as the Maildir's owner.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from stat import S_ISREG

from gpop.maildrop import names
from gpop.maildrop.imported import MAX_ORDER
from gpop.maildrop.maildir import FILE_FLAGS
from gpop.migration import courier, fake_uids, header_ids, uidlist
from gpop.migration.header_ids import MAX_HEADER_OCTETS, HeaderNotUsable
from gpop.migration.plan import ForeignId, MaildirFile, Verdict
from gpop.migration.state import MAX_STATE_OCTETS, BadState
from gpop.migration.uidl_format import DEFAULT, Facts, Format

FIRST_READ_OCTETS = 16 * 1024


class StateNotUsable(Exception):
    """A state file is not what it should be; the text names it, and the line."""


class StateMissing(Exception):
    """There is no state file `name`: the other server has never numbered this Maildir."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: No such file or directory")
        self.name = name


@dataclass(frozen=True)
class Wanted:
    """
    What the command line says of a source.

    Attributes:
        state: the state file, from the Maildir on; None: the usual one.
        uidl_format: Dovecot's `pop3_uidl_format`, or a name of uidl_format.WELL_KNOWN; None: the default.
        reuse_x_uidl: Dovecot's `pop3_reuse_xuidl`.
        fake_uid_max: nupop's FAKE_UID_MAX.
    """

    state: str | None = None
    uidl_format: str | None = None
    reuse_x_uidl: bool = False
    fake_uid_max: int = fake_uids.FAKE_UID_MAX


@dataclass
class Foreign:
    """What a source has found: ids, and messages of which it can't tell."""

    ids: list[ForeignId] = field(default_factory=list)
    doubts: list[Verdict] = field(default_factory=list)


class Reader:
    """A Maildir, for reading state files and messages."""

    def __init__(self, dir_fd: int) -> None:
        """`dir_fd` stays the caller's."""
        self._dir_fd = dir_fd

    def state(self, wanted: Wanted, usual: str) -> bytes:
        """
        Return the octets of a state file.

        Raises:
            StateMissing: it is not there.
            StateNotUsable: it can't be read, is no regular file, or too large.
        """
        name = wanted.state or usual
        try:
            fd = os.open(name, FILE_FLAGS, dir_fd=self._dir_fd)
            with open(fd, "rb") as file:
                if not S_ISREG(os.fstat(fd).st_mode):
                    raise StateNotUsable(f"{name}: not a regular file")
                octets = file.read(MAX_STATE_OCTETS + 1)
        except FileNotFoundError:
            raise StateMissing(name) from None
        except OSError as error:
            raise StateNotUsable(f"{name}: {error.strerror}") from error
        if len(octets) > MAX_STATE_OCTETS:
            raise StateNotUsable(f"{name}: larger than {MAX_STATE_OCTETS} octets")
        return octets

    def header(self, file: MaildirFile) -> bytes:
        """
        Return a message's header.

        Raises:
            HeaderNotUsable: it has no end within bounds, or the file can't be read.
        """
        try:
            fd = os.open(self._path(file), FILE_FLAGS, dir_fd=self._dir_fd)
            with open(fd, "rb", buffering=0) as message:
                if not S_ISREG(os.fstat(fd).st_mode):
                    raise HeaderNotUsable("no regular file any more")
                octets = message.read(FIRST_READ_OCTETS)
                while len(octets) < MAX_HEADER_OCTETS and not _has_end(octets):
                    more = message.read(FIRST_READ_OCTETS)
                    if not more:
                        break
                    octets += more
        except OSError as error:
            raise HeaderNotUsable(f"can't be read: {error.strerror}") from error
        return header_ids.header_of(octets)

    def mtime(self, file: MaildirFile) -> int:
        """Return a file's mtime in seconds. Raises OSError."""
        return int(os.stat(self._path(file), dir_fd=self._dir_fd, follow_symlinks=False).st_mtime)

    @staticmethod
    def _path(file: MaildirFile) -> bytes:
        return os.fsencode(names.FOLDERS[file.folder]) + b"/" + file.name


def _has_end(octets: bytes) -> bool:
    return b"\n\n" in octets or b"\n\r\n" in octets


# Sources, by the name that --from has for them

Source = Callable[[Reader, list[MaildirFile], Wanted], Foreign]


def numbered(usual: str, uidl_format: str) -> Source:
    """Return the source that makes ids of the numbers in such a file."""

    def source(reader: Reader, files: list[MaildirFile], wanted: Wanted) -> Foreign:
        form = Format(wanted.uidl_format or uidl_format)
        name = wanted.state or usual
        try:
            found = uidlist.parse(reader.state(wanted, usual))
        except BadState as bad:
            raise StateNotUsable(f"{name}: {bad}") from bad
        own = _x_uidl(reader, _without_p(files, found), wanted) if wanted.reuse_x_uidl else Foreign()
        by_header = {names.base_name(one.name): one.unique_id for one in own.ids}
        orders = uidlist.orders(found.entries)
        ids = []
        for base, entry in found.entries.items():
            facts = Facts(entry.uid, found.uid_validity, base, entry.fields.get(b"G", b""))
            said = entry.fields.get(b"P", by_header.get(base))
            # An empty P is short for the base name.
            shown = form.expand(facts) if said is None else said or base
            ids.append(ForeignId(base, shown, orders[base]))
        return Foreign(ids, own.doubts)

    return source


def _without_p(files: list[MaildirFile], found: uidlist.UidList) -> list[MaildirFile]:
    """The files in the list whose id it does not say."""
    without = {base for base, entry in found.entries.items() if b"P" not in entry.fields}
    return [file for file in files if names.base_name(file.name) in without]


def _courier(reader: Reader, _files: list[MaildirFile], wanted: Wanted) -> Foreign:
    usual = "courierpop3dsizelist"
    try:
        return Foreign(courier.parse(reader.state(wanted, usual)))
    except BadState as bad:
        raise StateNotUsable(f"{wanted.state or usual}: {bad}") from bad


def _x_uidl(reader: Reader, files: list[MaildirFile], _wanted: Wanted) -> Foreign:
    return _of_headers(reader, files, header_ids.x_uidl)


def _popa3d(reader: Reader, files: list[MaildirFile], _wanted: Wanted) -> Foreign:
    return _of_headers(reader, files, header_ids.popa3d)


def _of_headers(reader: Reader, files: list[MaildirFile], id_in: Callable[[bytes], bytes | None]) -> Foreign:
    found = Foreign()
    for file in files:
        try:
            shown = id_in(reader.header(file))
        except HeaderNotUsable as error:
            found.doubts.append(Verdict(names.base_name(file.name), "unusable header", b"", str(error)))
            continue
        if shown is not None:
            found.ids.append(ForeignId(file.name, shown))
    return found


def _md5_name(_reader: Reader, files: list[MaildirFile], _wanted: Wanted) -> Foreign:
    bases = (names.base_name(file.name) for file in files)
    return Foreign(
        [ForeignId(base, hashlib.md5(base, usedforsecurity=False).hexdigest().encode()) for base in bases]
    )


def _qmail(reader: Reader, files: list[MaildirFile], _wanted: Wanted) -> Foreign:
    """The ids are gpop's own; the order is that of mtimes."""
    found = Foreign()
    for file in files:
        base = names.base_name(file.name)
        order = min(max(1, _mtime(reader, file)), MAX_ORDER)
        found.ids.append(ForeignId(base, base, order))
    return found


def _nupop(reader: Reader, files: list[MaildirFile], wanted: Wanted) -> Foreign:
    usual = ".fake_uids"
    try:
        ids = fake_uids.parse(reader.state(wanted, usual))
    except BadState as bad:
        raise StateNotUsable(f"{wanted.state or usual}: {bad}") from bad
    found = Foreign()
    for file in files:
        key = _mtime(reader, file)
        if not 0 < key < wanted.fake_uid_max:
            continue
        if key in ids:
            found.ids.append(ForeignId(file.name, ids[key]))
        else:
            reason = f"its mtime is {key}, and no line of {wanted.state or usual} has that number"
            found.doubts.append(Verdict(names.base_name(file.name), "no fake id", b"", reason))
    return found


def _mtime(reader: Reader, file: MaildirFile) -> int:
    try:
        return reader.mtime(file)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise StateNotUsable(
                "messages are being moved meanwhile: try again when nothing does that"
            ) from error
        raise


# --from NAME: (source, one line of help)
SOURCES: dict[str, tuple[Source, str]] = {
    "dovecot": (numbered("dovecot-uidlist", DEFAULT), "dovecot-uidlist, with --uidl-format"),
    "courier": (_courier, "courierpop3dsizelist"),
    "courier-imap": (
        numbered("courierimapuiddb", "cyrus-courier"),
        "courierimapuiddb, with --uidl-format: a server that made ids of IMAP's numbers",
    ),
    "cyrus": (
        numbered("dovecot-uidlist", "cyrus"),
        "Cyrus's UIDVALIDITY.UID, with the numbers in dovecot-uidlist",
    ),
    "uw": (numbered("dovecot-uidlist", "uw"), "UW ipop3d's, with the numbers in dovecot-uidlist"),
    "x-uidl": (_x_uidl, "X-UIDL fields: qpopper, mailutils, teapop"),
    "md5-name": (_md5_name, "the MD5 of file names: tpop3d, solid-pop3d, teapop"),
    "popa3d": (_popa3d, "popa3d's MD5 of the header"),
    "qmail": (_qmail, "qmail-pop3d: gpop's own ids in the order of mtimes"),
    "nupop": (_nupop, "nupop's .fake_uids, by mtime"),
}


def find(name: str, dir_fd: int, files: list[MaildirFile], wanted: Wanted) -> Foreign:
    """
    Return what a source finds in a Maildir.

    Raises:
        StateMissing: there is nothing to be told.
        StateNotUsable: nothing can be told of any message.
        OSError: the same, for a reason of the moment.
    """
    return SOURCES[name][0](Reader(dir_fd), files, wanted)
