"""gpop virtusers: each step of a look-up, and a map that is built whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpop.accounts.maps import lmdbfile
from gpop.accounts.maps.compiled import CompiledMap
from gpop.accounts.maps.mapname import MapName
from gpop.cli import main
from gpop.commands import virtusers

UID = os.geteuid() or 2000
SERVED = f"uid {UID}, gid {UID or 1}, /home/joe/Maildir"

CONFIG = """\
[accounts]
first_valid_uid = 1
[accounts.virtual]
case = "fold"
domain_separators = "%"
default_domains = {{ "*" = "old.example", "192.0.2.1" = "local.example" }}
sendmail_maps = ["text:{folder}/virtusertable"]
postfix_maps = ["lmdb:{folder}/virtual"]
recipient_delimiter = "+"
local_domains = ["local.example"]
[[accounts.sources]]
type = "passwd-file"
path = "passwd"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "passwd").write_text(f"joe:{{PLAIN}}x:{UID}:{UID or 1}::/home/joe::allow_nets=192.0.2.0/24\n")
    (tmp_path / "passwd").chmod(0o600)
    (tmp_path / "virtusertable").write_text(
        "@old.example %1%3@local.example\ngone@x.example error:5.1.1:550 no more\n"
        "a@x.example b@x.example\nb@x.example a@x.example\n"
    )
    (tmp_path / "virtual").write_text("boss@local.example joe\nteam@local.example joe,\n  ann\n")
    assert main(["virtusers", "build", str(tmp_path / "virtual")]) == 0
    (tmp_path / "gpop.toml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "gpop.toml"


def lookup(config: Path, name: str, *options: str) -> int:
    return main(["virtusers", "lookup", name, "--config", str(config), *options])


def test_every_step_is_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was typed, what it means, what each map was asked and said, the account, and who knows it."""
    capsys.readouterr()
    assert lookup(config, "Boss") == 0
    folder = config.parent
    assert capsys.readouterr().out.splitlines() == [
        "name       Boss",
        "meant      boss@old.example (accounts.virtual: case, separators, default domain)",
        f"asked      text:{folder}/virtusertable for boss@old.example: no entry",
        f'asked      text:{folder}/virtusertable for @old.example: "%1%3@local.example"',
        "           boss@old.example -> boss@local.example",
        f"asked      text:{folder}/virtusertable for boss@local.example: no entry",
        f"asked      text:{folder}/virtusertable for @local.example: no entry",
        f'asked      lmdb:{folder}/virtual for boss@local.example: "joe"',
        "           boss@local.example -> joe",
        f"asked      lmdb:{folder}/virtual for joe: no entry",
        "account    joe",
        f"source     {folder}/passwd: {SERVED}",
    ]


@pytest.mark.parametrize(
    "name, status, words",
    [
        ("joe@local.example", 0, "joe@local.example -> joe (local_domains)"),
        ("ann", 1, "passwd: unknown"),
        ("gone@x.example", 1, "refused    virtual_user_rejected: 550 no more"),
        ("team%local.example", 1, "virtual_user_is_a_list: team@local.example is 2 addresses: joe, ann"),
        ("a@x.example", 1, "a loop: a@x.example -> b@x.example -> a@x.example; a login is told [SYS/TEMP]"),
    ],
)
def test_how_it_ends(
    config: Path, capsys: pytest.CaptureFixture[str], name: str, status: int, words: str
) -> None:
    """The exit status says whether there is an account that somebody may log in to."""
    assert lookup(config, name) == status
    assert words in capsys.readouterr().out


def test_the_local_address_counts(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it does at a login."""
    assert lookup(config, "joe", "--local", "192.0.2.1") == 0
    assert "meant      joe@local.example" in capsys.readouterr().out


def test_a_map_that_is_missing_or_damaged_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a config that is none."""
    map_file = config.parent / "virtual.lmdb"
    map_file.write_bytes(map_file.read_bytes()[:9000])
    assert lookup(config, "joe") == 1
    assert "damaged: it should have" in capsys.readouterr().out
    map_file.unlink()
    assert lookup(config, "joe") == 1
    assert "No such file or directory; a login is told [SYS/TEMP]" in capsys.readouterr().out
    config.write_text("[accounts.virtual]\npostfix_maps = ['mysql:/etc/x']\n")
    assert lookup(config, "joe") == 2
    assert "mysql" in capsys.readouterr().err


def entries(path: Path, *keys: bytes) -> list[bytes | None]:
    each = CompiledMap(MapName(f"lmdb:{path}"))
    found = [each.get(key) for key in keys]
    each.close()
    return found


def test_build_puts_a_whole_file_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folded keys, of duplicates the first; the old file's mode; nothing else is left in the folder."""
    source = tmp_path / "virtual"
    source.write_text("Joe@x.example joe\njoe@X.example jim\n@x.example all,\n  more\n")
    assert main(["virtusers", "build", str(source)]) == 0
    assert "virtual:2: 'joe@x.example' stands there already; the first holds" in capsys.readouterr().err
    assert entries(source, b"joe@x.example", b"@x.example") == [b"joe", b"all,  more"]
    built = tmp_path / "virtual.lmdb"
    assert stat.S_IMODE(built.stat().st_mode) == 0o644
    built.chmod(0o640)
    inode = built.stat().st_ino
    assert main(["virtusers", "build", str(source)]) == 0
    assert stat.S_IMODE(built.stat().st_mode) == 0o640 and built.stat().st_ino != inode
    assert sorted(os.listdir(tmp_path)) == ["virtual", "virtual.lmdb"]


@pytest.mark.parametrize(
    "text, options, words",
    [
        ("joe@x.example\n", (), "virtual:1: a key without a value"),
        (" joe@x.example joe\n", (), "virtual:1: goes on with an entry"),
        ("ann@x.example a\n joe@x.example joe\n", ("--sendmail",), "virtual:2: begins with a blank"),
        (f"{'x' * 511} joe\n", (), "a key of 511 octets, LMDB takes 510"),
    ],
)
def test_a_text_with_bad_lines_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, options: tuple[str, ...], words: str
) -> None:
    """They are all named; the map that is in use stays."""
    source = tmp_path / "virtual"
    lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"old@x.example": b"old"})
    source.write_text("good@x.example good\n")
    source.write_text(text)
    assert main(["virtusers", "build", str(source), *options]) == 1
    err = capsys.readouterr().err
    assert words in err and "nothing is changed" in err
    assert entries(source, b"old@x.example") == [b"old"]
    assert sorted(os.listdir(tmp_path)) == ["virtual", "virtual.lmdb"]


