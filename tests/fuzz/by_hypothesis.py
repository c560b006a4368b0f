"""Targets run by hypothesis: mutations of seeds, a few in CI, many where there is no atheris."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz.target import Target

MAX_OCTETS = 600
# No input may take longer than this: what hostile input makes slow is a fault as well.
MAX_CPU_S = 5.0
ROUND_EXAMPLES = 2000
PIECES = (
    *(b"\n", b"\r\n", b"\0", b" ", b":", b"%", b".", b"/", b'"', b"\xff", b"\xc3\xa9", b"0", b"-1"),
    *(b"4294967296", b"9" * 25, b"A" * 80, b"[" * 40, b"\xff\xff\xff\xff", b"\0\0\0\1"),
)

_octets = st.sampled_from(PIECES) | st.binary(max_size=8)
# Where (as a share of the length), how many octets go, what comes instead.
_edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 4) | st.integers(0, MAX_OCTETS), _octets),
    min_size=0,
    max_size=6,
)


def edited(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Return a seed with some octets replaced, removed or put in."""
    for where, gone, instead in edits:
        at = int(where * len(seed))
        seed = seed[:at] + instead + seed[at + gone :]
    return seed


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Any octets; most often such as are nearly right."""
    near = st.builds(edited, st.sampled_from(target.corpus()), _edits)
    return st.one_of(near, near, near, st.binary(max_size=MAX_OCTETS)) if target.corpus() else st.binary()


def run(target: Target, octets: bytes) -> None:
    """One input, and what it may cost."""
    begun = time.thread_time()
    target.run(octets)
    assert time.thread_time() - begun < MAX_CPU_S, f"{len(octets)} octets took more than {MAX_CPU_S:g} s"


def property_of(target: Target, examples: int, database: Path | None = None) -> Callable[[], None]:
    """
    Return the function that tries so many inputs; what failed before is tried first, if there is a
    database.
    """
    phases = set(Phase) - {Phase.explain}

    @settings(
        max_examples=examples,
        deadline=None,
        phases=phases,
        database=DirectoryBasedExampleDatabase(database) if database else None,
        suppress_health_check=list(HealthCheck),
    )
    @given(octets=inputs(target))
    def holds(octets: bytes) -> None:
        run(target, octets)

    return holds


def run_for(target: Target, seconds: float, database: Path) -> int:
    """Try inputs for so long; returns how many. Raises what the target does."""
    tried = 0

    def counted(octets: bytes) -> None:
        nonlocal tried
        tried += 1
        target.run(octets)

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        property_of(Target(target.name, counted, target.seeds), ROUND_EXAMPLES, database)()
    return tried
