"""Real PAM: real modules, real users, services written for the test and removed after it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpop.accounts import hashes, nss, pam
from gpop.accounts.account import AUTH, SYS_TEMP, Accepted, Limits, Refused
from gpop.accounts.sources import PamSource, Request, decide
from gpop.front.preparation import prepare

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can ask PAM about other users: run as root"
)

PEER = "192.0.2.7"
PASSWORD = b"se cret\xff"
UNIX = "auth required pam_unix.so\naccount required pam_unix.so\n"
DIRECTORY = Path("/etc/pam.d")

Service = Callable[[str], str]


@pytest.fixture
def service() -> Iterator[Service]:
    """Write a service file, return its name; all are removed in the end."""
    made: list[Path] = []

    def make(text: str) -> str:
        path = DIRECTORY / f"gpop-test-{os.getpid()}-{len(made)}"
        made.append(path)
        path.write_text(text)
        return path.name

    yield make
    for path in made:
        path.unlink(missing_ok=True)


class Users:
    """Throw-away users of the system."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, *options: str, password: bytes | None = PASSWORD) -> bytes:
        name = f"gpt{os.getpid()}x{len(self.names)}"
        hashed = "" if password is None else hashes.make(password).decode().removeprefix("{CRYPT}")
        subprocess.run(["useradd", "--no-create-home", "--password", hashed, *options, name], check=True)
        self.names.append(name)
        return name.encode()


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    made = Users()
    yield made
    for name in made.names:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def joe(users: Users) -> bytes:
    return users.add()


def test_a_right_password_and_a_wrong_one(service: Service, joe: bytes) -> None:
    """pam_unix and the system's own hash; octets of a password pass unchanged."""
    name = service(UNIX)
    assert pam.check(name, joe, PASSWORD, PEER) == pam.Answer("", "accepted")
    for wrong in (b"se cret", PASSWORD + b" ", PASSWORD.decode("latin-1").encode()):
        answer = pam.check(name, joe, wrong, PEER)
        assert (answer.code, answer.reason) == (AUTH, "wrong_password")


@pytest.mark.parametrize("stored", ["zwei\u00a0½", "zwei 1\u20442"])
def test_a_password_outside_ascii_as_it_was_set_or_prepared(
    service: Service, users: Users, stored: str
) -> None:
    """PAM knows octets: those that the client sends are tried as they are, then their prepared form."""
    user, sent = users.add(password=stored.encode()), "zwei\u00a0½".encode()
    source = PamSource(service(UNIX), Limits(1000, 100, "Maildir"))
    prepared = prepare(sent)
    assert prepared == "zwei 1\u20442".encode()
    verdict = decide([source], Request(user, sent, PEER, (b"", prepared)))
    assert isinstance(verdict, Accepted) and verdict.account.name == user
    wrong = decide([source], Request(user, sent + b"x", PEER, (b"", prepared + b"x")))
    assert isinstance(wrong, Refused) and wrong.reason == "wrong_password"


def test_an_outage_names_the_service(service: Service, users: Users) -> None:
    """In the log: a module that is not installed, and a service whose file is gone."""
    user, name = users.add(), service("auth required pam_not_there.so\n")
    source = PamSource(name, Limits(1000, 100, "Maildir"))
    refused = decide([source], Request(user, b"x", PEER))
    assert isinstance(refused, Refused) and refused.code == SYS_TEMP
    assert refused.detail.startswith(f"PAM service {name}: ")
    (DIRECTORY / name).unlink()
    refused = decide([source], Request(user, b"x", PEER))
    assert isinstance(refused, Refused) and refused.code == SYS_TEMP
    assert refused.detail == f"/etc/pam.d/{name} is not there any more"


def test_an_unknown_user(service: Service) -> None:
    """Refused, and in whatever octets."""
    for name in (b"gpop-nobody", b"\xff\xfe", b"a" * 255):
        answer = pam.check(service(UNIX), name, b"x", PEER)
        assert (answer.code, answer.reason) == (AUTH, "unknown_user")


def test_an_account_without_a_password_is_not_open(service: Service, users: Users) -> None:
    """Not even under `nullok`, where PAM itself would take any password for it."""
    name = service("auth required pam_unix.so nullok\naccount required pam_unix.so\n")
    nobody = users.add(password=None)
    assert pam.check(name, nobody, b"", PEER).reason == "empty_password"
    assert pam.check(name, nobody, b"x", PEER).code == AUTH


