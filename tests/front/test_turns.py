"""Whose login goes to auth next, where more wait than auth takes: with real greenlets, in gevent's loop."""

from __future__ import annotations

import gevent
import pytest

from gpop.accounts.queue import TURNS_OF_STRANGERS
from gpop.front import turns

MOST = 10_000


class Queue:
    """Turns, greenlets that want one, and in what order they got it."""

    def __init__(self) -> None:
        self.turns = turns.Turns(gevent.get_hub(), MOST)
        self.got: list[str] = []

    def wants(
        self, who: str, source: bytes = b"", name: bytes = b"", is_known: bool = False
    ) -> gevent.Greenlet:
        """Spawn somebody who waits for a turn, and let it come so far."""
        greenlet = gevent.spawn(self._take, who, source or who.encode(), name, is_known)
        gevent.idle()
        return greenlet

    def _take(self, who: str, source: bytes, name: bytes, is_known: bool) -> None:
        if not self.turns.take():
            self.turns.wait(source, name, is_known)
        self.got.append(who)

    def give(self, times: int = 1) -> None:
        for _ in range(times):
            self.turns.give()
            gevent.idle()

    def is_taken(self) -> bool:
        """Whether somebody has the turn; nobody has it afterwards."""
        was_free = self.turns.take()
        self.turns.give()
        return not was_free


def test_one_at_a_time_and_known_ones_first() -> None:
    """However many strangers wait, who has logged in from there before goes next."""
    queue = Queue()
    queue.wants("first")
    queue.wants("stranger")
    queue.wants("another stranger")
    queue.wants("known", is_known=True)
    assert queue.got == ["first"]
    queue.give(3)
    assert queue.got == ["first", "known", "stranger", "another stranger"]


def test_a_turn_that_nobody_waits_for_is_free() -> None:
    queue = Queue()
    queue.wants("first")
    queue.give()
    assert not queue.is_taken()


def test_an_account_in_a_hurry_makes_nobody_else_wait() -> None:
    """Of a hundred logins from one address, by an account that is known there, one goes before another's."""
    queue = Queue()
    queue.wants("first")
    for _ in range(100):
        queue.wants("hurry", b"192.0.2.1", b"mallory", is_known=True)
    queue.wants("elsewhere", b"192.0.2.2", b"joe", is_known=True)
    queue.wants("same address", b"192.0.2.1", b"ann", is_known=True)
    queue.give(4)
    assert queue.got == ["first", "hurry", "elsewhere", "same address", "hurry"]
    queue.give(98)
    assert queue.got.count("hurry") == 100
    queue.give()
    assert not queue.is_taken()


def test_known_ones_in_a_hurry_do_not_keep_strangers_out() -> None:
    """One turn in some is a stranger's: whoever logs in from there for the first time."""
    queue = Queue()
    queue.wants("first")
    for number in range(100):
        queue.wants("known", b"%d" % number, is_known=True)
    queue.wants("stranger")
    queue.give(TURNS_OF_STRANGERS)
    assert "stranger" in queue.got


def test_a_flood_of_strangers_is_answered_and_keeps_no_known_one_out(monkeypatch) -> None:
    """Only so many wait; the next one hears it at once, and known ones wait all the same."""
    monkeypatch.setattr(turns, "MAX_STRANGERS", 2)
    queue = Queue()
    for name in ("first", "stranger", "another stranger"):
        queue.wants(name)
    with pytest.raises(turns.TooMany):
        queue.turns.wait(b"a third one", b"", False)
    queue.wants("known", is_known=True)
    queue.give()
    assert queue.got == ["first", "known"]


def test_a_stranger_takes_the_place_of_a_source_that_has_many(monkeypatch) -> None:
    """Where one address has filled it, its last one is told so, and everybody else still waits."""
    monkeypatch.setattr(turns, "MAX_STRANGERS", 3)
    queue = Queue()
    queue.wants("first")
    guesses = [queue.wants(f"guess {number}", b"192.0.2.1") for number in range(3)]
    queue.wants("stranger")
    assert isinstance(guesses[2].exception, turns.TooMany)
    queue.give(3)
    assert queue.got == ["first", "guess 0", "stranger", "guess 1"]
    queue.give()
    assert not queue.is_taken()


def test_who_is_gone_takes_no_turn() -> None:
    """A greenlet that is ended while it waits is forgotten, and the others get theirs."""
    queue = Queue()
    queue.wants("first")
    queue.wants("gone").kill()
    queue.wants("next")
    queue.give()
    assert queue.got == ["first", "next"]
    queue.give()
    assert not queue.is_taken()


def test_who_is_ended_with_the_turn_on_its_way_passes_it_on() -> None:
    """Its turn had come, and it was ended before it could know."""
    queue = Queue()
    queue.wants("first")
    gone = queue.wants("gone")
    queue.wants("next")
    gone.kill(block=False)  # in the loop's next turn, as what `give` begins
    queue.give()
    assert queue.got == ["first", "next"]
    queue.give()
    assert not queue.is_taken()
