"""Targets: the files in a Maildir that its user can write, and what a session makes of them."""

from __future__ import annotations

import functools
import os
import shutil
import zlib

from gpop.maildrop import errors, hit, imported, names, retention, statcache, table
from gpop.maildrop.cachefile import Image
from gpop.maildrop.imported import BadImport, ImportedId
from gpop.maildrop.model import Maildrop
from gpop.maildrop.statcache import HEADER_OCTETS, NAMED, BadCache, Facts
from gpop.maildrop.table import NOTHING, Known
from tests.fuzz.target import folder, patched, target, with_right_checksums, with_switches
from tests.maildrop.store import Store, content, expected, listing

FAULTS = (
    errors.MaildropUnavailable, errors.MessageChanged, errors.MessageUnreadable, errors.MessageVanished,
)  # fmt: skip
BOOT = b"boot"
BASES = (b"1700000000.a", b"1700000001.b", b"1700000002.c")


def _image() -> bytes:
    """A .statcache of three messages, one of which has an id of another server."""
    file_names = [b"1700000000.a:2,S", b"1700000001.b", b"1700000002.c:2,"]
    ids = [b"1700000000.a", b"UID17-1275660208", b"1700000002.c"]
    known = Known(ids, (120, 7, 9), bytes((8, NAMED | 1, 0)), file_names, (11, 12, 13), (1, 0, 2**32 - 1))
    facts = Facts(BOOT, 0, 5, 0, (1, 2, 3, 4), (5, 6, 7, 8))
    return b"".join(statcache.assemble(NOTHING, table.render(NOTHING, known), 136, facts))


IMAGE = _image()


def cache_image(octets: bytes) -> None:
    """
    A forged cache is refused with a reason, or all it is asked has an answer or a named fault
    within the file.
    """
    how, octets = (octets[:1] or b"\0")[0], octets[1:]
    image = octets if how & 1 else patched(IMAGE, octets)
    image = with_right_checksums(image) if how & 2 else image
    try:
        header = statcache.parse_header(image, len(image))
    except BadCache as bad:
        assert bad.reason.isidentifier()
        return
    _ask_for_everything(Maildrop(Image(header, image, -1), lambda *_: True), len(image))
    try:
        known = table.take_apart(table.cut(header, image))
    except BadCache as bad:
        assert bad.reason.isidentifier()
        return
    assert len(known.ids) == len(known.names) == len(known.octets) == header.count
    for name in known.names:
        assert name and not name.startswith(b".") and b"/" not in name and b"\0" not in name


def _ask_for_everything(drop: Maildrop, size: int) -> None:
    for index in range(min(drop.count, 8)):
        for ask in (drop.octets, drop.scan_line, drop.unique_id_line, drop.unique_id, drop.location):
            try:
                answer = ask(index)
            except FAULTS:
                continue
            if ask == drop.location:
                assert names.is_message_name(answer.name)
            elif ask == drop.unique_id:
                assert names.is_literal(answer)
    marked = [index for index in range(min(drop.count, 8)) if index % 2 == 0 and _marks(drop, index)]
    assert drop.marked() == marked
    for kind in ("LIST", "UIDL"):
        try:
            segments = drop.listing_segments(kind)
        except FAULTS:
            continue
        at = HEADER_OCTETS
        for offset, length in segments:
            assert at <= offset and length >= 0 and offset + length <= size
            at = offset + length


def _marks(drop: Maildrop, index: int) -> bool:
    try:
        drop.mark_deleted(index)
    except FAULTS:
        return False
    return True


class Fresh:
    """A Maildir of three messages, made anew when something was removed from it."""

    def __init__(self, name: str) -> None:
        self._path = folder() / name
        self._make()

    def _make(self) -> None:
        self.store = Store(self._path)
        for number, base in enumerate(BASES):
            self.store.deliver(base, b"Subject: x\n\n" + b"line\n" * number, "cur" if number == 1 else "new")
        self.store.open(boot_id=BOOT).close()
        self.files, self.image = self.store.files(), self.store.cache.read_bytes()

    def again(self) -> None:
        """Have it as it was."""
        if self.store.files() != self.files:
            self.store.close()
            shutil.rmtree(self._path)
            self._make()


@functools.cache
def _fresh(name: str) -> Fresh:
    return Fresh(name)


