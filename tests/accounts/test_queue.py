"""Whose turn it is to be checked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.queue import TURNS_OF_STRANGERS, FairQueue, Lanes


def test_one_source_never_has_all_places() -> None:
    """A quarter stays for the others, at least one; with a single place there is nothing to divide."""
    for places, most in ((16, 12), (4, 3), (3, 2), (2, 1), (1, 1)):
        queue: FairQueue[int] = FairQueue(places, 100, 100)
        for item in range(50):
            assert queue.put(b"guesser", b"name", item) is None
        taken = [queue.take() for _ in range(places)]
        assert taken == [*range(most), *[None] * (places - most)]
        if places > 1:
            queue.put(b"other", b"name", 99)
            assert queue.take() == 99


def test_sources_take_turns() -> None:
    """However many of one source came first."""
    queue: FairQueue[str] = FairQueue(8, 100, 100)
    for item in ("a1", "a2", "a3", "a4"):
        queue.put(b"a", b"name", item)
    queue.put(b"b", b"name", "b1")
    queue.put(b"c", b"name", "c1")
    queue.put(b"b", b"name", "b2")
    assert [queue.take() for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_names_of_one_source_take_turns() -> None:
    """Who shares an address with somebody in a hurry waits for one login of theirs, not for all."""
    queue: FairQueue[str] = FairQueue(8, 100, 100)
    for item in ("a1", "a2", "a3"):
        queue.put(b"office", b"a", item)
    queue.put(b"office", b"b", "b1")
    queue.put(b"home", b"a", "home")
    queue.put(b"office", b"b", "b2")
    assert [queue.take() for _ in range(6)] == ["a1", "home", "b1", "a2", "b2", "a3"]


def test_who_has_most_in_the_longest_line_makes_room() -> None:
    """Of its names, too, the one with most gives up its last."""
    queue: FairQueue[str] = FairQueue(1, 4, 4)
    for name, item in ((b"b", "b1"), (b"a", "a1"), (b"a", "a2"), (b"b", "b2")):
        queue.put(b"office", name, item)
    assert queue.put(b"home", b"c", "home") == "b2"
    assert [queue.take(), queue.give_back(b"office")] == ["b1", None]
    assert [queue.take(), queue.give_back(b"home")] == ["home", None]
    assert queue.remove(b"office", b"a", "a1")
    assert queue.take() == "a2"


def test_where_each_source_has_one_a_new_one_displaces_nobody() -> None:
    """A spray fills it: who comes then has to go, whoever it is, and without a look at all the others."""
    queue: FairQueue[int] = FairQueue(1, 3, 3)
    for number in range(3):
        assert queue.put(b"%d" % number, b"name", number) is None
    assert queue.put(b"another", b"name", 3) == 3
    assert queue.put(b"1", b"name", 4) == 4
    assert queue.waiting == 3


def test_waiting_is_bounded_in_total_and_per_source() -> None:
    """Over it, who came last has to go, and nothing else changes."""
    queue: FairQueue[int] = FairQueue(1, 3, 2)
    assert (
        queue.put(b"a", b"name", 1) is None
        and queue.put(b"b", b"name", 2) is None
        and queue.put(b"a", b"name", 3) is None
    )
    assert queue.put(b"a", b"name", 4) == 4
    assert queue.put(b"b", b"name", 5) == 5
    assert queue.waiting == 3


def test_a_full_queue_makes_room_for_a_new_source() -> None:
    """A few sources that fill it keep nobody out: the last in the longest line has to go."""
    queue: FairQueue[str] = FairQueue(1, 6, 4)
    for item in ("a1", "a2", "a3", "a4"):
        queue.put(b"a", b"name", item)
    queue.put(b"b", b"name", "b1")
    queue.put(b"b", b"name", "b2")
    assert queue.put(b"c", b"name", "c1") == "a4"
    assert queue.put(b"c", b"name", "c2") == "a3"
    assert queue.put(b"c", b"name", "c3") == "c3"  # now all lines are equally long
    assert queue.waiting == 6


def test_a_place_given_back_is_free_for_the_next() -> None:
    """And only then."""
    queue: FairQueue[int] = FairQueue(1, 10, 10)
    queue.put(b"a", b"name", 1)
    queue.put(b"b", b"name", 2)
    assert (queue.take(), queue.take()) == (1, None)
    queue.give_back(b"a")
    assert queue.take() == 2


def test_removing_from_the_line() -> None:
    """Who has gone is not checked; who is not there can't be removed."""
    queue: FairQueue[int] = FairQueue(2, 10, 10)
    queue.put(b"a", b"name", 1)
    assert queue.remove(b"a", b"name", 1)
    assert not queue.remove(b"a", b"name", 1)
    assert queue.take() is None and queue.waiting == 0


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "take", "give", "remove"]),
            st.sampled_from([b"a", b"b", b"c"]),
            st.sampled_from([b"joe", b"ann"]),
        )
    ),
    places=st.integers(1, 6),
)
def test_the_bounds_always_hold(steps: list[tuple[str, bytes, bytes]], places: int) -> None:
    """Whatever comes in whatever order: nothing is lost, nothing comes twice, no bound is passed."""
    queue: FairQueue[tuple[bytes, bytes, int]] = FairQueue(places, 10, 5)
    waiting: list[tuple[bytes, bytes, int]] = []
    running: list[tuple[bytes, bytes, int]] = []
    for number, (step, source, name) in enumerate(steps):
        if step == "put":
            displaced = queue.put(source, name, (source, name, number))
            waiting.append((source, name, number))
            if displaced is not None:
                waiting.remove(displaced)
        elif step == "take":
            item = queue.take()
            if item is not None:
                # The first of its source and name, always.
                assert item == next(other for other in waiting if other[:2] == item[:2])
                waiting.remove(item)
                running.append(item)
        elif step == "remove":
            there = [item for item in waiting if item[:2] == (source, name)]
            assert queue.remove(source, name, there[-1] if there else (source, name, -1)) == bool(there)
            if there:
                waiting.remove(there[-1])
        elif running:
            queue.give_back(running.pop(0)[0])
        assert len(running) == queue.occupied <= places
        assert queue.waiting == len(waiting) <= 10
        for source in (b"a", b"b", b"c"):
            assert sum(item[0] == source for item in running) <= queue.places_per_source
            assert sum(item[0] == source for item in waiting) <= 5


def test_who_has_logged_in_before_goes_before_strangers() -> None:
    """However many strangers there are, each from another address: but one turn in some is theirs."""
    lanes: Lanes[str] = Lanes(1, 100, 100, 100)
    for number in range(100):
        lanes.lane(False).put(b"%d" % number, b"name", "stranger")
    for number in range(8):
        lanes.lane(True).put(b"%d" % number, b"name", "known")
    turns = []
    for _ in range(8):
        turns.append(lanes.take())
        lanes.lane(turns[-1] == "known").give_back(b"%d" % turns[:-1].count(turns[-1]))
    assert turns == (["known"] * (TURNS_OF_STRANGERS - 1) + ["stranger"]) * 2


def test_strangers_never_have_all_places() -> None:
    """A quarter of them, at least one, stays for who has logged in before."""
    for places, most in ((16, 12), (4, 3), (2, 1), (1, 1)):
        lanes: Lanes[int] = Lanes(places, 100, 100, 100)
        for number in range(50):
            lanes.lane(False).put(b"%d" % number, b"name", number)
        taken = [lanes.take() for _ in range(places)]
        assert sum(each is not None for each in taken) == most
        lanes.lane(True).put(b"known", b"name", 99)
        assert lanes.take() == (99 if places > 1 else None)