def test_a_build_that_fails_leaves_the_old_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the disk says no at the last step: no half file, no temporary one."""
    source = tmp_path / "virtual"
    lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"old@x.example": b"old"})
    source.write_text("new@x.example new\n")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["virtusers", "build", str(source)]) == 1
    assert entries(source, b"old@x.example", b"new@x.example") == [b"old", None]
    assert sorted(os.listdir(tmp_path)) == ["virtual", "virtual.lmdb"]


def test_an_empty_text_is_an_empty_map(tmp_path: Path) -> None:
    """It is no damaged one."""
    (tmp_path / "virtual").write_text("# nobody yet\n")
    assert main(["virtusers", "build", str(tmp_path / "virtual")]) == 0
    assert entries(tmp_path / "virtual", b"joe") == [None]


def test_a_text_that_is_too_large_is_not_compiled_in_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was beyond the limit was left out of the map, without a word."""
    text = tmp_path / "virtual"
    text.write_text("a@x.example joe\nb@x.example joe\n")
    monkeypatch.setattr(virtusers, "MAX_TEXT_OCTETS", 20)
    assert main(["virtusers", "build", str(text)]) == 1
    assert "larger than 20 octets; nothing is changed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [text]


def test_a_map_is_not_put_in_the_place_of_its_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of what is no file, /dev/null for one."""
    text, pipe = tmp_path / "virtual", tmp_path / "pipe"
    text.write_text("a@x.example joe\n")
    (tmp_path / "link").symlink_to(text)
    os.mkfifo(pipe)
    for output, words in (
        (text, "the text itself"),
        (tmp_path / "link", "the text itself"),
        (pipe, "not a regular"),
    ):
        assert main(["virtusers", "build", str(text), "--output", str(output)]) == 1
        assert words in capsys.readouterr().err
    assert text.read_text() == "a@x.example joe\n" and pipe.is_fifo()
