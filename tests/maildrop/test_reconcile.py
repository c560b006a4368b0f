"""Old and new brought together: the racy rule, and a refresh against a rebuild."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from gpop.maildrop import imported, reconcile, statcache, table
from gpop.maildrop.listing import Listing, decoded
from gpop.maildrop.names import CUR, NEW
from gpop.maildrop.statcache import RACY_CUR, RACY_NEW, Facts
from gpop.maildrop.table import NOTHING, NOTHING_KNOWN, Known

stamp = st.integers(0, 12)
base = st.from_regex(rb"\A(17000000[0-9]{2}[.][ab]?|[0-9]{0,3}[xy])\Z").filter(bool)
name = st.tuples(base, st.sampled_from([b"", b":2,", b":2,S"])).map(b"".join)
folder = st.lists(name, unique_by=lambda one: one.partition(b":")[0], max_size=12)


@given(
    clock=stamp, ticks=st.lists(st.tuples(st.sampled_from(["deliver", "tick"])), max_size=10), before=stamp
)
def test_a_trusted_signature_changes_with_every_delivery(
    clock: int, ticks: list[tuple[str]], before: int
) -> None:
    """
    A delivery after the listing changes a signature that was trusted, however coarse the clock.

    The clock only ever goes on; the folder was changed at `before`, looked at after `clock` was read.
    """
    now = max(clock, before)
    signature = (1, 1, before, before)
    trusted = not reconcile.racy_flags(clock, signature, (1, 2, 0, -1)) & RACY_NEW
    for (event,) in ticks:
        if event == "tick":
            now += 1
        else:
            after_delivery = (1, 1, now, now)
            assert not trusted or after_delivery != signature


@given(clock=stamp, new=st.tuples(stamp, stamp), cur=st.tuples(stamp, stamp))
def test_racy_is_per_folder(clock: int, new: tuple[int, int], cur: tuple[int, int]) -> None:
    """A folder is trusted iff both its stamps are strictly below the clock, whatever the other one is."""
    flags = reconcile.racy_flags(clock, (1, 1, *new), (1, 2, *cur))
    assert bool(flags & RACY_NEW) == (max(new) >= clock)
    assert bool(flags & RACY_CUR) == (max(cur) >= clock)


@given(
    clock=stamp,
    written=stamp,
    size=st.integers(0, 2),
    events=st.lists(st.one_of(st.just("tick"), st.integers(0, 2)), max_size=10),
)
def test_a_stamp_changes_with_every_write(
    clock: int, written: int, size: int, events: list[str | int]
) -> None:
    """
    A file that is written to after it was looked at is not taken for what it was, however coarse the clock.

    It was written at `written`, and looked at after `clock` was read. A later session, whose clock
    reading is another, compares.
    """
    remembered = reconcile.file_stamp(written, size, clock)
    now = max(clock, written)
    for event in events:
        if event == "tick":
            now += 1
        elif remembered:
            assert reconcile.file_stamp(now, int(event), now + 1) != remembered
    assert remembered in (0, reconcile.file_stamp(written, size, now + 1)), "else it stays what it was"


def listing(file_names: list[bytes]) -> Listing:
    """What readdir says of a folder; a file keeps its inode whatever happens to its flags."""
    inodes = [crc32(name.partition(b":")[0]) for name in file_names]
    return Listing([decoded(name) for name in file_names], inodes)


def checksums(listings: list[list[bytes]]) -> tuple[bytes, bytes]:
    return listing(listings[NEW]).checksum(), listing(listings[CUR]).checksum()


def known_of(listings: list[list[bytes]]) -> tuple[Known, table.Columns]:
    """What a cache remembers that was made of these folders; octets are the length of the name."""
    found = [
        one for where in (NEW, CUR) for one in reconcile.gathered(where, listing(listings[where]).files())
    ]
    messages = reconcile.recall(NOTHING_KNOWN, reconcile.in_order(found))
    messages.octets = [len(one[0]) for one in messages.found]
    columns = reconcile.rendered(messages, reconcile.shown_ids(messages), NOTHING)
    return table.take_apart(columns), columns


def disjoint(listings: list[list[bytes]]) -> bool:
    bases = [one.partition(b":")[0] for listed in listings for one in listed]
    return len(set(bases)) == len(bases)


two_folders = st.tuples(folder, folder).map(list).filter(disjoint)


@given(before=two_folders, now=two_folders, which=st.sampled_from([[NEW], [CUR], [NEW, CUR]]))
def test_a_refresh_gives_what_a_rebuild_gives(
    before: list[list[bytes]], now: list[list[bytes]], which: list[int]
) -> None:
    """
    Whatever changed, refreshing gives octet for octet the cache that a rebuild gives.

    Only the changed folders are listed; the others are taken from the old cache.
    """
    known, columns = known_of(before)
    now = [now[where] if where in which else before[where] for where in (NEW, CUR)]
    if not disjoint(now):
        return
    facts = Facts(b"", 0, 0, 0, (0, 0, 0, 0), (0, 0, 0, 0))
    _, anew = known_of(now)
    wanted = b"".join(statcache.assemble(NOTHING, anew, 0, facts))

    listings = {where: listing(now[where]) for where in which}
    added = reconcile.additions(checksums(before), columns, listings)
    if added is not None and not reconcile.may_share_id(added, columns):
        messages = reconcile.recall(NOTHING_KNOWN, added)
        messages.octets = [len(one[0]) for one in messages.found]
        more = reconcile.rendered(messages, reconcile.shown_ids(messages), columns)
        assert b"".join(statcache.assemble(columns, more, 0, facts)) == wanted

    found = [
        one
        for where in (NEW, CUR)
        for one in reconcile.gathered(
            where, listing(now[where]).files() if where in which else known.files_in(where).items()
        )
    ]
    messages = reconcile.recall(known, reconcile.in_order(found))
    bases_before = {one.partition(b":")[0] for listed in before for one in listed}
    for index, one in enumerate(messages.found):
        assert (messages.octets[index] == reconcile.UNMEASURED) == (one[0] not in bases_before)
        messages.octets[index] = len(one[0])
    anew = reconcile.rendered(messages, reconcile.shown_ids(messages), NOTHING)
    assert b"".join(statcache.assemble(NOTHING, anew, 0, facts)) == wanted


def test_new_mail_is_appended() -> None:
    """The usual refresh, mail that came last, takes the short way; mail that came earlier does not."""
    before = [[b"1700000005.a"], [b"1700000004.a:2,S"]]
    _, columns = known_of(before)

    def added(folder: int, file_names: list[bytes]) -> list[bytes] | None:
        found = reconcile.additions(checksums(before), columns, {folder: listing(file_names)})
        return None if found is None else [one[2] for one in found]

    assert added(NEW, [b"1700000006.b", b"1700000005.a", b"1700000006.a"]) == [
        b"1700000006.a",
        b"1700000006.b",
    ]
    assert added(NEW, [b"1700000005.a", b"1700000003.a"]) is None
    assert added(NEW, [b"1700000006.a"]) is None
    assert added(NEW, [b"1700000005.a:2,S"]) is None
    assert added(NEW, []) is None
    assert added(CUR, [b"1700000004.a:2,S"]) == []
    assert added(CUR, [b"1700000004.a:2,FS"]) is None
    assert added(CUR, [b"1700000004.a:2,S", b"1700000005.a:2,S"]) is None, "the last one, in both folders"


@given(before=two_folders, later=st.lists(folder, min_size=2, max_size=2), places=st.lists(st.integers(0, 9)))
def test_additions_are_just_what_was_not_there(
    before: list[list[bytes]], later: list[list[bytes]], places: list[int]
) -> None:
    """Whatever comes into a folder, wherever readdir has it: if it is appended, that is all that came."""
    _, columns = known_of(before)
    now = [listed.copy() for listed in before]
    for folder_now, more in zip(now, later, strict=True):
        for number, name in enumerate(more):
            folder_now.insert(places[number] if number < len(places) else 0, name)
    if not disjoint(now):
        return
    added = reconcile.additions(checksums(before), columns, {NEW: listing(now[NEW]), CUR: listing(now[CUR])})
    if added is not None:
        assert sorted(one[2] for one in added) == sorted(later[NEW] + later[CUR])


def test_a_file_in_another_s_place_is_seen() -> None:
    """Same names, another inode: not what was there, even where only the high bits differ."""
    before = [[b"1700000005.a", b"1700000006.b"], []]
    _, columns = known_of(before)
    for change in (1, 1 << 40):
        now = listing(before[NEW])
        now.inodes[0] ^= change
        assert reconcile.additions(checksums(before), columns, {NEW: now}) is None


def test_a_folder_whose_checksum_is_not_known() -> None:
    """NULs, as an earlier version left there, fit no folder that has files, and a folder without any."""
    before = [[b"1700000005.a"], []]
    _, columns = known_of(before)
    unknown = statcache.NOTHING_LISTED
    assert reconcile.additions(unknown, columns, {NEW: listing(before[NEW])}) is None
    assert reconcile.additions(unknown, columns, {NEW: listing([])}) is None
    assert reconcile.additions(unknown, columns, {CUR: listing([])}) == []


def test_what_the_cache_knows_goes_before_the_name() -> None:
    """A `W=` that was found to lie is not believed again."""
    found = reconcile.gathered(NEW, listing([b"1700000000.a,W=7", b"1700000001.b,W=8"]).files())
    known = Known(
        [b"1700000000.a,W=7"],
        (9,),
        bytes([statcache.MEASURED]),
        [b"1700000000.a,W=7"],
        [crc32(b"1700000000.a,W=7")],
        [3],
    )
    messages = reconcile.recall(known, found)
    assert messages.octets == [9, 8]
    assert messages.flags == [statcache.MEASURED, 0]
    assert messages.stamps == [3, 0]


def test_another_file_is_measured() -> None:
    """Of a file that took another's place neither octets nor form are known, and its `W=` is not believed."""
    bases = [b"1700000000.a,W=7", b"1700000001.b"]
    mark = statcache.MEASURED | 1 << statcache.FORM_SHIFT
    known = Known(bases, (7, 9), bytes([0, mark]), bases, [1, 2], [0, 3])
    messages = reconcile.recall(known, reconcile.gathered(NEW, [(bases[0], 5), (bases[1], 6)]))
    assert (messages.octets, messages.flags, messages.stamps) == ([reconcile.UNMEASURED] * 2, [0, 0], [0, 0])
    assert messages.doubts == {1: (9, 3)}