@pytest.mark.parametrize(
    "options, reason",
    [(["--expiredate", "1"], "account_expired"), (["--expiredate", "2020-01-01"], "account_expired")],
)
def test_an_expired_account(service: Service, users: Users, options: list[str], reason: str) -> None:
    """The account phase is honoured; it has its own word, and the right password does not help."""
    answer = pam.check(service(UNIX), users.add(*options), PASSWORD, PEER)
    assert (answer.code, answer.reason) == (AUTH, reason)


def test_a_password_that_must_be_changed(service: Service, users: Users) -> None:
    """POP3 has no way to change one."""
    name = users.add()
    subprocess.run(["chage", "-d", "0", name.decode()], check=True)
    answer = pam.check(service(UNIX), name, PASSWORD, PEER)
    assert (answer.code, answer.reason) == (AUTH, "password_expired")


def test_a_locked_password(service: Service, users: Users) -> None:
    """`passwd -l`."""
    name = users.add()
    subprocess.run(["usermod", "--lock", name.decode()], check=True)
    answer = pam.check(service(UNIX), name, PASSWORD, PEER)
    assert (answer.code, answer.reason) == (AUTH, "wrong_password")


REFUSED = {
    "auth_err": "wrong_password",
    "user_unknown": "unknown_user",
    "perm_denied": "permission_denied",
    "maxtries": "too_many_tries",
    "new_authtok_reqd": "password_expired",
    "authtok_expired": "password_expired",
    "acct_expired": "account_expired",
    "cred_expired": "credentials_expired",
}
FAULTS = [
    "authinfo_unavail", "module_unknown", "open_err", "symbol_err", "service_err", "system_err", "buf_err",
    "cred_insufficient", "cred_unavail", "cred_err", "session_err", "no_module_data", "conv_err", "try_again",
    "abort", "bad_item",
]  # fmt: skip


@pytest.mark.parametrize("phase", ["auth", "acct"])
@pytest.mark.parametrize("code", [*REFUSED, *FAULTS])
def test_every_code_is_a_refusal_or_a_fault(service: Service, joe: bytes, phase: str, code: str) -> None:
    """An outage must never make a client ask its user for a new password, a refusal must."""
    text = f"{{}} required pam_debug.so {phase}={code}\n"
    answer = pam.check(service(text.format("auth") + text.format("account")), joe, PASSWORD, PEER)
    if code in REFUSED:
        assert (answer.code, answer.reason) == (AUTH, REFUSED[code])
    else:
        assert answer.code == SYS_TEMP and answer.reason.startswith("pam_") and answer.detail


def test_a_missing_module_is_a_fault(service: Service, joe: bytes) -> None:
    """The administrator's slip, not the user's."""
    name = service("auth required pam_gpop_nosuch.so\naccount required pam_permit.so\n")
    assert pam.check(name, joe, PASSWORD, PEER).code == SYS_TEMP


def test_permit_and_deny(service: Service, joe: bytes) -> None:
    """The simplest stacks say what they say; either phase can refuse."""
    permit, deny = "required pam_permit.so\n", "required pam_deny.so\n"
    assert pam.check(service(f"auth {permit}account {permit}"), joe, b"x", PEER).code == ""
    assert pam.check(service(f"auth {deny}account {permit}"), joe, b"x", PEER).code == AUTH
    assert pam.check(service(f"auth {permit}account {deny}"), joe, b"x", PEER).code == AUTH


