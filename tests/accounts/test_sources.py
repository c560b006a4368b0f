"""The rules between sources: unknown, known, out of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpop.accounts.account import (
    AUTH,
    SYS_PERM,
    SYS_TEMP,
    Accepted,
    Limits,
    Refused,
    SourceUnavailable,
    Verdict,
)
from gpop.accounts.sources import PasswdFileSource, Request, build, decide

LIMITS = Limits(1000, 100, "Maildir")
PEER = "192.0.2.1"


def source(path: Path, text: str) -> PasswdFileSource:
    path.write_text(text)
    path.chmod(0o600)
    made = PasswdFileSource(str(path), LIMITS)
    made.warm()
    return made


def ask(sources: list[PasswdFileSource], name: bytes, password: bytes = b"pw") -> Verdict:
    return decide(sources, Request(name, password, PEER))


def reason(verdict: Verdict) -> tuple[str, str]:
    assert isinstance(verdict, Refused)
    return verdict.code, verdict.reason


def test_the_first_source_that_knows_a_name_decides(tmp_path: Path) -> None:
    """Also if it says no and a later one would say yes."""
    first = source(tmp_path / "1", "joe:{PLAIN}first:1000:100::/home/joe\n")
    second = source(
        tmp_path / "2", "joe:{PLAIN}second:1001:100::/home/two\nann:{PLAIN}pw:1002:100::/home/ann\n"
    )
    accepted = ask([first, second], b"joe", b"first")
    assert isinstance(accepted, Accepted) and accepted.account.uid == 1000 and accepted.origin == 0
    assert reason(ask([first, second], b"joe", b"second")) == (AUTH, "wrong_password")
    accepted = ask([first, second], b"ann")
    assert isinstance(accepted, Accepted) and accepted.account.uid == 1002 and accepted.origin == 1
    assert reason(ask([first, second], b"bob")) == (AUTH, "unknown_user")


def test_nobody_falls_through_an_outage(tmp_path: Path) -> None:
    """Behind it may be another user of that name; but what came before it has decided."""
    first = source(tmp_path / "1", "joe:{PLAIN}pw:1000:100::/home/joe\n")
    broken = PasswdFileSource(str(tmp_path / "absent"), LIMITS)
    broken.warm()
    last = source(tmp_path / "3", "ann:{PLAIN}pw:1002:100::/home/ann\n")
    assert reason(ask([first, broken, last], b"ann")) == (SYS_TEMP, "source_unavailable")
    assert isinstance(ask([first, broken, last], b"joe"), Accepted)


@pytest.mark.parametrize(
    "line, code, word",
    [
        ("joe:{PLAIN}pw:0:100::/home/joe", AUTH, "uid_0"),
        ("joe:{PLAIN}pw:999:100::/home/joe", AUTH, "uid_too_low"),
        ("joe:{PLAIN}pw:1000:8::/home/joe", AUTH, "gid_too_low"),
        ("joe:!{PLAIN}pw:1000:100::/home/joe", AUTH, "password_locked"),
        ("joe::1000:100::/home/joe", AUTH, "password_locked"),
        ("joe:{PLAIN}other:1000:100::/home/joe", AUTH, "wrong_password"),
        ("joe:{PLAIN}pw:1000:100::/home/joe::nologin", AUTH, "account_nologin"),
        ("joe:{PLAIN}pw:1000:100::/home/joe::allow_nets=10.0.0.0/8", AUTH, "peer_not_allowed"),
        ("joe:{PLAIN}pw:1000:100::/home/joe::maildir=mbox:~/m", SYS_PERM, "maildir_not_understood"),
        ("joe:{NOSUCH}pw:1000:100::/home/joe", SYS_TEMP, "source_unavailable"),
        ("joe:$nosuch$x:1000:100::/home/joe", SYS_TEMP, "source_unavailable"),
    ],
)
def test_what_keeps_a_known_user_out(tmp_path: Path, line: str, code: str, word: str) -> None:
    """Each with a word of its own for the log; the client hears only the code."""
    assert reason(ask([source(tmp_path / "1", line + "\n")], b"joe")) == (code, word)


def test_a_fault_of_the_account_is_not_shown_to_who_does_not_know_the_password(tmp_path: Path) -> None:
    """[SYS/PERM] would tell that the user exists."""
    made = source(tmp_path / "1", "joe:{PLAIN}pw:1000:100::/home/joe::maildir=mbox:~/m\n")
    assert reason(ask([made], b"joe", b"wrong")) == (AUTH, "wrong_password")


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    """Whatever the file says."""
    made = source(tmp_path / "1", "joe:{PLAIN}:1000:100::/home/joe\nann:{PLAIN}pw:1000:100::/home/ann\n")
    assert reason(ask([made], b"joe", b"")) == (AUTH, "password_locked")
    assert reason(ask([made], b"ann", b"")) == (AUTH, "empty_password")


def test_the_account_phase_alone_asks_the_one_source(tmp_path: Path) -> None:
    """For the auth cache: without a password, and no other source may answer."""
    first = source(tmp_path / "1", "ann:{PLAIN}pw:1000:100::/home/ann\n")
    second = source(tmp_path / "2", "joe:{PLAIN}pw:1001:100::/home/joe::nologin\n")
    request = Request(b"joe", None, PEER)
    assert reason(decide([first, second], request, only=1)) == (AUTH, "account_nologin")
    assert reason(decide([first, second], request, only=0)) == (AUTH, "unknown_user")
    assert isinstance(decide([first, second], Request(b"ann", None, PEER), only=0), Accepted)


def test_an_account_of_a_file(tmp_path: Path) -> None:
    """Its group is all it has, its Maildir the file's or the setting's."""
    made = source(
        tmp_path / "1", "joe:{PLAIN}pw:1000:100::/home/joe\nann:{PLAIN}pw:1001:101::/home/ann::maildir=/m/a\n"
    )
    joe, ann = ask([made], b"joe"), ask([made], b"ann")
    assert isinstance(joe, Accepted) and isinstance(ann, Accepted)
    assert (joe.account.groups, joe.account.maildir) == ((100,), b"/home/joe/Maildir")
    assert (ann.account.gid, ann.account.maildir) == (101, b"/m/a")


def test_the_config_lists_the_sources() -> None:
    """In their order; a type that nobody knows is an error."""
    rows = [{"type": "passwd-file", "path": "/x"}, {"type": "pam", "service": "gpop"}]
    assert [made.kind for made in build(rows, LIMITS)] == ["passwd-file", "pam"]
    with pytest.raises(ValueError, match="ldap"):
        build([{"type": "ldap"}], LIMITS)


def test_a_request_shows_no_password() -> None:
    """It is in every frame of a checker's traceback."""
    assert "hunter2" not in repr(Request(b"joe", b"hunter2", PEER))


def test_source_unavailable_is_no_verdict() -> None:
    """It can't be taken for one by mistake."""
    assert not isinstance(SourceUnavailable("x"), (Accepted, Refused))
