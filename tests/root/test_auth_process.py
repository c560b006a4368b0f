"""A real auth process with real PAM: slow checks, killed checks, real users, and the cache's limits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpop.accounts import hashes
from gpop.privsep import messages
from tests.accounts.auth_process import (
    AuthProcess,
    FakeFront,
    accepted_by,
    refusal,
    running,
    until,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can ask PAM about other users: run as root"
)

SERVICE = f"gpop-test-{os.getpid()}-auth"
SERVICE_FILE = Path("/etc/pam.d") / SERVICE
SOURCES = [{"type": "pam", "service": SERVICE}]
UNIX = "auth required pam_unix.so\naccount required pam_unix.so\n"
TRUSTED = "127.0.0.1"
QUICK, SLOW = f"gpq{os.getpid()}", f"gps{os.getpid()}"
# SLOW's password is never decided in a test's time; everybody else's is at once.
SLOW_FOR_ONE = (
    f"auth [success=ignore default=1] pam_succeed_if.so quiet user = {SLOW}\n"
    "auth required pam_exec.so quiet /bin/sleep 60\n"
    "auth required pam_permit.so\n"
    "account required pam_permit.so\n"
)


@pytest.fixture(scope="module", autouse=True)
def users() -> Iterator[None]:
    for name in (QUICK, SLOW):
        hashed = hashes.make(b"secret").decode().removeprefix("{CRYPT}")
        options = ["--no-create-home", "--groups", "users,mail", "--password", hashed]
        subprocess.run(["useradd", *options, name], check=True)
    yield
    for name in (QUICK, SLOW):
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def service() -> Iterator[Path]:
    SERVICE_FILE.write_text(UNIX)
    yield SERVICE_FILE
    SERVICE_FILE.unlink(missing_ok=True)


def checkers(auth: AuthProcess) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{auth.pid}/task/{auth.pid}/children").read_text().split()]


def test_a_user_of_the_system(tmp_path: Path) -> None:
    """Accepted with NSS' account: home, Maildir, and of the groups only those from first_valid_gid on."""
    with running(SOURCES, tmp_path) as auth:
        front = auth.front()
        login = front.login(QUICK.encode(), b"secret")
        assert login.answer().fields["source"] == "pam"
        fields = auth.served().fields
        assert fields["account"] == QUICK.encode()
        assert fields["maildir"] == b"/home/" + QUICK.encode() + b"/Maildir"
        assert fields["groups"] == sorted({100, fields["gid"]}, key=fields["groups"].index)
        assert refusal(front.login(QUICK.encode(), b"wrong", TRUSTED)) == ("AUTH", "wrong_password")
        assert refusal(front.login(b"gpop-nobody", b"wrong", TRUSTED)) == ("AUTH", "unknown_user")
        assert "secret" not in auth.log_path.read_text()


def test_nobody_tries_roots_password_here(tmp_path: Path, service: Path) -> None:
    """uid 0 and system accounts are refused before PAM is asked."""
    marker = tmp_path / "asked"
    service.write_text(
        f"auth required pam_exec.so quiet /bin/touch {marker}\naccount required pam_permit.so\n"
    )
    with running(SOURCES, tmp_path) as auth:
        front = auth.front()
        assert refusal(front.login(b"root", b"x", TRUSTED)) == ("AUTH", "uid_0")
        assert refusal(front.login(b"daemon", b"x", TRUSTED)) == ("AUTH", "uid_too_low")
        assert not marker.exists()
        assert accepted_by(auth, front.login(QUICK.encode(), b"x", TRUSTED)) == "pam"
        assert marker.exists()


def test_pam_hears_of_the_client_and_not_of_its_proxy(tmp_path: Path, service: Path) -> None:
    """PAM_RHOST is what pam_access and others decide by."""
    script, seen = tmp_path / "note", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\necho "$PAM_RHOST" >> {seen}\n')
    script.chmod(0o755)
    service.write_text(f"auth required pam_exec.so quiet {script}\naccount required pam_permit.so\n")
    with running(SOURCES, tmp_path, proxy_networks=["127.9.3.1"]) as auth:
        login = auth.front().login(QUICK.encode(), b"x", "192.0.2.7", through="127.9.3.1")
        assert accepted_by(auth, login) == "pam"
    assert seen.read_text() == "192.0.2.7\n"


