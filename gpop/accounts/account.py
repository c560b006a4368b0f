"""
PURE: what a login becomes: an account to serve, or a refusal with its reason.

Holds the rules that no source of accounts may relax: which ids are never served, and how
a home and a `maildir` setting become one absolute path. Knows nothing of passwords, of
files and of where an account came from. Names and paths are octets: what a passwd-file or
NSS holds passes through unchanged, whatever its encoding.
"""

from __future__ import annotations

from dataclasses import dataclass

# Response codes of RFC 3206: wrong credentials; try again later; somebody has to act.
AUTH = "AUTH"
SYS_TEMP = "SYS/TEMP"
SYS_PERM = "SYS/PERM"
# RFC 2449 §8.1.1: the password was right, but the last login was too short a time ago.
LOGIN_DELAY = "LOGIN-DELAY"

MAX_PATH_OCTETS = 4095  # PATH_MAX with its NUL
MAX_GROUPS = 1024  # as many as a frame to the broker holds (messages.MAX_GROUPS)
NO_ID = 0xFFFFFFFF  # (uid_t) -1 means "leave as it is" to setresuid, so it must never be an id

# What may follow the path in Dovecot's `maildir:~/Maildir:INDEX=/var/index`: it says where
# Dovecot keeps its own files or how folders are named, and nothing of where the maildrop is.
HARMLESS_MAIL_OPTIONS = (b"INDEX=", b"CONTROL=", b"LAYOUT=", b"INDEXPVT=", b"INDEXCACHE=", b"VOLATILEDIR=")


@dataclass(frozen=True, slots=True)
class Account:
    """A user to serve: `groups` are the supplementary ones, `maildir` is absolute."""

    name: bytes
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: bytes
    maildir: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """
    The login is `account`; `source` said so, the one at place `origin` in the config.

    `removal` and `dialogue` are what an administrator has set for the account (user_settings.py).
    """

    account: Account
    source: str
    origin: int = 0
    removal: str = ""
    dialogue: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """
    The login is refused with response code `code`.

    `reason` is one snake_case word for the log and never reaches the client; `detail` says
    to the operator what is wrong with a source, where something is.
    """

    code: str
    reason: str
    source: str = ""
    detail: str = ""


Verdict = Accepted | Refused


class SourceUnavailable(Exception):
    """A source of accounts can't be asked at the moment; nobody may take that for "no such user"."""


class MaildirNotUnderstood(Exception):
    """A `maildir` value that can't be turned into one path; the text says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Which accounts may be served at all.

    `only_uid` is the running user where gpop does not run as root, else None.
    """

    first_valid_uid: int
    first_valid_gid: int
    maildir: str
    only_uid: int | None = None
    last_valid_uid: int = NO_ID - 1

    def refusal(self, uid: int, gid: int) -> str:
        """Return the reason not to serve these ids, "" if there is none. uid 0 is never served."""
        if uid == 0:
            return "uid_0"
        if self.only_uid is not None:
            return "" if uid == self.only_uid else "other_user_without_root"
        if uid < self.first_valid_uid or uid >= NO_ID:
            return "uid_too_low" if uid < NO_ID else "uid_not_valid"
        if uid > self.last_valid_uid:
            return "uid_too_high"
        if gid == 0 or gid < self.first_valid_gid or gid >= NO_ID:
            return "gid_too_low" if gid < NO_ID else "gid_not_valid"
        return ""

    def valid_groups(self, groups: list[int]) -> tuple[int, ...]:
        """
        Return the supplementary groups a session may have: those from `first_valid_gid` on.

        A member of `disk` or `shadow` reads mail without these rights.
        """
        return tuple(group for group in groups if self.first_valid_gid <= group < NO_ID and group)


def resolve_maildir(setting: bytes, home: bytes) -> bytes:
    """
    Return the absolute path of the maildrop that `setting` names for a user with `home`.

    Understood: `Maildir` and `~/Maildir` (in the home), `/var/mail/joe` (absolute), each also
    in Dovecot's spelling `maildir:…` with options that do not move the maildrop.

    Raises:
        MaildirNotUnderstood: anything else, %-variables and other formats among it.
    """
    if not home.startswith(b"/"):
        raise MaildirNotUnderstood(f"home {_shown(home)} is not absolute")
    path = _without_format(setting)
    if b"%" in path:
        raise MaildirNotUnderstood(f"{_shown(setting)} has a %-variable; write the path in full")
    if any(octet < 0x20 or octet == 0x7F for octet in path + home):
        raise MaildirNotUnderstood("a path has control characters")
    if path == b"~" or path.startswith(b"~/"):
        path = home + path[1:]
    elif path.startswith(b"~"):
        raise MaildirNotUnderstood(f"{_shown(setting)} names another user's home")
    elif not path.startswith(b"/"):
        path = home.rstrip(b"/") + b"/" + path
    if not path.strip(b"/") or len(path) > MAX_PATH_OCTETS or len(home) > MAX_PATH_OCTETS:
        raise MaildirNotUnderstood(f"{_shown(setting)} is no path of a Maildir")
    return path


def _without_format(setting: bytes) -> bytes:
    """Return the path of a setting without Dovecot's `maildir:` and options."""
    if not setting:
        raise MaildirNotUnderstood("the maildir setting is empty")
    if b":" not in setting:
        return setting
    format_name, path, *options = setting.split(b":")
    if format_name.lower() != b"maildir":
        raise MaildirNotUnderstood(f"{_shown(setting)} is not in Maildir format")
    for option in options:
        if not option.upper().startswith(HARMLESS_MAIL_OPTIONS):
            raise MaildirNotUnderstood(f"{_shown(setting)} has an unknown option {_shown(option)}")
    return path


def _shown(octets: bytes) -> str:
    return repr(octets[:80].decode("utf-8", "backslashreplace"))
