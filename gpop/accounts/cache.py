"""
EDGE: the auth cache: logins that were right a moment ago need no PAM, no NSS and no fork.

Positive results only, for a short life, in this process' memory only. What is kept of a
password is one BLAKE2b-256 under a random key that never leaves the process, over (the
configured sources, login name, password, peer address). One entry per name and peer
address: another password for them is asked of the sources, and takes the entry's place
only once they accepted it, so a stranger can evict nobody.

Emptied when anything changes that an answer may have come from: the system's user files,
passwd-files, PAM's service files (`CacheWatch`, looked at once a second at most). A reload
starts a new auth process, and so an empty cache. Executed by auth, as root.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable

from gpop.accounts.account import Accepted

SYSTEM_FILES = (
    "/etc/shadow",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/nologin",
    "/etc/security/access.conf",
    "/etc/security/time.conf",
    "/etc/pam.conf",
)
LOOK_EVERY_S = 1.0
# A file changed so shortly ago may change again with the same stamps: nothing is stored then.
UNSETTLED_S = 2.0
STAT_FIELDS = ("st_ctime_ns", "st_mtime_ns", "st_dev", "st_ino", "st_size", "st_mode", "st_uid")


class AuthCache:
    """
    At most `max_entries` logins, each for `lifetime_s`; `sources` describes who decides logins here.

    Time comes in as an argument (`now`, monotonic seconds).
    """

    def __init__(self, sources: str, lifetime_s: float, max_entries: int) -> None:
        self._key = secrets.token_bytes(32)
        self._sources = sources.encode()
        self._lifetime_s = lifetime_s
        self._max_entries = max_entries
        # (name, peer) -> (hash over everything, when it ends, what the source said); oldest first.
        self._entries: dict[tuple[bytes, str], tuple[bytes, float, Accepted]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, name: bytes, password: bytes, peer: str, now: float) -> Accepted | None:
        """Return what was said about exactly this login, None if nothing is known that still holds."""
        entry = self._entries.get((name, peer))
        if entry is None:
            return None
        if now >= entry[1]:
            del self._entries[name, peer]
            return None
        matches = hmac.compare_digest(entry[0], self._hash(name, password, peer))
        return entry[2] if matches else None

    def store(self, name: bytes, password: bytes, peer: str, verdict: Accepted, now: float) -> None:
        """Keep a login that a source has just accepted."""
        key = (name, peer)
        self._entries.pop(key, None)  # so that it goes to the end: the dictionary is in order of age
        self._entries[key] = (self._hash(name, password, peer), now + self._lifetime_s, verdict)
        while len(self._entries) > self._max_entries:
            del self._entries[next(iter(self._entries))]

    def forget(self, name: bytes, peer: str) -> None:
        """Drop what is kept for `name` from `peer`: its account phase was refused."""
        self._entries.pop((name, peer), None)

    def clear(self) -> int:
        """Drop everything; return how many logins that were."""
        count = len(self._entries)
        self._entries.clear()
        return count

    def _hash(self, name: bytes, password: bytes, peer: str) -> bytes:
        # Lengths in front of everything: no two logins give the same octets.
        octets = b"%d,%d,%d:%b%b%b%b" % (
            len(self._sources),
            len(name),
            len(password),
            self._sources,
            name,
            password,
            peer.encode(),
        )
        return hashlib.blake2b(octets, key=self._key, digest_size=32).digest()


class CacheWatch:
    """
    Says when one of the files that `find_paths` names changed, and whether an answer of now may be kept.

    Attributes:
        generation: counts the changes seen. An answer whose check began in another generation
            may rest on what a file said before, and must not be stored.
    """

    def __init__(self, find_paths: Callable[[], Iterable[str]]) -> None:
        self.generation = 0
        self._find_paths = find_paths
        self._next_look_s = 0.0
        self._begin()

    def _begin(self) -> None:
        self.paths = tuple(dict.fromkeys(self._find_paths()))
        self._signatures = self._look()

    def changed(self, now: float) -> str:
        """Return the path that changed since last time, "" for none; looks once a second at most."""
        if now < self._next_look_s:
            return ""
        self._next_look_s = now + LOOK_EVERY_S
        return self.changed_now()

    def changed_now(self) -> str:
        """As `changed`, but look in any case."""
        signatures = self._look()
        if signatures == self._signatures:
            return ""
        pairs = zip(self.paths, self._signatures, signatures, strict=True)
        path = next(path for path, was, is_now in pairs if was != is_now)
        self.generation += 1
        self._begin()  # a changed PAM service may include other files than before
        return path

    def settled(self, wall_clock_s: float) -> bool:
        """Say whether the last change of every watched file is some seconds ago."""
        newest_ns = max((found[0] for found in self._signatures if found), default=0)
        return newest_ns < (wall_clock_s - UNSETTLED_S) * 1e9

    def _look(self) -> list[tuple[int, ...]]:
        return [_signature(path) for path in self.paths]


def _signature(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()  # not there, or not to be seen: that too may change
    return tuple(getattr(status, field) for field in STAT_FIELDS)
