"""A real auth process with virtual user maps: who is served, what is refused, what the log says."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpop.accounts.maps import lmdbfile
from gpop.privsep import messages
from tests.accounts.auth_process import AuthProcess, FakeFront, let_clock_step, running, until

UID = os.geteuid() or 2000
GID = os.getegid() or 2000
TRUSTED = "127.0.0.1"


@contextmanager
def serving(folder: Path, table: str, **settings: Any) -> Iterator[tuple[AuthProcess, FakeFront]]:
    """Auth with accounts joe and ann@own.example, and `table` as sendmail's map."""
    users = folder / "users"
    users.write_text(
        "".join(
            f"{name}:{{PLAIN}}secret:{UID}:{GID}::/home/{name}::\n" for name in ("joe", "ann@own.example")
        )
    )
    users.chmod(0o600)
    replace(folder / "table", table)
    maps = {"virtual_sendmail_maps": [f"text:{folder}/table"]}
    with running([{"type": "passwd-file", "path": str(users)}], folder, **(maps | settings)) as process:
        yield process, process.front()


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.rename(new, path)


def account(process: AuthProcess, front: FakeFront, name: bytes, **options: Any) -> tuple[str, bytes]:
    """The name that the front logs, and the account that the broker serves."""
    accepted = front.login(name, b"secret", **options).answer()
    assert accepted.kind == messages.ACCEPTED, accepted.fields
    assert accepted.fields["user"] == name.decode()
    served = process.served()
    assert accepted.fields["account"].encode() == served.fields["account"]
    return accepted.fields["user"], served.fields["account"]


def refusal(
    front: FakeFront, name: bytes, password: bytes = b"secret", peer: str = TRUSTED
) -> tuple[str, str, str]:
    fields = front.login(name, password, peer).answer().fields
    return fields["code"], fields["reason"], fields["source"]


def test_a_name_is_served_as_its_account(tmp_path: Path) -> None:
    """The log has the name as it was typed, and the account; a name that no map has is itself."""
    table = "sales@x.example joe\n@old.example %1@own.example\n"
    with serving(tmp_path, table) as (process, front):
        assert account(process, front, b"Sales@X.example") == ("Sales@X.example", b"joe")
        assert account(process, front, b"ann@old.example") == ("ann@old.example", b"ann@own.example")
        assert account(process, front, b"joe") == ("joe", b"joe")
        assert refusal(front, b"bob@x.example") == ("AUTH", "unknown_user", "")
        assert refusal(front, b"sales@x.example", b"wrong") == ("AUTH", "wrong_password", "passwd-file")


def test_name_rules(tmp_path: Path) -> None:
    """Separator, case, the domain of the local address, and local domains after the maps."""
    rules: dict[str, Any] = {
        "virtual_case": "fold",
        "virtual_domain_separators": "%",
        "virtual_default_domains": {"127.0.0.1": "own.example", "*": "local.example"},
        "virtual_local_domains": ["local.example"],
    }
    with serving(tmp_path, "boss@own.example ann@own.example\n", **rules) as (process, front):
        ask = partial(account, process, front)
        assert ask(b"Ann%Own.Example")[1] == b"ann@own.example"
        assert ask(b"ANN", local="127.0.0.1")[1] == b"ann@own.example"
        assert ask(b"boss", local="127.0.0.1")[1] == b"ann@own.example"
        assert ask(b"joe", local="127.0.0.2")[1] == b"joe"
        assert ask(b"JOE@Local.example")[1] == b"joe"
        assert refusal(front, b"joe") == ("AUTH", "unknown_user", "")


def test_a_refusal_by_a_map_looks_like_a_wrong_password(tmp_path: Path) -> None:
    """The same code at the same time, with a penalty; the log of auth says what the map says."""
    table = "gone@x.example error:nouser 550 Left in May\nteam@x.example joe, ann\n"
    with serving(tmp_path, table) as (process, front):
        assert refusal(front, b"gone@x.example") == ("AUTH", "virtual_user_rejected", "maps")
        assert refusal(front, b"team@x.example") == ("AUTH", "virtual_user_is_a_list", "maps")
        events = process.events("virtual_user_refused")
        assert [event["detail"] for event in events] == [
            "550 Left in May",
            "team@x.example is 2 addresses: joe, ann",
        ]
        assert events[0]["user"] == "gone@x.example" and events[0]["peer"] == TRUSTED
        assert refusal(front, b"gone@x.example", peer="127.9.9.9")[0] == "AUTH"
        until(lambda: process.events("penalty_raised"), "a penalty")


