"""Which accounts are served at all, and where their maildrop is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.account import Limits, MaildirNotUnderstood, resolve_maildir

LIMITS = Limits(first_valid_uid=1000, first_valid_gid=100, maildir="Maildir")


@pytest.mark.parametrize(
    "uid, gid, reason",
    [
        (1000, 100, ""),
        (0, 100, "uid_0"),
        (999, 100, "uid_too_low"),
        (1000, 99, "gid_too_low"),
        (1000, 0, "gid_too_low"),
        (0xFFFFFFFF, 100, "uid_not_valid"),
        (1000, 0xFFFFFFFF, "gid_not_valid"),
    ],
)
def test_ids_below_the_first_valid_ones_are_refused(uid: int, gid: int, reason: str) -> None:
    """System accounts are refused, and so is the id that setresuid takes for "leave it"."""
    assert LIMITS.refusal(uid, gid) == reason


def test_ids_above_the_last_valid_one_are_refused() -> None:
    """A bound for who keeps system accounts, or those of another service, above the users'."""
    limits = Limits(1000, 100, "Maildir", last_valid_uid=59999)
    assert limits.refusal(59999, 100) == ""
    assert limits.refusal(60000, 100) == "uid_too_high"


def test_root_is_refused_however_low_the_limits_are() -> None:
    """No setting serves uid 0 or gid 0."""
    limits = Limits(first_valid_uid=0, first_valid_gid=0, maildir="Maildir")
    assert limits.refusal(0, 5) == "uid_0"
    assert limits.refusal(5, 0) == "gid_too_low"


def test_without_root_only_the_running_user_is_served() -> None:
    """Whatever its ids, and nobody else; uid 0 not even then."""
    limits = Limits(1000, 100, "Maildir", only_uid=500)
    assert limits.refusal(500, 50) == ""
    assert limits.refusal(1000, 1000) == "other_user_without_root"
    assert limits.refusal(0, 0) == "uid_0"


def test_supplementary_groups_below_the_first_valid_one_are_left_out() -> None:
    """Who may read /etc/shadow by his groups does not read mail with that right."""
    assert LIMITS.valid_groups([42, 100, 5000, 0]) == (100, 5000)


@pytest.mark.parametrize(
    "setting, path",
    [
        (b"Maildir", b"/home/joe/Maildir"),
        (b"~/Maildir", b"/home/joe/Maildir"),
        (b"mail/in", b"/home/joe/mail/in"),
        (b"/var/mail/joe", b"/var/mail/joe"),
        (b"maildir:~/Maildir", b"/home/joe/Maildir"),
        (b"maildir:/var/mail/joe:INDEX=/var/index/joe:LAYOUT=fs", b"/var/mail/joe"),
        (b"MAILDIR:Mail", b"/home/joe/Mail"),
        (b"~", b"/home/joe"),
        (b"M\xfcll", b"/home/joe/M\xfcll"),
    ],
)
def test_a_maildir_setting_becomes_one_absolute_path(setting: bytes, path: bytes) -> None:
    """In the home or absolute, in gpop's spelling and in Dovecot's."""
    assert resolve_maildir(setting, b"/home/joe") == path


@pytest.mark.parametrize(
    "setting, home, word",
    [
        (b"~/%u", b"/home/joe", "%-variable"),
        (b"maildir:%{home}/Maildir", b"/home/joe", "%-variable"),
        (b"mbox:~/mail", b"/home/joe", "not in Maildir format"),
        (b"maildir:~/Maildir:INBOX=/elsewhere", b"/home/joe", "option"),
        (b"~other/Maildir", b"/home/joe", "another user"),
        (b"", b"/home/joe", "empty"),
        (b"maildir:", b"/", "no path"),
        (b"Maildir", b"home/joe", "not absolute"),
        (b"Maildir", b"", "not absolute"),
        (b"Mail\ndir", b"/home/joe", "control"),
        (b"/" + b"x" * 5000, b"/home/joe", "no path"),
    ],
)
def test_a_maildir_setting_that_is_not_understood_says_why(setting: bytes, home: bytes, word: str) -> None:
    """Guessing would serve another directory than was meant."""
    with pytest.raises(MaildirNotUnderstood, match=word):
        resolve_maildir(setting, home)


@given(setting=st.binary(max_size=60), home=st.binary(max_size=60))
def test_any_octets_give_an_absolute_path_or_an_error(setting: bytes, home: bytes) -> None:
    """Never a relative path, never one with a NUL or a line end in it."""
    try:
        path = resolve_maildir(setting, home)
    except MaildirNotUnderstood:
        return
    assert path.startswith(b"/") and path.strip(b"/")
    assert not any(octet < 0x20 for octet in path)