def test_pam_hears_the_account_and_not_what_was_typed(tmp_path: Path, service: Path) -> None:
    """After maps and local domains; the log has both."""
    script, seen = tmp_path / "note", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\necho "$PAM_USER" >> {seen}\n')
    script.chmod(0o755)
    service.write_text(f"auth required pam_exec.so quiet {script}\naccount required pam_unix.so\n")
    (tmp_path / "table").write_text(f"@x.example {QUICK}@local.example\n")
    maps = {"virtual_sendmail_maps": [f"text:{tmp_path}/table"], "virtual_local_domains": ["local.example"]}
    with running(SOURCES, tmp_path, **maps) as auth:
        fields = auth.front().login(b"anybody@x.example", b"x", TRUSTED).answer().fields
        assert (fields["user"], fields["account"]) == ("anybody@x.example", QUICK)
        assert auth.served().fields["account"] == QUICK.encode()
    assert seen.read_text() == f"{QUICK}\n"


def test_twenty_slow_checks_do_not_delay_another_source(tmp_path: Path, service: Path) -> None:
    """They may fill their own places; one is always there for others."""
    service.write_text(SLOW_FOR_ONE)
    with running(SOURCES, tmp_path, max_checks=8) as auth:
        front = auth.front()
        slow = [front.login(SLOW.encode(), b"x", "127.9.2.1") for _ in range(20)]
        until(lambda: len(checkers(auth)) == 5, "five of eight places are taken: strangers have six")
        for number in range(5):
            login = front.login(QUICK.encode(), b"x", f"127.9.2.{number + 10}")
            assert accepted_by(auth, login) == "pam"
            assert time.monotonic() - login.sent_s < 2.0
        until(lambda: len(checkers(auth)) == 5, "the same five")
        assert not any(login.is_answered() for login in slow)


def test_a_check_that_takes_too_long_is_killed_and_who_waits_is_told(tmp_path: Path, service: Path) -> None:
    """[SYS/TEMP] for both, the places are free again, and what the PAM module started is gone too."""
    service.write_text(SLOW_FOR_ONE)
    with running(SOURCES, tmp_path, max_checks=2, check_timeout_s=0.5) as auth:
        front = auth.front()
        logins = [front.login(SLOW.encode(), b"x", "127.9.2.1") for _ in range(3)]
        until(lambda: sleeping_below(auth), "the module has started its program")
        sleeping = sleeping_below(auth)
        reasons = sorted(refusal(login) for login in logins)
        assert reasons[0] in (("SYS/TEMP", "check_timeout"), ("SYS/TEMP", "checks_exhausted"))
        assert ("SYS/TEMP", "check_timeout") in reasons
        assert all(login.closed() for login in logins)
        until(lambda: not checkers(auth), "checkers reaped")
        assert accepted_by(auth, front.login(QUICK.encode(), b"x", "127.9.2.1")) == "pam"
        assert auth.events("auth_fault")[0]["reason"] == "check_timeout"
    until(lambda: not any(map(runs, sleeping)), "the program has ended")