def statcache_in_use(octets: bytes) -> None:
    """
    Any octets as .statcache: a rebuild, or a maildrop of which only what was shown and marked is
    removed.
    """
    how, octets = (octets[:1] or b"\0")[0], octets[1:]
    fresh = _fresh("statcache")
    store = fresh.store
    image = octets if how & 1 else patched(fresh.image, octets)
    store.cache.write_bytes(with_right_checksums(image) if how & 2 else image)
    looked = hit.look(store.dir_fd, 0, BOOT)
    if looked:
        os.close(looked[-1])
    with store.session(boot_id=BOOT) as opened:
        assert not looked or ((opened.outcome, opened.reason), looked[:2]) == (
            ("hit", "unchanged"),
            opened.maildrop.stat(),
        )
        if opened.outcome == "rebuild":
            assert listing(opened) == expected(store)
        shown = set()
        for index in range(min(opened.maildrop.count, 8)):
            try:
                shown.add(opened.maildrop.unique_id(index))
                content(opened, index)
                opened.maildrop.mark_deleted(index) if how & 4 else None
            except FAULTS:
                continue
        marked = len(opened.maildrop.marked())
        result = opened.update()
        assert result.removed + result.failed == marked
    gone = {name.split(b":")[0] for _, name in fresh.files} - {
        name.split(b":")[0] for _, name in store.files()
    }
    assert gone <= shown and len(gone) == result.removed
    fresh.again()


def _resealed(body: bytes) -> bytes:
    """A file of imported unique-ids with a first line that fits."""
    return imported.FORMAT_MARK + b"%08x %d\n" % (zlib.crc32(body), body.count(b"\n")) + body


def unique_ids(octets: bytes) -> None:
    """A .unique-ids is refused with a line, or says the same when it is written again and asked singly."""
    octets = _resealed(octets[1:]) if octets[:1] > b"\x7f" else octets
    try:
        ids = imported.parse(octets)
    except BadImport as bad:
        assert 1 <= bad.line <= octets.count(b"\n") + 2 and bad.reason
        return
    assert imported.parse(imported.render(ids)) == ids
    assert len({one.unique_id for one in ids.values()}) == len(ids)
    for base in [*ids, b"absent"][-4:]:
        assert imported.Lookup(octets).of(base) == ids.get(base)
        assert names.is_message_name(base) or base not in ids
    assert imported.Lookup(octets).all() == ids


def unique_ids_in_use(octets: bytes) -> None:
    """
    Any octets as .unique-ids: a fault and never default unique-ids, or each message with the id it
    was given.
    """
    octets = _resealed(octets[1:]) if octets[:1] > b"\x7f" else octets
    store = _fresh("unique-ids").store
    (store.path / ".unique-ids").write_bytes(octets)
    try:
        ids = imported.parse(octets)
    except BadImport:
        ids = None
    try:
        with store.session(boot_id=BOOT) as opened:
            assert ids is not None
            shown = [unique_id for unique_id, _ in listing(opened)]
            for index in range(opened.maildrop.count):
                content(opened, index)
    except errors.MaildropUnavailable:
        assert ids is None
        return
    kept = [base for base in BASES if base not in ids or ids[base].order != imported.HIDDEN]
    assert len(set(shown)) == len(shown) == len(kept)
    assert {ids[base].unique_id for base in kept if base in ids} <= set(shown)
    assert {ids[base].unique_id for base in BASES if base not in kept}.isdisjoint(shown)


def retrieved(octets: bytes) -> None:
    """
    A record of retrievals that is damaged says nothing at all, and any other is the same when
    written again.
    """
    if octets[:1] > b"\x7f":
        octets = retention.FORMAT_MARK + b"%08x\n" % zlib.crc32(octets[1:]) + octets[1:]
    record = retention.parse(octets)
    if record is not None:
        assert retention.parse(retention.render(record)) == record
        assert all(names.is_literal(unique_id) and seconds >= 0 for unique_id, seconds in record.items())


_PATCHES = [
    b"",
    b"\x0c\0\1",
    b"\x28\0\xff\x29\0\xff",
    b"\x14\x01\x2f",
    b"\x60\x01\x2e\x61\x01\0",
    b"\xb0\x01\x20",
]
_IDS = imported.render(
    {BASES[0]: ImportedId(b"UID1-7", 2), BASES[1]: ImportedId(b"000061ae", 1), BASES[2]: ImportedId(b"x", -1)}
)
_BODIES = [
    _IDS.partition(b"\n")[2],
    b"0 1700000001.b 1700000000.a\n",
    b"- a 1700000000.a\n- b 1700000001.b\n- c 1700000002.c\n",
    b"3 UID3 %2Ea%20b\n",
]
_RECORD = retention.render({b"1700000000.a": 1700000000, b"UID1-7": 0})

TARGETS = (
    target(cache_image, [*with_switches(_PATCHES, 0, 2), *with_switches([IMAGE], 1, 3)]),
    target(statcache_in_use, [*with_switches(_PATCHES, 0, 2, 6), *with_switches([IMAGE], 3, 7)], examples=40),
    target(unique_ids, [_IDS, *with_switches(_BODIES, 0xFF)]),
    target(unique_ids_in_use, [_IDS, *with_switches(_BODIES, 0xFF), b""], examples=40),
    target(retrieved, [_RECORD, b"\xff" + _RECORD.partition(b"\n")[2]]),
)
