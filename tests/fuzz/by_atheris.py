"""
One target run by atheris (libFuzzer): `python -m tests.fuzz.by_atheris TARGET [libFuzzer's arguments]`.

A process of its own each, because libFuzzer ends it. gpop is instrumented, tests are not: what
counts as new is a new path through gpop.
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    """Instrument, then fuzz; never returns."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["gpop"]):
        from tests.fuzz.table import TARGETS
    atheris.Setup(sys.argv, TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
