"""PURE: a map's name in the config, `type:path` as Postfix writes it, and the files it stands for."""

from __future__ import annotations

# type: what follows the path in the name of its file
TYPES = {"text": "", "lmdb": ".lmdb", "hash": ".db", "btree": ".db", "cdb": ".cdb"}
OTHER_NAMES = {"texthash": "text"}  # Postfix's


class MapName:
    """
    One map.

    Attributes:
        kind: one of TYPES.
        file: the file that is read.
        source: the text that a compiled file is made of, if it lies where postmap wants it; "" of text.
    """

    __slots__ = ("file", "kind", "source", "written")

    def __init__(self, written: str) -> None:
        """Take `written` apart. Raises ValueError: no type that is known, or no absolute path."""
        kind, colon, path = written.partition(":")
        kind = OTHER_NAMES.get(kind, kind)
        if not colon or kind not in TYPES:
            raise ValueError(
                f"type {kind!r} is none of {', '.join(TYPES)}" if colon else "the type is missing"
            )
        if not path.startswith("/"):
            raise ValueError("the path is absolute")
        ending = TYPES[kind]
        self.written = written
        self.kind = kind
        # makemap takes the name with its ending as well.
        self.source = path.removesuffix(ending) if ending else ""
        self.file = self.source + ending if ending else path
