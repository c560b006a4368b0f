"""`gpop passwd`: what it changes in a file, and everything it leaves alone."""

from __future__ import annotations

import argparse
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpop import programs
from gpop.accounts.hashes import StoredPassword
from gpop.accounts.passwdfile import parse_line
from gpop.commands import passwd as passwd_command

IDENTITY = ["--uid", "2000", "--gid", "2000", "--home", "/home/joe"]


def gpop_passwd(*arguments: str, password: bytes = b"secret\n", monkeypatch: pytest.MonkeyPatch) -> int:
    parser = argparse.ArgumentParser()
    passwd_command.add_arguments(parser)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(password)))
    return passwd_command.run(parser.parse_args(arguments))


def test_add_change_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole life of an account, in a file that was not there before and that only its owner reads."""
    path = tmp_path / "users"
    assert gpop_passwd("add", str(path), "joe", *IDENTITY, monkeypatch=monkeypatch) == 0
    entry = parse_line(path.read_bytes().rstrip(b"\n"))
    assert (entry.name, entry.uid, entry.gid, entry.home) == (b"joe", 2000, 2000, b"/home/joe")
    assert entry.maildir is None
    assert StoredPassword(entry.password).matches(b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    arguments = ("change", str(path), "joe")
    assert gpop_passwd(*arguments, password=b"new one\r\n", monkeypatch=monkeypatch) == 0
    changed = parse_line(path.read_bytes().rstrip(b"\n"))
    assert StoredPassword(changed.password).matches(b"new one")
    assert (changed.uid, changed.home) == (entry.uid, entry.home)

    assert gpop_passwd("delete", str(path), "joe", monkeypatch=monkeypatch) == 0
    assert path.read_bytes() == b""


def test_everything_else_in_the_file_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, blank lines, CRLF, Dovecot's fields, lines that are no use; owner and mode too."""
    path = tmp_path / "users"
    before = b"# joe: see below\n\n  \nann:{PLAIN}x:1:2:::\r\njunk\n#joe:x:1:1::/h\n"
    joe = b"joe:{PLAIN}old:2000:2000:Joe:/home/joe:/bin/sh:maildir=~/M userdb_quota_rule=*:storage=1G\r\n"
    after = b"joe:second line of the same name\n\xff\xfe:x"
    path.write_bytes(before + joe + after)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    status = path.stat()
    assert gpop_passwd("change", str(path), "joe", monkeypatch=monkeypatch) == 0
    octets = path.read_bytes()
    assert octets.startswith(before) and octets.endswith(after + b"\n")
    line = octets[len(before) : -len(after) - 1]
    assert line.endswith(b":2000:2000:Joe:/home/joe:/bin/sh:maildir=~/M userdb_quota_rule=*:storage=1G\r\n")
    assert StoredPassword(line.split(b":")[1]).matches(b"secret")
    now = path.stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (status.st_uid, status.st_gid, status.st_mode)
    assert sorted(os.listdir(tmp_path)) == ["users"]


