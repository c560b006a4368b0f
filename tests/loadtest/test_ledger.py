"""What the load test expects of maildrops, the statcache and the log: wrong there, its verdict is, too."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.agreement import agreement
from loadtest.ledger import HIT, REBUILD, REFRESH, UNSURE, Maildrop, Wrong
from loadtest.mail import MailMaker
from loadtest.run import merged
from loadtest.site import Account, Clock, deliver

MAKER = MailMaker()


@pytest.fixture
def maildrop(maildir: Path) -> Iterator[Maildrop]:
    """A maildrop with three messages that an earlier run has left, one of them in cur/."""
    account = Account("anna", "secret", os.geteuid(), os.getegid(), maildir.parent)
    (maildir / ".statcache").touch()
    for folder in ("new", "new", "cur"):
        deliver(account, MAKER.mail("anna"), folder)
    clock = Clock(maildir.parent / "clock")
    maildrop = Maildrop(account, clock)
    maildrop.adopt()
    yield maildrop
    clock.close()


def file_of(maildrop: Maildrop, number: int) -> Path:
    folder, name = maildrop.on_disk()[maildrop.logged_in()[number].base]
    return maildrop.account.maildir / folder / name


def test_what_is_there_is_taken_over(maildrop: Maildrop) -> None:
    """But for the statcache, so that the first session is a rebuild. Messages come in order of delivery."""
    assert not (maildrop.account.maildir / ".statcache").exists()
    messages = maildrop.logged_in()
    assert [message.folder for message in messages] == ["new", "new", "cur"]
    assert maildrop.delivered == 3
    maildrop.check_disk()


def test_outcomes_are_known_beforehand(maildrop: Maildrop) -> None:
    """Rebuild, then hits; a refresh after a delivery, a removal, or a move to cur/."""
    assert maildrop.next_outcome() == REBUILD
    maildrop.receive(MAKER.mail("anna"))
    assert maildrop.next_outcome() == REBUILD
    messages = maildrop.logged_in()
    assert len(messages) == 4
    maildrop.updated([], [])
    assert maildrop.next_outcome() == HIT
    maildrop.updated([], [messages[2]])  # it is in cur/ already
    assert maildrop.next_outcome() == HIT
    maildrop.updated([], [messages[0]])
    assert maildrop.next_outcome() == REFRESH
    maildrop.logged_in()
    assert maildrop.next_outcome() == HIT
    maildrop.receive(MAKER.mail("anna"))
    assert maildrop.next_outcome() == REFRESH
    maildrop.logged_in()
    maildrop.updated([messages[1]], [messages[1]])
    assert maildrop.next_outcome() == REFRESH
    assert len(maildrop.logged_in()) == 4


def test_a_login_that_failed_makes_the_next_one_uncertain(maildrop: Maildrop) -> None:
    """And that one only."""
    maildrop.logged_in()
    maildrop.login_failed()
    maildrop.receive(MAKER.mail("anna"))
    assert maildrop.next_outcome() == UNSURE
    maildrop.logged_in()
    assert maildrop.next_outcome() == HIT


@pytest.mark.parametrize("was_carried_out", [True, False])
def test_after_a_quit_that_failed_the_disk_is_believed(maildrop: Maildrop, was_carried_out: bool) -> None:
    """Of its own messages; any other has to be there."""
    first, second, third = maildrop.logged_in()
    if was_carried_out:
        file_of(maildrop, 0).unlink()
    maildrop.update_failed([first], [first, second])
    assert maildrop.next_outcome() == UNSURE
    assert len(maildrop.logged_in()) == 3 - was_carried_out
    assert maildrop.removed_in_doubt == was_carried_out
    maildrop.check_disk()
    file_of(maildrop, -1).unlink()
    with pytest.raises(Wrong, match=f"{third.base} is gone"):
        maildrop.check_disk()


def test_a_message_that_was_only_retrieved_must_not_vanish(maildrop: Maildrop) -> None:
    """A QUIT that failed is no excuse for it: it may lie in cur/ now, and that is all."""
    first, second, _ = maildrop.logged_in()
    file_of(maildrop, 0).rename(maildrop.account.maildir / "cur" / f"{first.base}:2,S")
    file_of(maildrop, 1).unlink()
    maildrop.update_failed([], [first, second])
    with pytest.raises(Wrong, match=f"{second.base} is gone"):
        maildrop.check_disk()
    assert first.folder == "cur"


def test_an_update_that_was_believed_and_not_done_is_taken_back(maildrop: Maildrop) -> None:
    """Outlook does not wait for the answer to QUIT; its session may have been killed before it was read."""
    first, second, _ = maildrop.logged_in()
    maildrop.updated([first], [second])
    maildrop.update_failed([first], [second])
    maildrop.check_disk()
    assert len(maildrop.logged_in()) == 3 and maildrop.removed_in_doubt == 0


def test_whatever_is_wrong_on_the_disk_is_found(maildrop: Maildrop) -> None:
    """A message that is gone, too many, in the wrong folder, or has one octet changed."""
    file = file_of(maildrop, 0)
    octets = file.read_bytes()
    file.write_bytes(octets.replace(b"a", b"b", 1))
    with pytest.raises(Wrong, match="other octets"):
        maildrop.check_disk()
    file.write_bytes(octets)
    maildrop.check_disk()
    seen = file.rename(maildrop.account.maildir / "cur" / f"{file.name}:2,S")
    with pytest.raises(Wrong, match="is in cur/ and not in new/"):
        maildrop.check_disk()
    seen.unlink()
    with pytest.raises(Wrong, match="is gone"):
        maildrop.check_disk()
    file.write_bytes(octets)
    deliver(maildrop.account, MAKER.mail("anna"))
    with pytest.raises(Wrong, match="should not be"):
        maildrop.check_disk()


def test_no_login_begins_in_the_tick_of_a_change(maildrop: Maildrop) -> None:
    """After the wait the file system's clock is beyond the last change."""
    maildrop.receive(MAKER.mail("anna"))
    maildrop.wait_for_clock()
    assert maildrop._clock.now_ns() > os.stat(maildrop.account.maildir / "new").st_mtime_ns


