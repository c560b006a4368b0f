"""Settings of single accounts: the file's grammar, what an account gets, and `gpop user` on it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop import programs
from gpop.accounts.account import Accepted, Account, Refused
from gpop.accounts.user_settings import LineNotUsable, UserSettings, UserSettingsFile, parse_line
from tests.accounts.auth_process import let_clock_step


def accepted(name: bytes) -> Accepted:
    return Accepted(Account(name, 1000, 1000, (), b"/home/x", b"/home/x/Maildir"), "pam", 1)


def read(path: Path, text: str) -> UserSettingsFile:
    path.write_text(text)
    file = UserSettingsFile(str(path))
    assert file.refresh()
    return file


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        (b"joe", UserSettings()),
        (b"joe pop3=off", UserSettings(pop3=False)),
        (b"joe@example.org \t pop3=on removal=.Trash", UserSettings(removal=".Trash")),
        (b"joe removal=unlink", UserSettings(removal="unlink")),
        (b"joe removal=hide", UserSettings(removal="hide")),
        (b"joe dialogue_until=2026-11-25T18:00:00Z", UserSettings(dialogue_until_s=1795629600)),
        (b"joe dialogue_until=2026-11-25T19:00:00+01:00", UserSettings(dialogue_until_s=1795629600)),
    ],
)
def test_a_line(line: bytes, settings: UserSettings) -> None:
    """An account and what is set for it."""
    assert parse_line(line) == (line.split()[0], settings)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"joe pop3=no", "expected on or off"),
        (b"joe removal=Trash", "a Maildir"),
        (b"joe removal=../x", "a Maildir"),
        (b"joe removal=.a/b", "a Maildir"),
        (b"joe removal=..", "a Maildir"),
        (b"joe dialogue_until=tomorrow", "a time with its zone"),
        (b"joe dialogue_until=2026-11-25T18:00:00", "a time with its zone"),
        (b"joe pop=off", "no setting; known are"),
        (b"joe off", "no setting; known are"),
        (b"joe pop3=on pop3=off", "twice"),
        (b"joe " + b"x" * 2000, "octets"),
        (b"joe \x1b[2J=1", "\\x1b[2J is no setting"),
    ],
)
def test_a_line_that_can_not_be_used(line: bytes, problem: str) -> None:
    """It says why, and what would be right; a control character is no part of the text."""
    with pytest.raises(LineNotUsable, match=problem.replace("\\", "\\\\").replace("[", "\\[")):
        parse_line(line)


@given(st.binary(max_size=200))
def test_any_line_is_parsed_or_named(line: bytes) -> None:
    """No octets end auth."""
    try:
        if line.split():
            parse_line(line)
    except LineNotUsable as error:
        assert str(error).isprintable()


def test_what_an_account_gets(tmp_path: Path) -> None:
    """Its own line, else that of `*`, else nothing."""
    text = "# comment\n\njoe removal=.Trash\nann pop3=off\n*  dialogue_until=2001-01-01T00:00:10Z\n"
    file = read(tmp_path / "settings", text)
    now_s = 978307205.0
    assert file.applied(accepted(b"joe"), now_s) == Accepted(accepted(b"joe").account, "pam", 1, ".Trash")
    assert file.applied(accepted(b"ann"), now_s) == Refused("AUTH", "pop3_off", "pam")
    other = file.applied(accepted(b"other"), now_s)
    assert isinstance(other, Accepted)
    assert other.dialogue
    assert file.applied(accepted(b"other"), now_s + 10) == accepted(b"other")


def test_everybody_may_be_kept_out_but_some(tmp_path: Path) -> None:
    """`*` off is a list of those who may."""
    file = read(tmp_path / "settings", "* pop3=off\njoe pop3=on\n")
    assert isinstance(file.applied(accepted(b"joe"), 0), Accepted)
    assert isinstance(file.applied(accepted(b"ann"), 0), Refused)


def test_an_account_with_a_bad_line_is_not_served(tmp_path: Path) -> None:
    """The line may have been meant to keep it out; the others are not hurt. A bad `*` is everybody's."""
    file = read(tmp_path / "settings", "joe pop3=offf\nann pop3=on\n")
    refused = file.applied(accepted(b"joe"), 0)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.reason) == ("SYS/TEMP", "user_settings_not_usable")
    assert "line 1" in refused.detail
    assert file.applied(accepted(b"ann"), 0) == accepted(b"ann")
    assert file.applied(accepted(b"other"), 0) == accepted(b"other")
    let_clock_step(tmp_path)
    (tmp_path / "settings").write_text("* pop3\n")
    assert file.refresh()
    assert isinstance(file.applied(accepted(b"other"), 0), Refused)