def test_a_map_that_can_not_be_asked_is_an_outage(tmp_path: Path) -> None:
    """Missing, damaged, without end: [SYS/TEMP] and no penalty, also for names that need no map."""
    loop = "a@x.example b@x.example\nb@x.example a@x.example\n"
    (tmp_path / "virtual.lmdb").write_bytes(b"no LMDB file" * 1000)
    with serving(tmp_path, loop, virtual_postfix_maps=[f"lmdb:{tmp_path}/virtual"]) as (process, front):
        assert refusal(front, b"joe", peer="127.9.9.1") == ("SYS/TEMP", "map_unavailable", "maps")
        assert refusal(front, b"a@x.example", peer="127.9.9.1") == ("SYS/TEMP", "map_loop", "maps")
        lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"boss@x.example": b"joe"})
        assert account(process, front, b"boss@x.example", peer="127.9.9.1")[1] == b"joe"
        os.unlink(tmp_path / "table")
        assert refusal(front, b"joe", peer="127.9.9.1") == ("SYS/TEMP", "map_unavailable", "maps")
        faults = [(event["reason"], event["detail"]) for event in process.events("auth_fault")]
        assert [reason for reason, _ in faults] == [
            "map_unavailable",
            "map_loop",
            "map_unreadable",
            "map_unavailable",
        ]
        assert "a@x.example -> b@x.example -> a@x.example" in faults[1][1]
        assert not process.events("penalty_raised")


def test_a_changed_text_is_read_again(tmp_path: Path) -> None:
    """At the next login; its bad lines are named with their numbers."""
    with serving(tmp_path, "boss@x.example joe\n") as (process, front):
        assert account(process, front, b"boss@x.example")[1] == b"joe"
        let_clock_step(tmp_path / "table")
        replace(tmp_path / "table", "\nboss@x.example ann@own.example\nodd\n")
        assert account(process, front, b"boss@x.example")[1] == b"ann@own.example"
        assert [event["entries"] for event in process.events("virtual_map_read")] == [1, 1]
        assert [event["line"] for event in process.events("virtual_map_problem")] == [3]


def test_a_stale_map_is_told_once(tmp_path: Path) -> None:
    """Older than its source, as Postfix warns of it; it is used all the same."""
    lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"boss@x.example": b"joe"})
    (tmp_path / "virtual").write_text("boss@x.example ann\n")
    os.utime(tmp_path / "virtual.lmdb", (1e9, 1e9))
    os.utime(tmp_path / "virtual", (1e9 + 50, 1e9 + 50))
    with serving(tmp_path, "", virtual_postfix_maps=[f"lmdb:{tmp_path}/virtual"]) as (process, front):
        for _ in range(2):
            assert account(process, front, b"boss@x.example")[1] == b"joe"
        [stale] = process.events("virtual_map_stale")
        assert stale["source"] == f"{tmp_path}/virtual"


def test_one_map_may_be_read_in_both_ways(tmp_path: Path) -> None:
    """LMDB opens no file twice at a time."""
    lmdbfile.write(str(tmp_path / "both.lmdb"), {b"boss@x.example": b"joe"})
    both = [f"lmdb:{tmp_path}/both"]
    maps = {"virtual_sendmail_maps": both, "virtual_postfix_maps": both}
    with serving(tmp_path, "", **maps) as (process, front):
        assert account(process, front, b"boss@x.example")[1] == b"joe"


