"""
EDGE: certificate files that change, as they do every few weeks: noticed without a signal from anybody.

Executed by the broker, as root. It looks at the files' status and never into them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# How often is looked, in seconds. Two looks must agree: a certificate and its key are replaced one after
# the other, and between the two they do not fit.
LOOK_S = 1.5


class FileWatch:
    """Some files, which are the same until `changed` says otherwise; it says so once for each change."""

    __slots__ = ("_before", "_known", "_looked", "paths")

    def __init__(self, paths: Sequence[str], now: float) -> None:
        self.paths = paths
        self._known = self._before = [_status(path) for path in paths]
        self._looked = now

    def changed(self, now: float) -> str:
        """Return the path of a file that has changed; "" if none has, one changes still, or too soon."""
        if now - self._looked < LOOK_S:
            return ""
        self._looked = now
        before, self._before = self._before, [_status(path) for path in self.paths]
        if self._before != before or before == self._known:
            return ""
        changes = zip(self.paths, self._known, before, strict=True)
        self._known = before
        return next(path for path, old, new in changes if old != new)

    def not_acted_upon(self) -> None:
        """What `changed` has said came to nothing: it is to say so again."""
        self._known = [()] * len(self.paths)


def _status(path: str) -> tuple[Any, ...]:
    """What tells one content from another: links are followed, as they are when it is loaded."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno,)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
