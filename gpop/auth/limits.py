"""
PURE: how often something may happen: logins in all, and logins of one account (RFC 2449 §6.5).

Bounded, and forgetful: where there is no room, who was quiet longest starts afresh. Time comes
in as an argument. Executed by auth, as root.
"""

from __future__ import annotations

# More accounts than log in between one delay and the next; some 20 MB.
MAX_KEYS = 100_000
# Seconds are added and subtracted as floats.
ROUNDING_S = 1e-6


class Buckets:
    """
    A bucket for each key, which holds `burst` permits and gets one back every `every_s`.

    Kept of a key is no more than when its bucket is full again, and no longer than that.
    """

    def __init__(self, every_s: float, burst: int, max_keys: int = MAX_KEYS) -> None:
        self._every_s = every_s
        self._room_s = (burst - 1) * every_s + ROUNDING_S
        self._max_keys = max_keys
        self._full_s: dict[bytes, float] = {}  # in order of the last permit taken

    def __len__(self) -> int:
        return len(self._full_s)

    def take(self, key: bytes, now: float) -> bool:
        """Take a permit of `key`; False, and nothing is taken, if there is none."""
        full_s = max(self._full_s.get(key, now), now)
        if full_s - now > self._room_s:
            return False
        self._full_s.pop(key, None)
        self._full_s[key] = full_s + self._every_s
        self._forget(now)
        return True

    def _forget(self, now: float) -> None:
        # Two for each that came, so the table shrinks where fewer come than before.
        for _ in range(2):
            oldest = next(iter(self._full_s))
            if len(self._full_s) > self._max_keys or self._full_s[oldest] <= now:
                del self._full_s[oldest]