def test_a_symbolic_link_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file behind it is replaced."""
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    arguments = ("add", str(tmp_path / "link"), "joe", *IDENTITY)
    assert gpop_passwd(*arguments, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes().startswith(b"joe:")


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["joe", *IDENTITY], "already"),
        (["a:b", *IDENTITY], "':'"),
        (["#b", *IDENTITY], "user name"),
        (["a b", *IDENTITY], "user name"),
        (["", *IDENTITY], "user name"),
        (["new", *IDENTITY[:-1], "home/new"], "absolute"),
        (["new", *IDENTITY[:-1], "/home/n:ew"], "':'"),
        (["new", *IDENTITY[:-1], "/home/n\new"], "line ends"),
        (["new", "--uid", "-1", *IDENTITY[2:]], "uid"),
        (["new", *IDENTITY, "--maildir", "~/%u"], "%-variable"),
        (["new", *IDENTITY, "--maildir", "a b"], "blanks"),
    ],
)
def test_an_account_that_could_not_be_used_is_not_added(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    word: str,
) -> None:
    """And the file is as before."""
    path = tmp_path / "users"
    path.write_bytes(b"joe:x:1000:1000::/home/joe\n")
    assert gpop_passwd("add", str(path), *arguments, monkeypatch=monkeypatch) == 1
    assert word in capsys.readouterr().err
    assert path.read_bytes() == b"joe:x:1000:1000::/home/joe\n"


@pytest.mark.parametrize("password", [b"", b"\n", b"x" * 512 + b"\n", b"a\0b\n"])
def test_a_password_nobody_could_use_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], password: bytes
) -> None:
    """Not even a new empty file is left behind."""
    path = tmp_path / "users"
    arguments = ("add", str(path), "joe", *IDENTITY)
    assert gpop_passwd(*arguments, password=password, monkeypatch=monkeypatch) == 1
    assert "1 to 511" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("action", ["change", "delete", "list"])
def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    """The file, or the user in it; only `add` makes a file."""
    user = [] if action == "list" else ["joe"]
    assert gpop_passwd(action, str(tmp_path / "users"), *user, monkeypatch=monkeypatch) == 1
    assert "No such file" in capsys.readouterr().err
    if user:
        (tmp_path / "users").write_bytes(b"#joe:x:1:1::/h\nann:x:1:1::/h\n")
        assert gpop_passwd(action, str(tmp_path / "users"), *user, monkeypatch=monkeypatch) == 1
        assert "no user joe" in capsys.readouterr().err


def test_list_shows_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Name, ids and paths; what can't be used is named with its line, on standard error."""
    path = tmp_path / "users"
    path.write_bytes(b"# c\njoe:{PLAIN}secret:1000:100::/home/joe::maildir=~/M\nbad:{PLAIN}secret:x:y::/h\n")
    assert gpop_passwd("list", str(path), monkeypatch=monkeypatch) == 1
    shown = capsys.readouterr()
    assert shown.out == "joe 1000 100 /home/joe maildir=~/M\n"
    assert ":3: uid is not" in shown.err
    assert "secret" not in shown.out + shown.err


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each waits for the other and adds to what the other wrote."""
    path = tmp_path / "users"

    def add(number: int) -> None:
        command = [sys.executable, programs.MAIN, "passwd", "add", str(path), f"user{number}", *IDENTITY]
        subprocess.run(command, input=b"secret\n", check=True)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.split(b":")[0] for line in path.read_bytes().splitlines()) == [
        b"user%d" % number for number in range(6)
    ]


def test_a_file_that_another_makes_at_that_moment_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one put there stays: the file is made by one of the two only."""
    path = tmp_path / "users"
    really_open = os.open

    def open_second(opened: str, flags: int, *mode: int) -> int:
        if flags & os.O_EXCL and not path.exists():
            path.write_bytes(b"ann:x:1000:1000::/home/ann\n")
        return really_open(opened, flags, *mode)

    monkeypatch.setattr(os, "open", open_second)
    assert gpop_passwd("add", str(path), "joe", *IDENTITY, password=b"secret\n", monkeypatch=monkeypatch) == 0
    assert [line.split(b":")[0] for line in path.read_bytes().splitlines()] == [b"ann", b"joe"]


def test_a_typed_password_is_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the finger would lock its user out."""
    path = tmp_path / "users"
    answers = iter(["one", "other", "same", "same"])
    parser = argparse.ArgumentParser()
    passwd_command.add_arguments(parser)
    arguments = parser.parse_args(["add", str(path), "joe", *IDENTITY])
    terminal, keyboard = os.openpty()
    with open(keyboard, encoding="utf-8") as stdin, open(terminal, closefd=True):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("getpass.getpass", lambda _prompt: next(answers))
        assert passwd_command.run(arguments) == 1
        assert "not the same" in capsys.readouterr().err
        assert passwd_command.run(arguments) == 0
    assert StoredPassword(parse_line(path.read_bytes().rstrip(b"\n")).password).matches(b"same")


def test_a_line_that_is_cut_off_is_named_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback, after the password had been typed."""
    path = tmp_path / "users"
    path.write_bytes(b"# mine\njoe:{PLAIN}x\n")
    assert gpop_passwd("change", str(path), "joe", monkeypatch=monkeypatch) == 1
    assert f"{path}:2: the line has nothing after the password" in capsys.readouterr().err
    assert path.read_bytes() == b"# mine\njoe:{PLAIN}x\n"


def test_what_is_no_regular_file_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, /dev/null became a passwd-file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert gpop_passwd("add", str(path), "joe", *IDENTITY, monkeypatch=monkeypatch) == 1
    assert "not a regular file" in capsys.readouterr().err
    assert stat.S_ISFIFO(path.stat().st_mode) and len(list(tmp_path.iterdir())) == 1
