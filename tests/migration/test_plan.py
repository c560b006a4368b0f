"""What an import would do: every message has a verdict, and any doubt leaves all as it is."""

from __future__ import annotations

from gpop.maildrop import names
from gpop.maildrop.imported import ImportedId
from gpop.migration import plan as planning
from gpop.migration.plan import ForeignId, MaildirFile, Plan, plan


def files(*file_names: bytes) -> list[MaildirFile]:
    return [MaildirFile(name, (1, number)) for number, name in enumerate(file_names)]


def verdicts(made: Plan) -> list[tuple[bytes, str]]:
    return [(verdict.base, verdict.what) for verdict in made.verdicts]


def test_ids_are_taken_by_base_name() -> None:
    """Whatever flags the file had when the other server wrote its name down, and has now."""
    foreign = [ForeignId(b"1.a:2,S", b"one", 1), ForeignId(b"2.b", b"two", 2), ForeignId(b"gone", b"x", 3)]
    made = plan(files(b"1.a", b"2.b:2,RS", b"3.c"), foreign, {})
    assert verdicts(made) == [(b"1.a", "taken"), (b"2.b", "taken"), (b"3.c", "default")]
    assert made.added == {b"1.a": ImportedId(b"one", 1), b"2.b": ImportedId(b"two", 2)}
    assert (made.without_file, made.doubts, made.counts()["taken"]) == (1, [], 2)


def test_what_is_there_is_left_out() -> None:
    """An import that is run again does nothing for what it has done."""
    there = {b"1.a": ImportedId(b"one", 1)}
    made = plan(files(b"1.a", b"2.b"), [ForeignId(b"1.a", b"one", 1), ForeignId(b"2.b", b"two", 2)], there)
    assert verdicts(made) == [(b"1.a", "already there"), (b"2.b", "taken")]
    assert made.added == {b"2.b": ImportedId(b"two", 2)}


def doubts(made: Plan) -> list[tuple[bytes, str]]:
    assert made.doubts and not made.added
    assert all(verdict.reason for verdict in made.doubts)
    return [(verdict.base, verdict.what) for verdict in made.doubts]


def test_two_files_with_one_base_name() -> None:
    """Which one the other server meant is not to be guessed; two names of one file are one message."""
    foreign = [ForeignId(b"1.a", b"one")]
    assert doubts(plan(files(b"1.a", b"1.a:2,S"), foreign, {})) == [(b"1.a", planning.TWO_FILES)]
    linked = [MaildirFile(b"1.a", (1, 1)), MaildirFile(b"1.a:2,S", (1, 1))]
    assert plan(linked, foreign, {}).added == {b"1.a": ImportedId(b"one")}
    # Nobody has an id for them: they keep the ones that gpop gives to twins.
    assert verdicts(plan(files(b"1.a", b"1.a:2,S"), [], {})) == [(b"1.a", "default")]


def test_ids_that_no_client_may_be_told() -> None:
    """RFC 1939 §7: 1 to 70 octets from 0x21 to 0x7E."""
    for bad in (b"", b"with space", b"\xe4", b"a" * 71, b"a\r\nb"):
        assert doubts(plan(files(b"1.a"), [ForeignId(b"1.a", bad)], {})) == [(b"1.a", planning.BAD_ID)]
    assert not plan(files(b"1.a"), [ForeignId(b"1.a", b"a" * 70)], {}).doubts


def test_one_id_for_two_messages() -> None:
    """Whether both are here, or one was imported before; the message is named."""
    foreign = [ForeignId(b"1.a", b"one"), ForeignId(b"2.b", b"one")]
    made = plan(files(b"1.a", b"2.b"), foreign, {})
    assert doubts(made) == [(b"2.b", planning.ONE_ID)]
    assert "b'1.a' has this id, too" in made.doubts[0].reason
    there = {b"0.z": ImportedId(b"one")}
    assert doubts(plan(files(b"1.a"), foreign, there)) == [(b"1.a", planning.ONE_ID)]


def test_several_ids_for_one_message() -> None:
    """Said at once, or at another time; the same id twice is no contradiction."""
    twice = [ForeignId(b"1.a", b"one"), ForeignId(b"1.a:2,S", b"two")]
    assert doubts(plan(files(b"1.a"), twice, {})) == [(b"1.a", planning.TWO_IDS)]
    assert not plan(files(b"1.a"), [twice[0], twice[0]], {}).doubts
    made = plan(files(b"1.a"), [twice[0]], {b"1.a": ImportedId(b"old")})
    assert doubts(made) == [(b"1.a", planning.OTHER_ID)]
    assert "b'old'" in made.doubts[0].reason


def test_the_default_id_of_another_message() -> None:
    """That one would lose the id under which clients may know it, unless it gets another one, too."""
    two = files(b"1.a", b"2.b")
    assert doubts(plan(two, [ForeignId(b"1.a", b"2.b")], {})) == [(b"1.a", planning.DEFAULT_ID)]
    hashed = names.unique_id(b"3 c")
    made = plan(files(b"1.a", b"3 c"), [ForeignId(b"1.a", hashed)], {})
    assert doubts(made) == [(b"1.a", planning.DEFAULT_ID)]
    assert not plan(two, [ForeignId(b"1.a", b"2.b"), ForeignId(b"2.b", b"1.a")], {}).doubts
    assert not plan(two, [ForeignId(b"1.a", b"1.a")], {}).doubts


def test_a_doubt_about_one_message_keeps_all_from_being_changed() -> None:
    """The others' verdicts are there to be read."""
    made = plan(files(b"1.a", b"2.b"), [ForeignId(b"1.a", b"one"), ForeignId(b"2.b", b"")], {})
    assert verdicts(made) == [(b"1.a", "taken"), (b"2.b", planning.BAD_ID)]
    assert not made.added


def orders(there: dict[bytes, int], said: dict[bytes, int]) -> dict[bytes, int]:
    known = {base: ImportedId(b"id-" + base, order) for base, order in there.items()}
    foreign = [ForeignId(base, b"id-" + base, order) for base, order in said.items()]
    made = plan(files(*said), foreign, known)
    assert not made.doubts
    return {base: one.order for base, one in made.added.items()}


def test_a_second_import_keeps_the_order_of_the_first() -> None:
    """A source that counts anew after a message has gone does not bring new mail before old."""
    assert orders({b"a": 10, b"b": 20}, {b"a": 10, b"b": 20, b"c": 30}) == {b"c": 30}
    assert orders({b"a": 1, b"b": 2, b"c": 3}, {b"b": 1, b"c": 2, b"d": 3, b"e": 4}) == {b"d": 4, b"e": 5}
    assert orders({b"a": 1, b"b": 2, b"c": 3}, {b"b": 1, b"x": 2, b"c": 3, b"d": 4}) == {b"x": 2, b"d": 4}


def test_an_order_beyond_bounds() -> None:
    """It is a number of 32 bits, from 1; 0 is none."""
    for order in (-1, 1 << 32):
        made = plan(files(b"1.a"), [ForeignId(b"1.a", b"one", order)], {})
        assert doubts(made) == [(b"1.a", planning.BAD_ORDER)]
