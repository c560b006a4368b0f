"""`gpop cache` started by root: it becomes the Maildir's owner, and follows nobody's links."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.maildrop.store import Store

PACKAGE = Path(__file__).parents[2]
UID, OTHER = 61001, 61002


def give(path: Path, uid: int) -> None:
    os.chown(path, uid, uid)
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            os.chown(os.path.join(folder, name), uid, uid, follow_symlinks=False)


@pytest.fixture
def homes() -> Iterator[Path]:
    """Homes of two users, in a folder that they can reach."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve()
        path.chmod(0o755)
        for uid in (UID, OTHER):
            store = Store(path / str(uid) / "Maildir")
            store.deliver_many(3)
            store.close()
            give(path / str(uid), uid)
            (path / str(uid)).chmod(0o700)
        yield path


def gpop_cache(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from gpop import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "cache", *map(str, arguments)]
    return subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)


def test_root_works_as_the_owner(homes: Path) -> None:
    """The cache that root has made belongs to the user, who can use it."""
    mail = homes / str(UID) / "Maildir"
    done = gpop_cache("rebuild", mail)
    assert done.returncode == 0, done.stderr
    assert (mail / ".statcache").stat().st_uid == UID
    for action in ("show", "verify"):
        done = gpop_cache(action, mail)
        assert done.returncode == 0, done.stderr
        assert "hit, unchanged" in done.stdout


def test_a_user_cant_send_root_elsewhere(homes: Path) -> None:
    """A Maildir that is a link to another user's, or lies behind one, is refused; nothing is written."""
    mine, theirs = homes / str(UID), homes / str(OTHER)
    (mine / "Maildir").rename(mine / "aside")
    (mine / "Maildir").symlink_to(theirs / "Maildir")
    (mine / "through").symlink_to(theirs)
    for path in (mine / "Maildir", mine / "through" / "Maildir"):
        for action in ("show", "verify", "rebuild"):
            done = gpop_cache(action, path)
            assert done.returncode == 1
            assert "symbolic link" in done.stderr
    assert not (theirs / "Maildir" / ".statcache").exists()


def test_a_link_of_roots_own_is_followed(homes: Path) -> None:
    """/home may be a link to another disk; one to which somebody else has a say is not followed."""
    mail = homes / str(UID) / "Maildir"
    with tempfile.TemporaryDirectory(dir="/") as folder:  # not below /tmp, where everybody has a say
        roots = Path(folder)
        roots.chmod(0o755)
        (roots / "disk").symlink_to(homes)
        (roots / "home").symlink_to(f"../{roots.name}/./disk")
        through = roots / "home" / str(UID) / "Maildir"
        done = gpop_cache("rebuild", through)
        assert done.returncode == 0, done.stderr
        assert (mail / ".statcache").exists()
        os.lchown(roots / "disk", UID, UID)
        assert "symbolic link" in gpop_cache("show", through).stderr
        os.lchown(roots / "disk", 0, 0)
        roots.chmod(0o775)
        assert "symbolic link" in gpop_cache("show", through).stderr


def test_a_cache_that_leads_elsewhere(homes: Path) -> None:
    """A .statcache that is a link to what only root may read shows nothing of it."""
    mail = homes / str(UID) / "Maildir"
    (mail / ".statcache").symlink_to("/etc/shadow")
    before = os.stat("/etc/shadow")
    done = gpop_cache("show", mail)
    assert "rebuild, not_a_file" in done.stdout
    assert gpop_cache("rebuild", mail).returncode == 0
    assert os.stat("/etc/shadow") == before
    assert not (mail / ".statcache").is_symlink()


def test_roots_own_maildir_is_refused(homes: Path) -> None:
    """gpop serves no mail of root's, and does not work on it as root."""
    store = Store(homes / "Maildir")
    store.close()
    done = gpop_cache("show", homes / "Maildir")
    assert done.returncode == 1
    assert "belongs to root" in done.stderr


def test_somebody_elses_maildir_is_refused(homes: Path) -> None:
    """Without root only one's own."""
    (homes / str(UID)).chmod(0o755)
    program = (
        "import argparse, os, sys\n"
        "from gpop.commands import cache as cache_command\n"
        "parser = argparse.ArgumentParser()\n"
        "cache_command.add_arguments(parser)\n"
        "os.setgid(61002); os.setuid(61002)\n"
        "sys.exit(cache_command.run(parser.parse_args(sys.argv[1:])))"
    )
    command = [sys.executable, "-c", program, "show", str(homes / str(UID) / "Maildir")]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run this as its owner or as root" in done.stderr
