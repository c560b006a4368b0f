"""
Every fuzz target for a moment: its corpus, and some mutations. `./dev fuzz` does it for as long as
you like.
"""

from __future__ import annotations

import pytest

from tests.fuzz import by_hypothesis
from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, Target

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


@every_target
def test_the_corpus(target: Target) -> None:
    """What was worth keeping of all runs so far, and what was found by them."""
    for octets in target.corpus():
        by_hypothesis.run(target, octets)


@every_target
def test_mutations(target: Target) -> None:
    """The invariant of each target, which is its docstring."""
    by_hypothesis.property_of(target, target.examples)()


def test_every_target_says_what_holds() -> None:
    """In one sentence; and every folder of the corpus has its target."""
    for target in TARGETS.values():
        assert target.invariant.endswith(".") and 40 < len(target.invariant) < 160, target.name
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= TARGETS.keys()


def test_a_planted_fault_is_found() -> None:
    """A passwd-file reader that forgets one check does not live through the short form."""

    def planted(octets: bytes) -> None:
        """A user id is a number, which the reader forgets to check."""
        for line in octets.split(b"\n"):
            fields = line.split(b":")
            if len(fields) > 5:
                int(fields[2])

    target = Target("planted", planted, TARGETS["passwd_file"].seeds)
    with pytest.raises(ValueError, match="invalid literal"):
        by_hypothesis.property_of(target, 300)()
