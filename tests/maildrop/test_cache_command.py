"""`gpop cache`: what an operator is told of a statcache."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from gpop import cli
from gpop.commands import cache as cache_command
from gpop.commands import owner
from gpop.maildrop import cachefile, importfile, opening, statcache, table
from gpop.maildrop.imported import ImportedId
from gpop.maildrop.table import NOTHING
from tests.maildrop.store import Store, expected, listing


@pytest.fixture
def own(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A maildrop of the user who runs the command; root is not asked to become anybody (tests/root is)."""

    def enter(path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    if os.geteuid() == 0:
        monkeypatch.setattr(owner, "enter", enter)
    return store


def run(store: Store, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cache_command.add_arguments(parser)
    action, *options = arguments
    return cache_command.run(parser.parse_args([action, *options, str(store.path)]))


def test_show_explains_a_hit(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What it holds, and that the next poll would be a hit; looking changes nothing."""
    own.deliver_many(3)
    own.deliver("1700000009.a,W=7", folder="cur")
    own.deliver("1700000010." + "x" * 80, folder="cur")
    own.poll()
    before = own.cache.stat()
    assert run(own, "show") == 0
    said = capsys.readouterr().out
    assert "5 messages of" in said
    assert "4 measured, 1 from W=" in said
    assert "4 base names, 1 hashed" in said
    assert "now        hit, unchanged" in said
    assert own.cache.stat() == before


def test_show_says_why_it_is_none(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What changed, with both stamps."""
    own.deliver_many(3)
    assert run(own, "show") == 0
    assert "now        rebuild, absent: there is no .statcache" in capsys.readouterr().out
    own.poll()
    own.deliver_many(1, first=3)
    run(own, "show")
    said = capsys.readouterr().out
    assert "now        refresh, new_changed" in said
    assert "new/: mtime was " in said
    assert "cur/:" not in said.partition("now")[2]
    own.poll()
    run(own, "show", "--max-messages", "2")
    assert "refresh, settings_changed" in capsys.readouterr().out
    own.cache.write_bytes(own.cache.read_bytes()[:-1])
    run(own, "show")
    assert "rebuild, truncated" in capsys.readouterr().out
    own.cache.unlink()
    own.cache.mkdir()
    run(own, "show")
    assert "rebuild, not_a_file" in capsys.readouterr().out


def test_verify_finds_nothing_wrong(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """All is as it should be, odd names and twins included."""
    own.deliver_many(12)
    own.deliver(b"1700000100.h\xf6st\n", b".\n")
    own.deliver("1700000101.t", b"a\n")
    own.deliver("1700000101.t:2,S", b"b\n", folder="cur")
    own.deliver("1700000102.l", b"a\n")
    os.link(own.file("new", "1700000102.l"), own.file("cur", "1700000102.l:2,S"))
    own.poll()
    assert run(own, "verify") == 0
    said = capsys.readouterr().out
    assert "right      16 messages" in said
    assert "wrong" not in said


def test_imported_unique_ids(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """They are right if the file of imported ids says so, and the cache is stale when that is gone."""
    own.deliver_many(2)
    importfile.add(own.dir_fd, {b"1700000000.M0P1.host": ImportedId(b"old")})
    own.open().close()
    assert run(own, "verify") == 0
    assert run(own, "show") == 0
    said = capsys.readouterr().out
    assert "right      2 messages" in said and "unique-ids 1 imported or hashed, 1 base names" in said
    (own.path / importfile.IMPORT_NAME).unlink()
    assert run(own, "verify") == 0
    said = capsys.readouterr().out
    assert "refresh, import_changed: the file of imported unique-ids is not the one" in said
    assert "stale      old: listed as message 1, not there" in said


def test_verify_names_a_lying_size(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is read, whatever its name claims."""
    own.deliver("1700000000.a,W=9", b"a\nb\n")
    own.poll()
    assert run(own, "verify") == 1
    said = capsys.readouterr().out
    assert "wrong      1700000000.a,W=9: listed with 9 octets (from W=), has 6" in said


def test_verify_tells_stale_from_wrong(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache that is not up to date is no error: the next session sees to it."""
    own.deliver_many(3)
    own.poll()
    os.unlink(own.file("new", "1700000000.M0P1.host"))
    own.deliver_many(1, first=5)
    assert run(own, "verify") == 0
    said = capsys.readouterr().out
    assert "stale      1700000000.M0P1.host: listed as message 1, not there" in said
    assert "stale      1700000001.M1P1.host: listed as message 2, is 1" in said
    assert "stale      1700000005.M5P1.host: not listed, is message 3" in said


def test_verify_takes_a_replaced_message_for_stale(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Another file under a message's name is measured by the next session; one written in place is not."""
    own.deliver_many(2)
    own.poll()
    own.deliver("1700000000.M0P1.host", b"another\nmessage\n")
    assert run(own, "verify") == 0
    said = capsys.readouterr().out
    assert "stale      1700000000.M0P1.host: listed with 14 octets (measured), has 18" in said
    own.poll()
    with open(own.file("new", "1700000000.M0P1.host"), "ab") as file:
        file.write(b"more\n")
    assert run(own, "verify") == 1
    assert "wrong      1700000000.M0P1.host: listed with 18 octets" in capsys.readouterr().out


def forge(store: Store, **changes: object) -> None:
    """Write a well-formed cache in which some of what it knows is changed."""
    image = cachefile.open_image(store.dir_fd)
    known = table.take_apart(table.cut(image.header, image.load()))
    for name, value in changes.items():
        setattr(known, name, value)
    columns = table.render(NOTHING, known)
    octets = b"".join(statcache.assemble(NOTHING, columns, image.header.octets, image.header.facts()))
    image.close()
    store.cache.write_bytes(octets)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"octets": (1, 14)}, "header says"),
        ({"octets": (1, 14)}, "1700000000.M0P1.host: listed with 1 octets (measured), has"),
        ({"flags": bytes([12, 12])}, "taken for ready for the wire, is plain LF"),
        ({"ids": [b"1700000001.M1P1.host", b"1700000000.M0P1.host"]}, "listed as message 1, is 2"),
        (
            {"flags": bytes([10 | 32, 10]), "names": [b"b", b"1700000001.M1P1.host"]},
            "message 1: the statcache's name",
        ),
    ],
)
def test_verify_names_each_lie(
    own: Store, capsys: pytest.CaptureFixture[str], changes: dict[str, object], said: str
) -> None:
    """A cache that is well-formed and wrong is found out, and what is wrong is named."""
    own.deliver_many(2)
    own.poll()
    if "ids" in changes:
        changes = changes | {"names": changes["ids"]}
    forge(own, **changes)
    assert run(own, "verify") == 1
    assert said in capsys.readouterr().out


def test_verify_without_a_cache(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there is nothing wrong."""
    assert run(own, "verify") == 0
    assert "rebuild, absent" in capsys.readouterr().out


def test_rebuild(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The old one is not believed in anything; the settings stay."""
    own.deliver("1700000000.a", b"a\nb\n")
    own.deliver("1700000001.b")
    own.poll(max_messages=1)
    forge(own, octets=(99,))
    assert run(own, "rebuild") == 0
    assert "rebuilt    1 messages of 6 octets" in capsys.readouterr().out
    with own.session(max_messages=1) as opened:
        assert opened.outcome == "hit"
        assert listing(opened) == expected(own)[:1]


def test_rebuild_that_cant_write(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Said, and told by the exit status."""
    own.cache.mkdir()
    assert run(own, "rebuild") == 1
    assert ".statcache can't be removed" in capsys.readouterr().err


def test_faults_in_words(own: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What can't be looked at is said with the path."""
    (own.path / "cur").rmdir()
    assert run(own, "show") == 1
    assert f"{own.path}: cur/ can't be read: No such file" in capsys.readouterr().err


def test_a_path_that_is_not_there_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In plain words, by each command that takes one."""
    path = tmp_path / "nowhere"
    for words in (["cache", "show"], ["uidl", "show"], ["uidl", "unhide"]):
        assert cli.main([*words, str(path)]) == 1
        assert capsys.readouterr().err == f"gpop {words[0]}: {path}: No such file or directory\n"


def test_paths_through_links_are_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of a Maildir is its own name, and the answer says which that is."""
    (tmp_path / "link").symlink_to(store.path)
    parser = argparse.ArgumentParser()
    cache_command.add_arguments(parser)
    assert cache_command.run(parser.parse_args(["show", str(tmp_path / "link")])) == 1
    said = capsys.readouterr().err
    assert "symbolic link" in said
    assert str(store.path) in said


def test_every_reason_is_explained() -> None:
    """Each reason of an outcome has its words here and in docs/statcache.md."""
    package = Path(opening.__file__).parent
    code = "".join((package / name).read_text() for name in ("opening.py", "cachefile.py", "statcache.py"))
    raised = set(re.findall(r'BadCache\(\s*"(\w+)"', code)) | set(re.findall(r'"(truncated|too_long)"', code))
    raised |= {"unchanged", "racy", "new_changed", "cur_changed", "both_changed", "settings_changed"}
    raised |= {"import_changed", "unchanged_since_boot", *cachefile.OPEN_FAILURES.values()}
    assert raised == set(cache_command.REASONS)
    docs = (Path(__file__).parents[2] / "docs" / "statcache.md").read_text("utf-8")
    for reason in [*cache_command.REASONS, "disabled", "maildir_absent"]:
        assert f"`{reason}`" in docs, reason
