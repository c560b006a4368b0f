"""The auth cache: what it may answer, and everything that makes it forget."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpop.accounts.account import Accepted, Account
from gpop.accounts.cache import AuthCache, CacheWatch
from tests.accounts.auth_process import let_clock_step

PEER = "192.0.2.1"


def login(name: bytes = b"joe") -> Accepted:
    return Accepted(Account(name, 1000, 100, (100,), b"/home/joe", b"/home/joe/Maildir"), "pam")


def cache(max_entries: int = 10, sources: str = "pam:gpop") -> AuthCache:
    return AuthCache(sources, 600.0, max_entries)


def test_only_exactly_the_same_login_is_a_hit() -> None:
    """Name, password and peer: one octet of difference is another login."""
    kept = cache()
    kept.store(b"joe", b"secret", PEER, login(), now=0.0)
    assert kept.look_up(b"joe", b"secret", PEER, now=1.0) == login()
    for name, password, peer in (
        (b"joe", b"secre", PEER),
        (b"joe", b"Secret", PEER),
        (b"joe", b"", PEER),
        (b"joes", b"ecret", PEER),
        (b"Joe", b"secret", PEER),
        (b"joe", b"secret", "192.0.2.2"),
        (b"joe", b"secret", "192.0.2.1 "),
    ):
        assert kept.look_up(name, password, peer, now=1.0) is None


def test_a_mismatch_evicts_nothing() -> None:
    """Otherwise a stranger could make every login expensive."""
    kept = cache()
    kept.store(b"joe", b"secret", PEER, login(), now=0.0)
    for guess in range(100):
        assert kept.look_up(b"joe", b"%d" % guess, PEER, now=1.0) is None
    assert kept.look_up(b"joe", b"secret", PEER, now=1.0)


def test_a_new_password_takes_the_place_of_the_old_one() -> None:
    """Once a source accepted it; the old one must be asked about again."""
    kept = cache()
    kept.store(b"joe", b"old", PEER, login(), now=0.0)
    kept.store(b"joe", b"new", PEER, login(), now=1.0)
    assert kept.look_up(b"joe", b"new", PEER, now=2.0)
    assert kept.look_up(b"joe", b"old", PEER, now=2.0) is None
    assert len(kept) == 1


def test_an_entry_ends_and_a_hit_does_not_prolong_it() -> None:
    """Its life is counted from the moment a source said yes."""
    kept = cache()
    kept.store(b"joe", b"secret", PEER, login(), now=0.0)
    for now in (100.0, 300.0, 599.9):
        assert kept.look_up(b"joe", b"secret", PEER, now)
    assert kept.look_up(b"joe", b"secret", PEER, now=600.0) is None
    assert len(kept) == 0


def test_the_oldest_goes_when_there_are_too_many() -> None:
    """The cache is bounded."""
    kept = cache(max_entries=3)
    for number in range(4):
        kept.store(b"user%d" % number, b"pw", PEER, login(), now=float(number))
    assert len(kept) == 3
    assert kept.look_up(b"user0", b"pw", PEER, now=5.0) is None
    assert kept.look_up(b"user1", b"pw", PEER, now=5.0)


def test_forget_and_clear() -> None:
    """One whose account phase was refused; all, when a file changed."""
    kept = cache()
    kept.store(b"joe", b"pw", PEER, login(), now=0.0)
    kept.store(b"ann", b"pw", PEER, login(b"ann"), now=0.0)
    kept.forget(b"joe", PEER)
    kept.forget(b"nobody", PEER)
    assert kept.look_up(b"joe", b"pw", PEER, now=1.0) is None
    assert kept.clear() == 1
    assert kept.look_up(b"ann", b"pw", PEER, now=1.0) is None


def test_the_same_login_in_another_process_or_with_other_sources_has_another_hash() -> None:
    """The key is random and never leaves the process."""
    assert len({cache()._hash(b"joe", b"pw", PEER) for _ in range(3)}) == 3
    one = cache()
    was = one._hash(b"joe", b"pw", PEER)
    one._sources = b"pam:other"
    assert one._hash(b"joe", b"pw", PEER) != was


def test_no_password_is_kept() -> None:
    """Nor in what a debugger would print."""
    kept = cache()
    kept.store(b"joe", b"hunter2", PEER, login(), now=0.0)
    assert "hunter2" not in repr(kept._entries)


# What makes it forget: CacheWatch sees the change, whoever made it and however.


@pytest.mark.parametrize("change", ["append", "rewrite", "replace", "remove", "chmod", "touch back"])
def test_every_change_of_a_file_is_seen(tmp_path: Path, change: str) -> None:
    """Also one that leaves size and mtime as they were."""
    path = tmp_path / "shadow"
    path.write_text("joe:1\n")
    watch = CacheWatch(lambda: [str(path), str(tmp_path / "absent")])
    assert watch.changed_now() == ""
    status = path.stat()
    let_clock_step(path)
    if change == "append":
        path.write_text("joe:1\nann:2\n")
    elif change == "rewrite":
        path.write_text("joe:2\n")
    elif change == "replace":
        (tmp_path / "new").write_text("joe:1\n")
        os.rename(tmp_path / "new", path)
    elif change == "remove":
        path.unlink()
    elif change == "chmod":
        path.chmod(0o600)
    else:
        path.write_text("joe:2\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watch.changed_now() == str(path)
    assert watch.generation == 1
    assert watch.changed_now() == ""


def test_a_file_that_appears_is_a_change(tmp_path: Path) -> None:
    """/etc/nologin for one."""
    path = tmp_path / "nologin"
    watch = CacheWatch(lambda: [str(path)])
    path.write_text("")
    assert watch.changed_now() == str(path)


def test_a_changed_service_file_may_name_other_files(tmp_path: Path) -> None:
    """What is watched is found out anew after each change."""
    service, included = tmp_path / "service", tmp_path / "included"
    service.write_text("")
    included.write_text("")
    watch = CacheWatch(lambda: [str(service), *service.read_text().split()])
    service.write_text(str(included))
    assert watch.changed_now() == str(service)
    included.write_text("changed")
    assert watch.changed_now() == str(included)


def test_it_looks_once_a_second_at_most(tmp_path: Path) -> None:
    """A hit costs no `stat` of its own."""
    path = tmp_path / "shadow"
    path.write_text("1")
    watch = CacheWatch(lambda: [str(path)])
    assert watch.changed(now=10.0) == ""
    path.write_text("22")
    assert watch.changed(now=10.9) == ""
    assert watch.changed(now=11.0) == str(path)


def test_what_has_just_changed_is_not_settled(tmp_path: Path) -> None:
    """It may change again without another stamp, so nothing is stored for two seconds."""
    path = tmp_path / "shadow"
    path.write_text("1")
    watch = CacheWatch(lambda: [str(path)])
    changed = path.stat().st_ctime
    assert not watch.settled(changed + 1.0)
    assert watch.settled(changed + 3.0)
    os.utime(path, (changed + 10**6, changed + 10**6))  # an mtime in the future is anybody's to set
    watch.changed_now()
    assert watch.settled(path.stat().st_ctime + 3.0)
