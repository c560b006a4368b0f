"""All targets: one row each of name, function with its invariant, and seeds."""

from __future__ import annotations

from tests.fuzz import of_files, of_frames, of_maildrop, of_pop3

TARGETS = {
    each.name: each
    for each in (*of_pop3.TARGETS, *of_frames.TARGETS, *of_maildrop.TARGETS, *of_files.TARGETS)
}
