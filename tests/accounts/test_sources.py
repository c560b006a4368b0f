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


# Names and passwords that have a prepared form (RFC 4013)

SENT_NAME, PREPARED_NAME = "jo\u0308rg".encode(), "jörg".encode()
SENT_PASSWORD, PREPARED_PASSWORD = "½".encode(), "1\u20442".encode()


def ask_prepared(sources: list[PasswdFileSource], password: bytes | None = SENT_PASSWORD) -> Verdict:
    return decide(sources, Request(SENT_NAME, password, PEER, (PREPARED_NAME, PREPARED_PASSWORD)))


@pytest.mark.parametrize("name", [SENT_NAME, PREPARED_NAME])
@pytest.mark.parametrize("password", [SENT_PASSWORD, PREPARED_PASSWORD])
def test_either_form_of_name_and_password_may_be_stored(tmp_path: Path, name: bytes, password: bytes) -> None:
    """The account has the name that the source knows."""
    made = source(tmp_path / "1", f"{name.decode()}:{{PLAIN}}{password.decode()}:1000:100::/home/joe\n")
    verdict = ask_prepared([made])
    assert isinstance(verdict, Accepted) and verdict.account.name == name
    # The account phase, for the auth cache, finds it as well.
    verdict = ask_prepared([made], password=None)
    assert isinstance(verdict, Accepted) and verdict.account.name == name


def test_what_was_sent_comes_first(tmp_path: Path) -> None:
    """Two accounts whose names have one prepared form stay two: each is reached by its own octets."""
    lines = [
        f"{name.decode()}:{{PLAIN}}½:{uid}:100::/h\n" for name, uid in ((PREPARED_NAME, 1), (SENT_NAME, 2))
    ]
    made = source(tmp_path / "1", "".join(lines).replace(":1:", ":1001:").replace(":2:", ":1002:"))
    verdict = ask_prepared([made])
    assert isinstance(verdict, Accepted) and verdict.account.uid == 1002


def test_no_form_that_matches_is_one_refusal(tmp_path: Path) -> None:
    """A name known in either form is a wrong password, for the log; else nobody knows it."""
    known = source(tmp_path / "1", f"{PREPARED_NAME.decode()}:{{PLAIN}}other:1000:100::/home/joe\n")
    assert reason(ask_prepared([known])) == (AUTH, "wrong_password")
    nobody = source(tmp_path / "2", "ann:{PLAIN}pw:1000:100::/home/ann\n")
    assert reason(ask_prepared([nobody])) == (AUTH, "unknown_user")


def test_another_form_is_no_way_round_a_refusal(tmp_path: Path) -> None:
    """Who may not come in as what he sent does not come in as somebody else, nor past an outage."""
    first = f"{SENT_NAME.decode()}:{{PLAIN}}½:1000:100::/h::nologin\n"
    second = f"{PREPARED_NAME.decode()}:{{PLAIN}}½:1001:100::/h\n"
    assert reason(ask_prepared([source(tmp_path / "1", first + second)])) == (AUTH, "account_nologin")
    broken = PasswdFileSource(str(tmp_path / "absent"), LIMITS)
    broken.warm()
    assert reason(ask_prepared([broken])) == (SYS_TEMP, "source_unavailable")


def test_forms_are_those_that_differ() -> None:
    """What is ASCII is asked about once, and an unknown name costs as many checks as a known one."""
    assert len(Request(b"joe", b"pw", PEER).forms()) == 1
    assert len(Request(b"joe", b"pw", PEER, (b"", b"x")).forms()) == 2
    request = Request(SENT_NAME, SENT_PASSWORD, PEER, (PREPARED_NAME, PREPARED_PASSWORD))
    assert [(form.name, form.password) for form in request.forms()] == [
        (SENT_NAME, SENT_PASSWORD),
        (SENT_NAME, PREPARED_PASSWORD),
        (PREPARED_NAME, SENT_PASSWORD),
        (PREPARED_NAME, PREPARED_PASSWORD),
    ]