def test_modules_see_the_peer_and_no_terminal(
    service: Service, joe: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAM_RHOST in both phases; PAM_TTY is not set (auth has no $DISPLAY: see test_auth_process)."""
    monkeypatch.delenv("DISPLAY", raising=False)
    seen = tmp_path / "seen"
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$PAM_TYPE $PAM_USER $PAM_RHOST [$PAM_TTY]" >> {seen}\n')
    script.chmod(0o755)
    name = service(f"auth required pam_exec.so {script}\naccount required pam_exec.so {script}\n")
    assert pam.check(name, joe, PASSWORD, "2001:db8::1").code == ""
    user = joe.decode()
    assert seen.read_text() == f"auth {user} 2001:db8::1 []\naccount {user} 2001:db8::1 []\n"
    seen.unlink()
    assert pam.check_account(name, joe, PEER).code == ""
    assert seen.read_text() == f"account {user} {PEER} []\n"


def test_host_rules_hold(service: Service, joe: bytes, tmp_path: Path) -> None:
    """pam_access refuses by the peer's address."""
    rules = tmp_path / "access.conf"
    rules.write_text(f"+:{joe.decode()}:192.0.2.\n-:ALL:ALL\n")
    name = service(
        f"auth required pam_permit.so\naccount required pam_access.so accessfile={rules} nodefgroup\n"
    )
    assert pam.check(name, joe, b"x", "192.0.2.7").code == ""
    assert pam.check(name, joe, b"x", "198.51.100.7").reason == "permission_denied"
    assert pam.check_account(name, joe, "192.0.2.7").code == ""
    assert pam.check_account(name, joe, "198.51.100.7").reason == "permission_denied"


def test_a_wrong_password_does_not_sleep(service: Service, joe: bytes) -> None:
    """Neither pam_unix' two seconds nor pam_faildelay's: the delays are auth's."""
    name = service("auth optional pam_faildelay.so delay=5000000\n" + UNIX)
    started = time.monotonic()
    assert pam.check(name, joe, b"wrong", PEER).code == AUTH
    assert time.monotonic() - started < 1.5


def test_the_account_phase_alone(service: Service, joe: bytes, users: Users) -> None:
    """It asks for no password and minds an expired account."""
    name = service("auth required pam_deny.so\naccount required pam_unix.so\n")
    assert pam.check_account(name, joe, PEER).code == ""
    expired = users.add("--expiredate", "1")
    assert pam.check_account(name, expired, PEER).reason == "account_expired"


def test_a_module_that_speaks_latin_1_does_no_harm(service: Service, joe: bytes, tmp_path: Path) -> None:
    """Texts of modules are in any encoding."""
    text = tmp_path / "text"
    text.write_bytes(b"gr\xfc\xdfe %u\n")
    name = service(f"auth optional pam_echo.so file={text}\n" + UNIX)
    assert pam.check(name, joe, PASSWORD, PEER).code == ""


def test_handles_are_ended(service: Service, joe: bytes) -> None:
    """Many checks in one process leave no descriptor and no module behind."""
    name = service(UNIX)
    pam.check(name, joe, b"wrong", PEER)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        pam.check(name, joe, b"wrong", PEER)
    assert len(os.listdir("/proc/self/fd")) == before


# Services and their files


def test_a_service_without_a_file_is_none() -> None:
    """PAM would ask `other`, which on Debian accepts the system's users; `other` itself is refused too."""
    for name in ("gpop-test-nosuch", "other", "OTHER", "", "../pam.d/login", "a/b", ".", "a b"):
        assert pam.service_file(name) is None


def test_the_files_of_a_service(service: Service) -> None:
    """Its own and what it includes, in PAM's ways of doing so; a name's case does not matter to libpam."""
    inner = service(UNIX)
    name = service(f"# @include other\n@include {inner}\nauth include {inner}\n-auth  substack nosuch\n")
    assert pam.service_file(name.upper()) == f"/etc/pam.d/{name}"
    assert pam.files_of(name) == [f"/etc/pam.d/{name}", f"/etc/pam.d/{inner}"]
    assert pam.files_of("gpop-test-nosuch") == []


def test_files_that_include_each_other(service: Service) -> None:
    """Each is named once."""
    name = service("@include PLACEHOLDER\n")
    (DIRECTORY / name).write_text(f"@include {name}\n")
    assert pam.files_of(name) == [f"/etc/pam.d/{name}"]


def test_the_service_file_that_comes_with_gpop_works(service: Service, joe: bytes, users: Users) -> None:
    """conf/pam.d/gpop, as it is: right, wrong, expired."""
    name = service((Path(__file__).parents[2] / "conf/pam.d/gpop").read_text())
    assert pam.check(name, joe, PASSWORD, PEER).code == ""
    assert pam.check(name, joe, b"wrong", PEER).reason == "wrong_password"
    assert pam.check(name, users.add("--expiredate", "1"), PASSWORD, PEER).reason == "account_expired"


# The user database


def test_users_and_their_groups(users: Users, joe: bytes) -> None:
    """As getpwnam and getgrouplist say, in octets; an unknown one is None, not an error."""
    found = nss.lookup(joe)
    assert found is not None and found.name == joe and found.home == b"/home/" + joe
    assert found.gid in nss.groups(found)
    member = nss.lookup(users.add("--groups", "users,mail"))
    assert member is not None and len(nss.groups(member)) == 3
    for name in (b"gpop-nobody", b"\xff", b"a:b", b"x" * 5000, b""):
        assert nss.lookup(name) is None
