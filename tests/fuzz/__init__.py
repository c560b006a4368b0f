"""
Fuzzing: every parser of gpop fed with any octets, and a maildrop with any history.

    target.py       what a target is, and what inputs are made of
    of_*.py         the targets, by subject; the docstring of each is its one invariant
    table.py        all of them
    drop.py         random sessions on one maildrop, beside a small model of RFC 1939
    by_atheris.py   coverage-guided, for `./dev fuzz`
    by_hypothesis.py  without atheris, and the short form in CI
    corpus/         per target, inputs that were worth keeping

docs/reliability.md says how it is run and what it has found.
"""
