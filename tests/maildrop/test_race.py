"""Deliveries and polls in a tight loop: no delivery is ever missed, and the second poll is a hit."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.maildrop.store import FOLDERS, Store, lines, listing

ROUNDS = 200


def deliver_and_poll(store: Store, rounds: int) -> list[str]:
    """Deliver, poll, poll again; returns the outcomes of the second polls."""
    outcomes = []
    for number in range(rounds):
        base = f"{1700000000 + number}.M{number}"
        store.deliver(base, b"x\n", folder="new" if number % 3 else "cur")
        for _ in range(2):
            with store.session() as opened:
                assert len(listing(opened)) == number + 1, f"a delivery was missed in round {number}"
                assert opened.maildrop.unique_id(number) == base.encode()
                outcome = opened.outcome
        outcomes.append(outcome)
    return outcomes


def test_a_delivery_just_before_a_poll(store: Store) -> None:
    """200 rounds of deliver, poll, poll: each poll sees the delivery, and the second is always a hit."""
    assert deliver_and_poll(store, ROUNDS) == ["hit"] * ROUNDS


KEEP_DELIVERING = """
import os, sys
maildir, number = sys.argv[1], 0
print("delivering", flush=True)
while number < 3000:
    name = f"{1700000000 + number}.M{number}"
    os.close(os.open(f"{maildir}/tmp/{name}", os.O_CREAT | os.O_WRONLY))
    os.rename(f"{maildir}/tmp/{name}", f"{maildir}/new/{name}")
    if number % 5 == 4:
        moved = f"{1700000000 + number - 2}.M{number - 2}"
        os.rename(f"{maildir}/new/{moved}", f"{maildir}/cur/{moved}:2,S")
    number += 1
"""


def test_deliveries_while_polling(store: Store) -> None:
    """Deliveries and moves at full speed beside polls: nothing that was there before a poll is missed."""
    command = [sys.executable, "-c", KEEP_DELIVERING, str(store.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout and other.stdout.readline() == b"delivering\n"
            while other.poll() is None:
                before = delivered(store)
                with store.session() as opened:
                    shown = {each for _, each in lines(opened, "UIDL")}
                missed = before - shown
                assert not missed, f"{len(missed)} of {len(before)} were missed"
        finally:
            other.kill()
    with store.session() as opened:
        assert {each for each, _ in listing(opened)} == delivered(store)
    assert store.poll() == ("hit", "unchanged")


def delivered(store: Store) -> set[bytes]:
    names = [name for folder in FOLDERS for name in os.listdir(os.fsencode(store.path / folder))]
    return {name.split(b":")[0] for name in names}