def test_estimates_are_not_kept() -> None:
    """What could not be read is tried again."""
    found = reconcile.gathered(NEW, listing([b"1700000000.a"]).files())
    known = Known([b"1700000000.a"], (9,), bytes([statcache.ESTIMATED]), [b"1700000000.a"], [1], [0])
    assert reconcile.recall(known, found).octets == [reconcile.UNMEASURED]


def test_much_new_mail_is_not_looked_for_one_by_one() -> None:
    """
    Each look goes through all that is known, so 1,000 of them took longer than to put everything together.
    """

    class Unasked(imported.Lookup):
        asked = 0

        def of(self, base: bytes) -> None:
            self.asked += 1

    known = table.render(NOTHING, Known([b"1.a"], [1], b"\1", [b"1.a:2,"], [1], [0]))
    lookup = Unasked(imported.render({}))
    few, many = (
        reconcile.gathered(0, [(b"2.%d" % number, number) for number in range(count)]) for count in (2, 1000)
    )
    assert not reconcile.need_import(few, known, lookup) and lookup.asked == 2
    assert reconcile.need_import(many, known, lookup) and lookup.asked == 2
    few, many = (
        reconcile.gathered(0, [(b"2.%d with space" % number, number) for number in range(count)])
        for count in (2, 1000)
    )
    assert not reconcile.may_share_id(few, known)
    assert reconcile.may_share_id(many, known)