def runs(pid: int) -> bool:
    """Whether a process runs: a dead one may wait for its parent."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def sleeping_below(auth: AuthProcess) -> list[int]:
    """The programs that the PAM modules of auth's checkers started."""
    found: list[int] = []
    for pid in checkers(auth):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.extend(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return found


def test_a_checker_that_dies_costs_one_login(tmp_path: Path, service: Path) -> None:
    """Killed from outside: [SYS/TEMP], logged, everybody else goes on."""
    service.write_text(SLOW_FOR_ONE)
    with running(SOURCES, tmp_path) as auth:
        front = auth.front()
        login = front.login(SLOW.encode(), b"x", "127.9.2.1")
        until(lambda: sleeping_below(auth), "the module has started its program")
        (sleeping,) = sleeping_below(auth)
        os.kill(checkers(auth)[0], signal.SIGKILL)
        os.kill(sleeping, signal.SIGKILL)  # nobody else ends it: its checker did not come to that
        assert refusal(login) == ("SYS/TEMP", "checker_died")
        assert accepted_by(auth, front.login(QUICK.encode(), b"x", "127.9.2.1")) == "pam"


def test_a_checker_holds_its_pipe_and_nobodys_stream(tmp_path: Path, service: Path) -> None:
    """Neither the fronts' sockets, nor the broker's, nor other logins'."""
    service.write_text(SLOW_FOR_ONE)
    with running(SOURCES, tmp_path) as auth:
        front = auth.front()
        for number in range(3):
            front.login(SLOW.encode(), b"x", f"127.9.2.{number}")
        until(lambda: len(checkers(auth)) == 3, "three checkers run")
        for pid in checkers(auth):
            until(lambda pid=pid: len(descriptors(pid)) == 1, "the checker has closed what is not its own")
            assert descriptors(pid)[0].startswith("pipe:")


def descriptors(pid: int) -> list[str]:
    """What a process has open besides its standard descriptors."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += [os.readlink(link)] if int(link.name) > 2 else []
    return found


def test_a_front_that_dies_while_checks_run(tmp_path: Path, service: Path) -> None:
    """Its logins' descriptors are closed at once, also of those still waiting; the others are served."""
    service.write_text(SLOW_FOR_ONE)
    with running(SOURCES, tmp_path, max_checks=4) as auth:
        front, other = auth.front(), auth.front()
        logins = [front.login(SLOW.encode(), b"x", "127.9.2.1") for _ in range(6)]
        until(lambda: len(checkers(auth)) == 2, "two checkers run, of the three that strangers have")
        front.close()
        assert all(login.closed() for login in logins)
        assert accepted_by(auth, other.login(QUICK.encode(), b"x", "127.9.2.2")) == "pam"


def test_a_user_of_the_passwd_file_is_not_the_systems(tmp_path: Path) -> None:
    """Sources in order: the passwd-file decides for its names, PAM for the others; an outage for none."""
    users = tmp_path / "users"
    users.write_text(f"{QUICK}:{{PLAIN}}other:2000:2000::/srv/virtual::\n")
    users.chmod(0o600)
    with running([{"type": "passwd-file", "path": str(users)}, *SOURCES], tmp_path) as auth:
        front = auth.front()
        login = front.login(QUICK.encode(), b"other", TRUSTED)
        assert login.answer().fields["source"] == "passwd-file"
        assert auth.served().fields["uid"] == 2000
        assert refusal(front.login(QUICK.encode(), b"secret", TRUSTED)) == ("AUTH", "wrong_password")
        assert accepted_by(auth, front.login(SLOW.encode(), b"secret", TRUSTED)) == "pam"
        users.unlink()
        assert refusal(front.login(QUICK.encode(), b"secret", TRUSTED))[0] == "SYS/TEMP"
        assert refusal(front.login(SLOW.encode(), b"secret", TRUSTED))[0] == "SYS/TEMP"


def test_a_service_without_a_file_is_refused(tmp_path: Path, service: Path) -> None:
    """At the start, and when it goes away while we run: PAM's `other` is never asked."""
    with running(SOURCES, tmp_path) as auth:
        service.unlink()
        login = auth.front().login(QUICK.encode(), b"secret", TRUSTED)
        assert refusal(login) == ("SYS/TEMP", "source_unavailable")
    process = AuthProcess(SOURCES, tmp_path)
    assert process.process.wait(20) == 1
    assert SERVICE in process.events("process_fault")[-1]["problem"]
    process.stop()


def test_modules_do_not_see_the_environment(tmp_path: Path, service: Path) -> None:
    """$DISPLAY would become PAM_TTY; nothing of who started gpop gets there."""
    seen, script = tmp_path / "seen", tmp_path / "script"
    script.write_text(
        f'#!/bin/sh\necho "tty=$PAM_TTY display=$DISPLAY" > {seen}; readlink /proc/$PPID/fd/0 >> {seen}\n'
    )
    script.chmod(0o755)
    service.write_text(f"auth required pam_exec.so quiet {script}\naccount required pam_permit.so\n")
    with running(SOURCES, tmp_path) as auth:
        assert accepted_by(auth, auth.front().login(QUICK.encode(), b"x")) == "pam"
    assert seen.read_text() == "tty= display=\n/dev/null\n"


# The auth cache with PAM


def log_in_until_cached(auth: AuthProcess, front: FakeFront, name: str = QUICK) -> None:
    until(lambda: accepted_by(auth, front.login(name.encode(), b"secret", TRUSTED)) == "cache", "a hit")


def outcome(auth: AuthProcess, front: FakeFront) -> str:
    """The source that accepted, or the reason of the refusal."""
    login = front.login(QUICK.encode(), b"secret", TRUSTED)
    answer = login.answer()
    if answer.kind == messages.ACCEPTED:
        auth.served()
        return str(answer.fields["source"])
    return str(answer.fields["reason"])


def test_a_changed_system_password_works_a_second_longer_at_most(tmp_path: Path) -> None:
    """/etc/shadow is watched."""
    with running(SOURCES, tmp_path, cache_enabled=True) as auth:
        front = auth.front()
        log_in_until_cached(auth, front)
        hashed = hashes.make(b"changed").decode().removeprefix("{CRYPT}")
        subprocess.run(["usermod", "--password", hashed, QUICK], check=True)
        changed = time.monotonic()
        until(lambda: outcome(auth, front) == "wrong_password", "the old password is refused")
        assert time.monotonic() - changed < 2.0
        assert auth.events("auth_cache_dropped")
        hashed = hashes.make(b"secret").decode().removeprefix("{CRYPT}")
        subprocess.run(["usermod", "--password", hashed, QUICK], check=True)


def test_other_changes_empty_the_cache(tmp_path: Path, service: Path) -> None:
    """The PAM service's file, a file that it includes, and /etc/passwd."""
    deny = "auth required pam_deny.so\naccount required pam_deny.so\n"
    included = tmp_path / "included"
    included.write_text(UNIX)
    other = service.with_name(service.name + "2")
    other.write_text(f"@include {included}\n")
    settings = {"cache_enabled": True}
    try:
        with (
            running(SOURCES, subfolder(tmp_path, "1"), **settings) as one,
            running([{"type": "pam", "service": other.name}], subfolder(tmp_path, "2"), **settings) as two,
            running([{"type": "pam", "service": other.name}], subfolder(tmp_path, "3"), **settings) as three,
        ):
            fronts = {auth: auth.front() for auth in (one, two, three)}
            for auth, front in fronts.items():
                log_in_until_cached(auth, front)
            service.write_text(deny)
            until(lambda: outcome(one, fronts[one]) == "wrong_password", "PAM is asked again")
            subprocess.run(["usermod", "--shell", "/bin/false", QUICK], check=True)
            until(lambda: outcome(three, fronts[three]) == "pam", "PAM is asked again")
            until(lambda: outcome(two, fronts[two]) == "cache", "a hit")
            included.write_text(deny)
            until(lambda: outcome(two, fronts[two]) == "wrong_password", "PAM is asked again")
            for auth, path in ((one, service), (two, included), (three, Path("/etc/passwd"))):
                assert str(path) in [event["path"] for event in auth.events("auth_cache_dropped")]
    finally:
        other.unlink()


def subfolder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


def test_the_account_phase_on_every_hit(tmp_path: Path, service: Path) -> None:
    """Without the setting a rule that no watched file shows takes effect late; with it, at once."""
    denied = tmp_path / "denied"
    denied.write_text("")
    rule = f"account required pam_listfile.so item=user sense=deny file={denied} onerr=fail\n"
    service.write_text("auth required pam_unix.so\n" + rule)
    for always in (False, True):
        denied.write_text("")
        with running(SOURCES, tmp_path, cache_enabled=True, cache_always_check_account=always) as auth:
            front = auth.front()
            log_in_until_cached(auth, front)
            denied.write_text(QUICK + "\n")
            assert outcome(auth, front) == ("wrong_password" if always else "cache")
            denied.write_text("")
            # The refused entry was forgotten: the password is asked for again.
            assert outcome(auth, front) == ("pam" if always else "cache")


def test_a_hit_starts_no_process(tmp_path: Path) -> None:
    """No fork, no PAM, no NSS: counted, by the kernel's number of the newest process of auth's."""
    with running(SOURCES, tmp_path, cache_enabled=True) as auth:
        front = auth.front()
        log_in_until_cached(auth, front)
        before = reaped_time(auth)
        for _ in range(50):
            assert outcome(auth, front) == "cache"
        assert reaped_time(auth) == before


def reaped_time(auth: AuthProcess) -> list[str]:
    """Faults and times of auth's reaped children: they grow with each one."""
    fields = Path(f"/proc/{auth.pid}/stat").read_text().rpartition(")")[2].split()
    return [fields[8], fields[13], fields[14]]


def test_nobody_reads_auths_memory(tmp_path: Path) -> None:
    """No core dump, and not dumpable: /proc belongs to root whatever the user id."""
    with running(SOURCES, tmp_path) as auth:
        limits = Path(f"/proc/{auth.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
