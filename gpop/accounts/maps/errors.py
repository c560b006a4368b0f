"""PURE: what goes wrong with a map. Never taken for "no such name": docs/virtual-users.md says why."""

from __future__ import annotations


class MapError(Exception):
    """A map can't be asked, or what it says can't be an account; the text names map and reason."""


class MapLoop(MapError):
    """Following the maps comes to no end; the text has the way."""
