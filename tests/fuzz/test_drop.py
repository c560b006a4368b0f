"""Random histories of a maildrop, beside a model of RFC 1939: the short form of `./dev fuzz drop`."""

from __future__ import annotations

from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.drop import Drop, OverTcp, RealDrop, options
from tests.serving import Server, Site


def test_sessions_are_what_the_model_says() -> None:
    """
    Deliveries, renames, removals, two clients: numbers stay, only QUIT removes, nothing is lost or
    doubled.
    """
    run_state_machine_as_test(Drop, settings=options(50, 50))


def test_sessions_of_real_processes_are_what_the_model_says() -> None:
    """The same over TCP, with a front, auth, a broker and a process for each session."""
    site = Site(accounts=1, session__lock_wait_s=0.0)
    try:
        with Server(site) as OverTcp.server:
            run_state_machine_as_test(RealDrop, settings=options(4, 40))
    finally:
        site.remove()