def test_no_file_sets_nothing_and_an_unreadable_one_keeps_everybody_out(tmp_path: Path) -> None:
    """A file that is a directory is not "no file"; one that goes away is."""
    path = tmp_path / "settings"
    file = UserSettingsFile(str(path))
    assert file.refresh()
    assert not file.refresh()
    assert file.applied(accepted(b"joe"), 0) == accepted(b"joe")
    path.mkdir()
    assert file.refresh()
    assert isinstance(file.applied(accepted(b"joe"), 0), Refused)
    path.rmdir()
    assert file.refresh()
    assert file.applied(accepted(b"joe"), 0) == accepted(b"joe")


# The command


def gpop(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "gpop.toml"
    if not config.exists():
        config.write_text('[[accounts.sources]]\ntype = "passwd-file"\npath = "users"\n')
    command, *rest = arguments
    return subprocess.run(
        [sys.executable, programs.MAIN, command, "--config", str(config), *rest],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_changes_one_line(tmp_path: Path) -> None:
    """What else is set for an account stays, and so does every other line."""
    path = tmp_path / "user-settings"
    assert gpop(tmp_path, "user", "set", "joe", "removal=.Trash").returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# mine\n" + path.read_text() + "\nann   pop3=off\nbad pop3=offf\n")
    assert gpop(tmp_path, "user", "set", "joe", "pop3=off").returncode == 0
    assert path.read_text() == "# mine\njoe removal=.Trash pop3=off\n\nann   pop3=off\nbad pop3=offf\n"
    assert gpop(tmp_path, "user", "unset", "joe", "removal").returncode == 0
    shown = gpop(tmp_path, "user", "list")
    assert shown.stdout == "joe pop3=off\nann pop3=off\n"
    assert (shown.returncode, "user-settings:5: pop3=offf: expected on or off" in shown.stderr) == (1, True)
    assert gpop(tmp_path, "user", "unset", "joe").returncode == 0
    assert path.read_text() == "# mine\n\nann   pop3=off\nbad pop3=offf\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "joe", "pop3=maybe"), "expected on or off; nothing was changed"),
        (("set", "joe smith", "pop3=off"), "no blanks"),
        (("set", "#joe", "pop3=off"), "no # first"),
        (("unset", "joe"), "has no line for joe"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """And changes nothing."""
    path = tmp_path / "user-settings"
    path.write_text("ann pop3=off\n")
    done = gpop(tmp_path, "user", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert path.read_text() == "ann pop3=off\n"


def test_dialogue_is_switched_on_for_a_while(tmp_path: Path) -> None:
    """With its end in the file; off takes the entry out again."""
    done = gpop(tmp_path, "log", "joe", "--debug", "on", "--minutes", "5")
    assert done.returncode == 0, done.stderr
    name, settings = parse_line((tmp_path / "user-settings").read_bytes().strip())
    assert name == b"joe"
    assert settings.dialogue_until_s > 0
    assert gpop(tmp_path, "log", "joe", "--debug", "off").returncode == 0
    assert (tmp_path / "user-settings").read_text() == ""


def test_an_account_s_first_line_keeps_what_holds_for_all_accounts(tmp_path: Path) -> None:
    """`gpop log joe --debug on` let in joe, whom `* pop3=off` kept out, and unlinked what `*` has kept."""
    path = tmp_path / "user-settings"
    path.write_text("* pop3=off removal=.Deleted\nann pop3=on\n")
    assert gpop(tmp_path, "log", "joe", "--debug", "on").returncode == 0
    line = path.read_text().splitlines()[2]
    assert line.startswith("joe pop3=off removal=.Deleted dialogue_until=")
    assert gpop(tmp_path, "user", "set", "bob", "pop3=on").returncode == 0
    assert path.read_text().splitlines()[3] == "bob removal=.Deleted pop3=on"
    assert gpop(tmp_path, "user", "set", "ann", "removal=hide").returncode == 0
    assert path.read_text().splitlines()[1] == "ann pop3=on removal=hide"


def test_what_is_not_set_can_not_be_forgotten(tmp_path: Path) -> None:
    """An account without a line got an empty one, for which `*` held no more."""
    path = tmp_path / "user-settings"
    assert "has no line for joe" in gpop(tmp_path, "user", "unset", "joe").stderr
    assert not path.exists()
    path.write_text("* pop3=off\nann pop3=on\n")
    done = gpop(tmp_path, "user", "unset", "joe", "pop3")
    assert (done.returncode, "has no line for joe" in done.stderr) == (1, True)
    assert gpop(tmp_path, "log", "joe", "--debug", "off").returncode == 0
    assert path.read_text() == "* pop3=off\nann pop3=on\n"
    assert gpop(tmp_path, "user", "unset", "ann", "pop3").returncode == 0
    assert path.read_text() == "* pop3=off\n"


def test_every_problem_of_the_config_has_a_line(tmp_path: Path) -> None:
    """And minutes are a number that there is."""
    (tmp_path / "gpop.toml").write_text("[server]\nfronts = 0\n")
    done = gpop(tmp_path, "user", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 2 and done.stderr.count("gpop user: ") == 2
    assert "no number from 1" in gpop(tmp_path, "log", "joe", "--debug", "on", "--minutes", "-5").stderr
