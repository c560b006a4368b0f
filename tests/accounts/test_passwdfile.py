"""Accounts in a file: Dovecot's layout, lines that are no use, and changes while we run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.account import SourceUnavailable
from gpop.accounts.passwdfile import (
    MAX_LINE_OCTETS,
    Entry,
    LineNotUsable,
    PasswdFile,
    parse_line,
)
from gpop.accounts.rereading import MAX_PROBLEMS
from tests.accounts.auth_process import let_clock_step

GOOD = b"joe:{PLAIN}pw:1000:100::/home/joe::"


def read(path: Path, octets: bytes) -> PasswdFile:
    path.write_bytes(octets)
    path.chmod(0o600)
    accounts = PasswdFile(str(path))
    accounts.refresh()
    return accounts


def entry(accounts: PasswdFile, name: bytes) -> Entry:
    found = accounts.lookup(name)
    assert found is not None
    return found


def test_the_layout_of_the_documentation() -> None:
    """`user:{scheme}hash:uid:gid:gecos:home:shell:extra`, as Dovecot reads it."""
    line = (
        b"joe:{CRYPT}$6$s$h:1000:100:Joe, Room 5:/home/joe:/bin/sh:maildir=~/M userdb_quota_rule=*:storage=1G"
    )
    parsed = parse_line(line)
    assert (parsed.name, parsed.uid, parsed.gid) == (b"joe", 1000, 100)
    assert (parsed.home, parsed.maildir, parsed.nologin) == (b"/home/joe", b"~/M", False)


@pytest.mark.parametrize(
    "line, maildir",
    [
        (b"joe:x:1000:100::/home/joe", None),
        (b"joe:x:1000:100::/home/joe:", None),
        (b"joe:x:1000:100::/home/joe::maildir=/srv/joe", b"/srv/joe"),
        (b"joe:x:1000:100::/home/joe::userdb_mail=maildir:~/Maildir", b"maildir:~/Maildir"),
        (b"joe:x:1000:100::/home/joe::mail=maildir:/m:LAYOUT=fs nodelay=y", b"maildir:/m:LAYOUT=fs"),
    ],
)
def test_the_last_fields_may_be_missing(line: bytes, maildir: bytes | None) -> None:
    """Shell and extra fields are optional, and colons belong to the extra fields."""
    assert parse_line(line).maildir == maildir


@pytest.mark.parametrize(
    "line, word",
    [
        (b"joe", "1 fields"),
        (b"joe:x:1000:100:", "5 fields"),
        (b":x:1000:100::/home/joe", "user name"),
        (b"jo e:x:1000:100::/home/joe", "user name"),
        (b"jo\0e:x:1000:100::/home/joe", "user name"),
        (b"j" * 256 + b":x:1000:100::/home/joe", "user name"),
        (b"joe:x::100::/home/joe", "uid is not"),
        (b"joe:x:-1:100::/home/joe", "uid is not"),
        (b"joe:x:+5:100::/home/joe", "uid"),
        (b"joe:x:1_000:100::/home/joe", "uid"),
        (b"joe:x:4294967295:100::/home/joe", "uid"),
        (b"joe:x:99999999999999999999:100::/home/joe", "uid"),
        (b"joe:x:1000:staff::/home/joe", "gid is not"),
        (b"joe:x:1000:100::home/joe", "absolute"),
        (b"joe:x:1000:100::", "absolute"),
        (b"joe:{ARGON2ID}$a:1000:100::/home/joe", "unknown password scheme"),
        (b"joe:x:1000:100::/home/joe::proxy=y host=10.0.0.1", "'proxy'"),
        (b"joe:x:1000:100::/home/joe::nopassword", "'nopassword'"),
        (b"joe:x:1000:100::/home/joe::userdb_uid=0", "'userdb_uid'"),
        (b"joe:x:1000:100::/home/joe::allow_nets=local,10.0.0.0/8", "'local'"),
    ],
)
def test_a_line_that_is_no_use_says_what_is_wrong(line: bytes, word: str) -> None:
    """And an extra field that changes who is served is not passed over in silence."""
    with pytest.raises(LineNotUsable, match=word):
        parse_line(line)


def test_what_is_wrong_with_a_line_is_said_without_its_fields() -> None:
    """One field too few or too many, and the password stands where an id or the home should be."""
    for fields in (
        "joe:1000:100:{PLAIN}hunter2:Joe:/h",
        "joe:x:{PLAIN}hunter2:1:2:/h",
        "joe:1000:100::x:hunter2",
    ):
        with pytest.raises(LineNotUsable) as caught:
            parse_line(fields.encode())
        assert "hunter2" not in str(caught.value)


def test_bad_lines_are_reported_and_cost_nobody_else_anything(tmp_path: Path) -> None:
    """Comments, blank lines and CRLF are no problems; each bad line is one, with its number."""
    octets = b"\n".join(
        (b"# accounts", b"", b"   ", GOOD + b"\r", b"bad:x:a:b::/h", b"x" * (MAX_LINE_OCTETS + 1), b"nothing",
         b"joe:{PLAIN}other:1001:100::/home/other", b"ann:{PLAIN}pw:1002:100::/home/ann")
    )  # fmt: skip
    accounts = read(tmp_path / "users", octets)
    assert [number for number, _ in accounts.problems] == [5, 6, 7, 8]
    assert len(accounts) == 2
    assert entry(accounts, b"joe").uid == 1000
    assert entry(accounts, b"joe").home == b"/home/joe"
    assert entry(accounts, b"ann").uid == 1002
    assert accounts.lookup(b"bob") is None


def test_a_user_with_a_broken_line_is_not_unknown(tmp_path: Path) -> None:
    """No other source may decide for a user whom this file meant to hold; a good line of his holds."""
    accounts = read(tmp_path / "users", b"joe:x:a:b::/h\nann:x:a:b::/h\nann:{PLAIN}pw:1002:100::/home/ann\n")
    with pytest.raises(SourceUnavailable, match="line 1: uid is not"):
        accounts.lookup(b"joe")
    assert entry(accounts, b"ann").uid == 1002


def test_problems_are_bounded(tmp_path: Path) -> None:
    """A file that is something else altogether is not reported line by line without end."""
    accounts = read(tmp_path / "users", b"nonsense\n" * 1000)
    assert (len(accounts.problems), accounts.problem_count) == (MAX_PROBLEMS, 1000)


def test_hashes_readable_by_everybody_are_reported(tmp_path: Path) -> None:
    """As a problem of the file, line 0."""
    path = tmp_path / "users"
    read(path, GOOD)
    path.chmod(0o644)
    accounts = PasswdFile(str(path))
    accounts.refresh()
    assert [number for number, _ in accounts.problems] == [0]
    assert entry(accounts, b"joe")


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    """Replaced, or rewritten in place within the same second with the same size."""
    path = tmp_path / "users"
    accounts = read(path, GOOD + b"\n")
    assert not accounts.refresh()
    new = tmp_path / "new"
    new.write_bytes(b"ann:{PLAIN}pw:1000:100::/home/ann::\n")
    os.rename(new, path)
    assert accounts.refresh()
    assert accounts.lookup(b"joe") is None and entry(accounts, b"ann")
    let_clock_step(path)
    path.write_bytes(b"bob:{PLAIN}pw:1000:100::/home/ann::\n")
    assert accounts.refresh()
    assert accounts.lookup(b"ann") is None and entry(accounts, b"bob")


def test_a_file_changed_just_before_it_was_read_is_read_once_more(tmp_path: Path) -> None:
    """A second change in the same clock tick leaves every stamp as it was: only reading tells."""
    path = tmp_path / "users"
    accounts = read(path, GOOD + b"\n")
    accounts._digest = b"what an earlier state of the file would have given"
    accounts._read_again_at = 1.0  # the two seconds are over
    assert accounts.refresh()
    assert not accounts.refresh()


def test_a_vanished_file_is_an_outage(tmp_path: Path) -> None:
    """Said once, not "no such user"; and over when the file is back."""
    path = tmp_path / "users"
    accounts = read(path, GOOD)
    path.unlink()
    assert accounts.refresh()
    assert not accounts.refresh()
    with pytest.raises(SourceUnavailable, match="No such file"):
        accounts.lookup(b"joe")
    path.write_bytes(GOOD)
    assert accounts.refresh()
    assert entry(accounts, b"joe")


@pytest.mark.parametrize("kind", ["directory", "fifo", "nothing"])
def test_what_is_no_file_is_an_outage(tmp_path: Path, kind: str) -> None:
    """A FIFO in its place does not stop the process either."""
    path = tmp_path / "users"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    accounts = PasswdFile(str(path))
    accounts.refresh()
    with pytest.raises(SourceUnavailable):
        accounts.lookup(b"joe")


def test_allow_nets(tmp_path: Path) -> None:
    """Dovecot's restriction of where a user may come from holds here too."""
    line = parse_line(b"joe:x:1000:100::/home/joe::allow_nets=192.0.2.0/24,2001:db8::/32,198.51.100.7")
    for peer in ("192.0.2.9", "2001:db8::1", "198.51.100.7", "::ffff:192.0.2.9"):
        assert line.allows_peer(peer)
    for peer in ("192.0.3.9", "2001:db9::1", "198.51.100.8", "", "nonsense"):
        assert not line.allows_peer(peer)


def test_a_repr_shows_no_hash() -> None:
    """It may end up in a traceback."""
    assert "secret" not in repr(parse_line(b"joe:{PLAIN}secret:1000:100::/home/joe"))


@given(line=st.binary(max_size=200))
def test_any_line_is_an_account_or_an_error(line: bytes) -> None:
    """Whatever somebody's editor made of the file."""
    try:
        parsed = parse_line(line)
    except LineNotUsable:
        return
    assert parsed.name and parsed.home.startswith(b"/")


@given(octets=st.binary(max_size=400), tail=st.sampled_from([b"", b"\n", b"\r\n"]))
def test_nonsense_around_a_line_does_not_hide_it(
    tmp_path_factory: pytest.TempPathFactory, octets: bytes, tail: bytes
) -> None:
    """Any octets before and behind it: the account is found, unless they name it themselves."""
    path = tmp_path_factory.getbasetemp() / "any"
    accounts = read(path, octets + b"\n" + GOOD + tail)
    if b"joe" not in octets:
        assert entry(accounts, b"joe").uid == 1000