def counted(**more: Any) -> dict[str, Any]:
    part: dict[str, Any] = {
        "cache": Counter(hit=2, rebuild=1),
        "sessions": Counter(Poller=3),
        "close_reason": Counter(quit=3),
        "refused": 1,
        "removed": 4,
        "cut_off": [(3.0, 1)],
        "users": 2,
        "from": 1.0,
        "until": 5.0,
    }
    return part | {what: Counter() for what in ("delivered", "received", "received_again", "left")} | more


def test_parts_are_added_up() -> None:
    """From the first's beginning to the last's end."""
    expected = merged([counted(), counted(cache=Counter(hit=1, unsure=2), until=9.5)])
    assert expected["cache"] == {"hit": 3, "refresh": 0, "rebuild": 1, "off": 0}
    assert expected["unsure"] == 2
    assert (expected["from"], expected["until"]) == ("1970-01-01T00:00:01.000Z", "1970-01-01T00:00:09.500Z")
    assert (expected["users"], expected["refused"], expected["removed"]) == (4, 2, 8)
    assert expected["cut_off"] == [(3.0, 1)] * 2


def log_of(path: Path, outcomes: list[str | None]) -> Path:
    closed = {"event": "session_closed", "ts": "1970-01-01T00:00:02.000Z", "close_reason": "quit"}
    lines = [closed | {"cache": outcome, "removed": 0} for outcome in outcomes]
    lines += [{"event": "login_refused", "ts": "1970-01-01T00:00:03.000Z"}]
    lines += [closed | {"cache": "off", "removed": 7, "ts": "1970-01-01T00:00:06.000Z"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half')
    return path


@pytest.mark.parametrize(
    ("outcomes", "unsure", "agrees"),
    [
        (["hit", "hit", "rebuild"], 0, True),
        (["hit", "hit", "hit"], 0, False),
        (["hit", "rebuild"], 0, False),
        (["hit", "hit", "rebuild", None], 0, False),
        (["hit", "hit", "rebuild", "refresh"], 0, False),
        (["hit", "hit", "rebuild", "refresh"], 1, True),
        (["hit", "rebuild", "refresh"], 1, False),
    ],
)
def test_the_log_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[str | None], unsure: int, agrees: bool
) -> None:
    """Between the run's beginning and its end, and to the last session; what nobody knows may be there."""
    monkeypatch.setattr("loadtest.agreement.WAIT_S", 0)
    expected = merged([counted(removed=0)]) | {"unsure": unsure}
    found, table = agreement(expected, log_of(tmp_path / "log", outcomes))
    assert found == agrees, table
    assert ("differs" in table) != agrees


@pytest.mark.parametrize(
    ("outcomes", "killed", "agrees"),
    [
        (["hit", "hit"], 1, True),
        (["hit", "hit", "rebuild", "hit"], 1, True),
        (["hit"], 1, False),
        (["hit", "hit"], 0, False),
    ],
)
def test_the_log_may_lack_what_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[str | None], killed: int, agrees: bool
) -> None:
    """As many sessions as there were deaths in the log, and no more."""
    monkeypatch.setattr("loadtest.agreement.WAIT_S", 0)
    log = log_of(tmp_path / "log", outcomes)
    died = json.dumps({"event": "session_died", "ts": "1970-01-01T00:00:02.000Z"}) + "\n"
    log.write_text(killed * died + log.read_text())
    found, table = agreement(merged([counted(removed=0)]), log, is_killed=True)
    assert found == agrees, table
