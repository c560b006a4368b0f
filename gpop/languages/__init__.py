"""
EDGE: the translations that are shipped, one file for each language, read when this is imported.

Who says something to a client is about to lock itself in: a front in an empty directory, a session
in a maildrop, one that is reused in a store, for good. After that there is no file to read. So
they are read at the start, by the front and by the broker, and kept as the octets they are, some
5 KiB a language, which no session touches (and so none copies) whose client chooses no language.
Taken apart they are by `pop3.languages`, when a client has chosen one.

A file `TAG.txt` (RFC 5646) has lines `English text = translation`, one `name: ` (of the language, in
itself) and one `ascii: ` (what stands for its letters before a client that did not say UTF8).
"""

from __future__ import annotations

import os

FOLDER = os.path.dirname(os.path.abspath(__file__))
ENDING = ".txt"


def read() -> dict[str, bytes]:
    """Return what the files hold, by language tag. Raises OSError."""
    files = {}
    for name in sorted(os.listdir(FOLDER)):
        if name.endswith(ENDING):
            with open(os.path.join(FOLDER, name), "rb") as file:
                files[name.removesuffix(ENDING)] = file.read()
    return files


FILES = read()