def test_a_checker_that_is_ended_costs_one_login(tmp_path: Path) -> None:
    """As by LMDB in a damaged map: [SYS/TEMP], and the signal in the log. Here it waits for a lock."""
    shutil.copy(Path(__file__).parent / "maps" / "corpus" / "hash-little.db", tmp_path / "virtual.db")
    with (
        open(tmp_path / "virtual.db", "rb") as writer,
        serving(tmp_path, "", virtual_postfix_maps=[f"hash:{tmp_path}/virtual"]) as (process, front),
    ):
        fcntl.flock(writer, fcntl.LOCK_EX)
        login = front.login(b"joe", b"secret", TRUSTED)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: children.read_text().split(), "a checker")
        os.kill(int(children.read_text().split()[0]), signal.SIGSEGV)
        assert login.answer().fields["reason"] == "checker_died"
        until(lambda: len(process.events("auth_fault")) == 2, "both lines")
        assert "ended by SIGSEGV" in {event["detail"] for event in process.events("auth_fault")}
        fcntl.flock(writer, fcntl.LOCK_UN)
        assert account(process, front, b"joe")[1] == b"joe"


def test_the_auth_cache_goes_by_what_a_name_means(tmp_path: Path) -> None:
    """One name at two local addresses is two logins; a map that changes empties the cache."""
    lmdbfile.write(
        str(tmp_path / "virtual.lmdb"), {b"me@one.example": b"joe", b"me@two.example": b"ann@own.example"}
    )
    for path in (tmp_path / "virtual.lmdb",):
        os.utime(path, (1e9, 1e9))
    settings: dict[str, Any] = {
        "cache_enabled": True,
        "virtual_default_domains": {"127.0.0.1": "one.example", "127.0.0.2": "two.example"},
        "virtual_sendmail_maps": [],
        "virtual_postfix_maps": [f"lmdb:{tmp_path}/virtual"],
    }
    with serving(tmp_path, "", **settings) as (process, front):

        def source(local: str) -> tuple[str, str]:
            accepted = front.login(b"me", b"secret", TRUSTED, local=local).answer()
            assert accepted.kind == messages.ACCEPTED
            process.served()
            return accepted.fields["source"], accepted.fields["account"]

        # What changed a moment ago is not kept.
        until(lambda: source("127.0.0.1") == ("cache", "joe"), "a hit")
        assert source("127.0.0.2") == ("passwd-file", "ann@own.example")
        assert source("127.0.0.2") == ("cache", "ann@own.example")
        assert source("127.0.0.1") == ("cache", "joe")
        lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"me@one.example": b"ann@own.example"})
        until(lambda: source("127.0.0.1")[1] == "ann@own.example", "the new account")
        dropped = process.events("auth_cache_dropped")
        assert [event["path"] for event in dropped] == [f"{tmp_path}/virtual.lmdb"]


def test_one_guess_is_not_many_by_local_addresses(tmp_path: Path) -> None:
    """The same name and password at another address may be another account's: it raises the penalty."""
    domains = {"virtual_default_domains": {"127.0.0.1": "one.example", "127.0.0.2": "two.example"}}
    with serving(tmp_path, "", **domains) as (process, front):
        peer = "127.9.9.9"
        first = [front.login(b"joe", b"guess", peer, local="127.0.0.1") for _ in range(2)]
        assert all(login.answer().fields["code"] == "AUTH" for login in first)
        until(lambda: len(process.events("penalty_raised")) == 1, "one penalty for one guess")
        front.login(b"joe", b"guess", peer, local="127.0.0.2").answer()
        until(lambda: len(process.events("penalty_raised")) == 2, "another for another account")


@pytest.mark.parametrize("prepared", [(b"jo\xc3\xa9@x.example", b""), (b"\xc3\x9f@x.example", b"")])
def test_a_prepared_name_goes_the_same_way(tmp_path: Path, prepared: tuple[bytes, bytes]) -> None:
    """Rules and maps are applied to it as to the name that was sent."""
    table = f"{prepared[0].decode()} joe\n"
    with serving(tmp_path, table) as (process, front):
        login = front.login(b"joe\xcc\x81@x.example", b"secret", TRUSTED, prepared=prepared)
        assert login.answer().fields["account"] == "joe"
        process.served()
