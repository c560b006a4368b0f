"""
EDGE: what an administrator has set for single accounts, in a file of its own.

    # account   settings
    ann         pop3=off
    joe         removal=.Trash
    ops         dialogue_until=2026-11-25T18:00:00Z
    *           removal=.Deleted

The line `*` is for every account that has none. As with a passwd-file, an account whose line can't
be used is not served: the line may have been meant to keep it out. Executed by auth, as root.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

from gpop.accounts.account import AUTH, SYS_TEMP, Accepted, Refused, Verdict
from gpop.accounts.rereading import RereadFile

EVERYBODY = b"*"
MAX_LINE_OCTETS = 1024
ON_OFF = {b"on": True, b"off": False}
# What becomes of a removed message: its file goes, moves to a Maildir++ folder, or stays and is not shown any
# more (maildrop/removal.py).
REMOVALS = (b"unlink", b"hide")
FOLDER = r"\.[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}"
REMOVAL_WORDS = '"unlink", "hide", or a Maildir++ folder such as ".Trash"'


class LineNotUsable(Exception):
    """One line that can't be used; the text says why."""


@dataclass(frozen=True, slots=True)
class UserSettings:
    """
    What is set for one account; the defaults are those of an account with no line.

    `removal` is "" where `session.removal` holds; until `dialogue_until_s` (Unix time) the
    account's dialogue is logged.
    """

    pop3: bool = True
    removal: str = ""
    dialogue_until_s: float = 0.0


NO_SETTINGS = UserSettings()


def parse_line(line: bytes) -> tuple[bytes, UserSettings]:
    """
    Return the account and the settings of one line, without its line end.

    Raises:
        LineNotUsable: see its text.
    """
    if len(line) > MAX_LINE_OCTETS:
        raise LineNotUsable(f"{len(line)} octets, at most {MAX_LINE_OCTETS} are allowed")
    name, *words = line.split()
    found: dict[str, bool | str | float] = {}
    for word in words:
        key, _, value = word.partition(b"=")
        if key not in KEYS:
            raise LineNotUsable(f"{_shown(key)} is no setting; known are {b', '.join(KEYS).decode()}")
        field, parse = KEYS[key]
        if field in found:
            raise LineNotUsable(f"{_shown(key)} stands there twice")
        found[field] = parse(value)
    return name, UserSettings(**found)  # type: ignore[arg-type]


def _pop3(value: bytes) -> bool:
    if value not in ON_OFF:
        raise LineNotUsable(f"pop3={_shown(value)}: expected on or off")
    return ON_OFF[value]


def _removal(value: bytes) -> str:
    if value not in REMOVALS and not re.fullmatch(FOLDER.encode(), value):
        raise LineNotUsable(f"removal={_shown(value)}: expected {REMOVAL_WORDS}")
    return value.decode("ascii")


def _dialogue_until(value: bytes) -> float:
    try:
        when = datetime.datetime.fromisoformat(value.decode("ascii"))
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        text = f"dialogue_until={_shown(value)}: expected a time with its zone, as 2026-11-25T18:00:00Z"
        raise LineNotUsable(text)
    return when.timestamp()


# By key: the field of UserSettings, and what makes its value of the text.
KEYS: dict[bytes, tuple[str, Callable[[bytes], bool | str | float]]] = {
    b"pop3": ("pop3", _pop3),
    b"removal": ("removal", _removal),
    b"dialogue_until": ("dialogue_until_s", _dialogue_until),
}


def _shown(octets: bytes) -> str:
    return octets[:60].decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")


class UserSettingsFile(RereadFile):
    """The file at `path`, read again whenever it changed (`refresh`). None at all sets nothing."""

    MAY_BE_ABSENT = True

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._settings: dict[bytes, UserSettings] = {}
        self._broken: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._settings)

    def says_nothing(self) -> bool:
        """Whether there is no file, or one in which nothing is set."""
        return not (self.fault or self._settings or self.problem_count)

    def take_in(self, octets: bytes, mode: int) -> None:
        self._settings, self._broken = {}, {}
        for number, line in enumerate(octets.split(b"\n"), start=1):
            if not line.strip() or line.lstrip().startswith(b"#"):
                continue
            name = line.split(None, 1)[0]
            try:
                _, settings = parse_line(line)
                if name in self._settings:
                    raise LineNotUsable(f"account {_shown(name)} stands there twice")
            except LineNotUsable as error:
                self.report(number, str(error))
                self._broken.setdefault(name, f"line {number}: {error}")
            else:
                self._settings[name] = settings

    def of(self, account: bytes) -> UserSettings:
        """Return what is set for an account whose line can be used."""
        return self._settings.get(account) or self._settings.get(EVERYBODY, NO_SETTINGS)

    def applied(self, verdict: Accepted, now_s: float) -> Verdict:
        """Return an acceptance with what is set for its account at `now_s` (Unix time), or a refusal."""
        account = verdict.account.name
        line = account if account in self._broken or account in self._settings else EVERYBODY
        fault = self.fault or self._broken.get(line, "")
        if fault:
            detail = f"{self.path}: {fault}"
            return Refused(SYS_TEMP, "user_settings_not_usable", verdict.source, detail)
        settings = self.of(account)
        if not settings.pop3:
            return Refused(AUTH, "pop3_off", verdict.source)
        if settings is NO_SETTINGS:
            return verdict
        dialogue = now_s < settings.dialogue_until_s
        return Accepted(verdict.account, verdict.source, verdict.origin, settings.removal, dialogue)
