"""Whose login goes to auth next, where more wait than auth takes: with real greenlets, in gevent's loop."""

from __future__ import annotations

import gevent
import pytest

from gpop.front import turns


class Queue:
    """Turns, greenlets that want one, and in what order they got it."""

    def __init__(self) -> None:
        self.turns = turns.Turns(gevent.get_hub())
        self.got: list[str] = []

    def wants(self, name: str, is_known: bool = False) -> gevent.Greenlet:
        """Spawn somebody who waits for a turn, and let it come so far."""
        greenlet = gevent.spawn(self._take, name, is_known)
        gevent.idle()
        return greenlet

    def _take(self, name: str, is_known: bool) -> None:
        self.turns.take(is_known)
        self.got.append(name)

    def give(self) -> None:
        self.turns.give()
        gevent.idle()


def test_one_at_a_time_and_known_ones_first() -> None:
    """However many strangers wait, who has logged in from there before goes next."""
    queue = Queue()
    queue.wants("first")
    queue.wants("stranger")
    queue.wants("another stranger")
    queue.wants("known", is_known=True)
    assert queue.got == ["first"]
    for _ in range(3):
        queue.give()
    assert queue.got == ["first", "known", "stranger", "another stranger"]


def test_a_turn_that_nobody_waits_for_is_free() -> None:
    queue = Queue()
    queue.wants("first")
    assert queue.turns.is_taken()
    queue.give()
    assert not queue.turns.is_taken()


def test_a_flood_of_strangers_is_answered_and_keeps_no_known_one_out(monkeypatch) -> None:
    """Only so many wait; the next one hears it at once, and known ones wait all the same."""
    monkeypatch.setattr(turns, "MAX_STRANGERS", 2)
    queue = Queue()
    for name in ("first", "stranger", "another stranger"):
        queue.wants(name)
    with pytest.raises(turns.TooMany):
        queue.turns.take(False)
    queue.wants("known", is_known=True)
    queue.give()
    assert queue.got == ["first", "known"]


def test_who_is_gone_takes_no_turn() -> None:
    """A greenlet that is ended while it waits is forgotten, and the others get theirs."""
    queue = Queue()
    queue.wants("first")
    queue.wants("gone").kill()
    queue.wants("next")
    queue.give()
    assert queue.got == ["first", "next"]
    queue.give()
    assert not queue.turns.is_taken()
