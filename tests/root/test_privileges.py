"""What a session is, seen from outside and tried from inside: one user, one jail, nobody's secrets."""

from __future__ import annotations

import os
import poplib
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpop.privsep import credentials
from tests.serving import PASSWORD, ROOT, Server, Site

pytestmark = pytest.mark.skipif(not ROOT, reason="only root can give up root: run the tests as root")

UID, OTHER_UID = 61001, 61002


@pytest.fixture
def site():
    """A site with three accounts."""
    made = Site(accounts=3, session__autologout_s=60)
    yield made
    made.remove()


@pytest.fixture
def server(site):
    """gpop on it, as root."""
    with Server(site) as running:
        yield running


def in_child(code: str, **values: object) -> str:
    """Run code in a child that may give up root; returns what it printed."""
    prologue = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    result = subprocess.run(
        [sys.executable, "-c", prologue + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


BECOME = """
import os
from gpop.privsep import credentials
try:
    fd = credentials.become_user(uid, uid, [uid], os.fsencode(home), os.fsencode(maildir), jail, (1, 1))
    print("became", os.getresuid(), os.getresgid(), os.getgroups(), sorted(os.listdir("/")))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("jail, seen", [("maildir", "cur"), ("home", "Maildir"), ("none", "proc")])
def test_the_jail_is_what_was_asked_for(site, jail, seen):
    """Afterwards all ids and groups are the user's, and / is the jail."""
    values = {"uid": UID, "home": str(site.home("user1")), "maildir": str(site.maildir("user1"))}
    output = in_child(BECOME, jail=jail, **values)
    assert output.startswith(f"became ({UID}, {UID}, {UID}) ({UID}, {UID}, {UID}) [{UID}] ")
    assert f"'{seen}'" in output


def as_jail(site, owner: int, group: int, mode: int, jail: str = "home") -> str:
    """What becomes of a session of user1's whose home is like that; the Maildir is as it should be."""
    home = site.home("user1")
    os.chown(home, owner, group)
    home.chmod(mode)
    return in_child(BECOME, uid=UID, home=str(home), maildir=str(site.maildir("user1")), jail=jail)


@pytest.mark.parametrize(
    "owner, group, mode",
    [(UID, UID, 0o700), (UID, OTHER_UID, 0o755), (UID, UID, 0o2775), (0, 0, 0o755), (0, UID, 0o775)],
)
def test_a_home_that_is_the_users_or_roots_is_a_jail(site, owner, group, mode):
    """The user's own group may write there, too: it has no other rights than the session."""
    assert as_jail(site, owner, group, mode).startswith("became")


@pytest.mark.parametrize(
    "owner, group, mode, reason",
    [
        (OTHER_UID, UID, 0o755, "home_not_owned"),
        (UID, UID, 0o777, "home_writable_by_others"),
        (UID, UID, 0o1777, "home_writable_by_others"),
        (UID, OTHER_UID, 0o770, "home_writable_by_others"),
        (0, OTHER_UID, 0o775, "home_writable_by_others"),
    ],
)
def test_a_home_that_others_have_a_say_in_is_no_jail(site, owner, group, mode, reason):
    """They could plant /etc or /lib there, or exchange directories. With another jail it does not matter."""
    assert f"CredentialsRefused {reason}" in as_jail(site, owner, group, mode)
    assert as_jail(site, owner, group, mode, jail="maildir").startswith("became")


def test_a_root_directory_as_home_is_no_jail(site):
    """An account with the home / would be jailed in all there is."""
    values = {"uid": UID, "home": "/", "maildir": str(site.maildir("user1"))}
    assert "CredentialsRefused home_is_no_jail" in in_child(BECOME, jail="home", **values)


def test_a_maildir_outside_the_home_opens_no_jail(site):
    """Its descriptor would lead out of the jail: by the user's link, or by the path of the account."""
    home = site.home("user1")
    outside = site.path / "outside"
    site.maildir("user1").rename(outside)
    site.own(outside, "user1")
    for maildir in (home / "Maildir", outside):
        values = {"uid": UID, "home": str(home), "maildir": str(maildir)}
        if maildir != outside:
            maildir.symlink_to(outside)
        assert "CredentialsRefused maildir_outside_home" in in_child(BECOME, jail="home", **values)
        assert in_child(BECOME, jail="maildir", **values).startswith("became")


def test_a_link_within_the_home_stays_within_the_jail(site):
    """An absolute one, three directories deep; and a home that is the Maildir itself."""
    home = site.home("user1")
    deep = home / "mail" / "of" / "mine"
    deep.parent.mkdir(parents=True)
    site.maildir("user1").rename(deep)
    for path in (deep, deep.parent, deep.parent.parent):
        site.own(path, "user1")
    (home / "Maildir").symlink_to(deep)
    for where in (home, deep):
        values = {"uid": UID, "home": str(where), "maildir": str(home / "Maildir")}
        assert in_child(BECOME, jail="home", **values).startswith("became")


def test_a_store_that_others_can_write_to_is_no_jail(site):
    """Who can exchange its directories would read the mail of one account as another one, of the same uid."""
    code = BECOME.replace("os.fsencode(home), os.fsencode(maildir), jail", "os.fsencode(home), jail")
    code = code.replace("become_user(", "become_user_of_store(")
    home = site.home("user1")
    assert in_child(code, uid=UID, home=str(home), jail="maildir").startswith("became")
    home.chmod(0o702)
    assert "store_writable_by_others" in in_child(code, uid=UID, home=str(home), jail="maildir")


def test_who_can_not_be_jailed_is_told_to_try_later_and_the_log_says_why():
    """As for a Maildir of another owner; nothing is removed, and it is served as soon as that is mended."""
    site = Site(accounts=2, session__jail="home")
    try:
        site.deliver(b"Subject: kept\n\n", "user1")
        site.home("user1").chmod(0o733)
        with Server(site) as server:
            with server.connect() as dialogue:
                dialogue.ask("USER user1")
                assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
            closed = server.wait_for_event("session_closed")
            assert closed["close_reason"] == "unavailable"
            assert "home_writable_by_others" in closed["fault"]
            site.home("user1").chmod(0o711)
            client = server.pop("user1")
            assert client.stat()[0] == 1
            client.quit()
    finally:
        site.remove()


def test_a_link_to_another_users_maildir_is_refused(site):
    """The user's link into a 0700 home of another is not followed: root does not open it for him."""
    site.maildir("user1").rename(site.home("user1") / "old")
    (site.home("user1") / "Maildir").symlink_to(site.maildir("user2"))
    values = {"uid": UID, "home": str(site.home("user1")), "maildir": str(site.maildir("user1"))}
    assert in_child(BECOME, jail="maildir", **values).startswith("PermissionError")
    # And where the other home is open to all, the owner is still wrong.
    site.home("user2").chmod(0o755)
    site.maildir("user2").chmod(0o755)
    assert "maildir_not_owned" in in_child(BECOME, jail="maildir", **values)


def test_a_maildir_of_another_user_is_named_with_both_owners(site):
    """Also where only its owner may read it: the log says whose it is, and not only "Permission denied"."""
    values = {"uid": UID, "home": str(site.home("user1")), "maildir": str(site.maildir("user1"))}
    for owner, mode in ((OTHER_UID, 0o700), (OTHER_UID, 0o755), (0, 0o700)):
        os.chown(site.maildir("user1"), owner, owner)
        site.maildir("user1").chmod(mode)
        said = in_child(BECOME, jail="maildir", **values).strip()
        assert said == (
            f"CredentialsRefused maildir_not_owned ({site.maildir('user1')} belongs to uid {owner}, "
            f"and the account has uid {UID})"
        )
    # One's own that nobody may read is another matter.
    os.chown(site.maildir("user1"), UID, UID)
    site.maildir("user1").chmod(0)
    assert in_child(BECOME, jail="maildir", **values).startswith("PermissionError")


def test_a_refusal_has_no_control_characters(tmp_path):
    """Users choose names; what is said of them is printed on root's terminal by commands."""
    maildir = tmp_path / "Mail\x1b[31mdir"
    maildir.symlink_to(tmp_path / "nowhere")
    with pytest.raises(credentials.CredentialsRefused, match=r"maildir_dangling \(.*Mail\\x1b\[31mdir is a"):
        credentials.open_own_maildir(os.geteuid(), os.fsencode(tmp_path), os.fsencode(maildir))


def test_who_could_get_root_back_does_not_go_on():
    """All six ids are checked, and then whether root can be had again: here it can, nothing was given up."""
    with pytest.raises(credentials.CredentialsRefused, match="root_regained"):
        credentials._verify_dropped(0, 0)
    with pytest.raises(credentials.CredentialsRefused, match="ids_not_dropped"):
        credentials._verify_dropped(61000, 61000)


def test_low_ids_are_refused(site):
    """uid 0, and everything below first_valid_uid and first_valid_gid, gets no session."""
    home, maildir = os.fsencode(site.home("user1")), os.fsencode(site.maildir("user1"))
    for uid, gid, first in ((0, 100, (0, 0)), (999, 1000, (1000, 1)), (1000, 99, (1, 100))):
        with pytest.raises(credentials.CredentialsRefused, match="id_too_low"):
            credentials.become_user(uid, gid, [], home, maildir, "maildir", first)


def test_an_unmounted_home_is_not_an_empty_maildrop(site):
    """A home that is root's own has no Maildir to be absent from."""
    shutil.rmtree(site.maildir("user1"))
    os.chown(site.home("user1"), 0, 0)
    site.home("user1").chmod(0o755)
    values = {"uid": UID, "home": str(site.home("user1")), "maildir": str(site.maildir("user1"))}
    said = in_child(BECOME, jail="maildir", **values)
    assert f"home_not_owned ({site.home('user1')} belongs to uid 0, and the account has uid {UID})" in said


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_session_is_the_mail_user_and_nobody_else(server):
    """From outside: ids, groups, capabilities, jail, no new privileges, and its descriptors."""
    with server.login("user1"), server.login("user2"):
        sessions = {status_of(pid)["Uid"].split()[0]: pid for pid in server.pids("session")}
        assert set(sessions) == {str(UID), str(OTHER_UID)}
        for uid, pid in sessions.items():
            status = status_of(pid)
            assert set(status["Uid"].split()) == {uid} and set(status["Gid"].split()) == {uid}
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapInh"], 16) == 0
            assert status["NoNewPrivs"] == "1"
            assert os.readlink(f"/proc/{pid}/root") == str(server.site.maildir(f"user{int(uid) - 61000}"))
            opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert sum(target.startswith("socket:") for target in opened) == 2
            home = str(server.site.home(f"user{int(uid) - 61000}"))
            for target in opened:
                assert target == "/dev/null" or target.startswith(("socket:", home)), opened


def test_a_front_is_the_service_user_in_an_empty_jail(server):
    """No rights, no files, no new privileges."""
    for pid in server.pids("front"):
        status = status_of(pid)
        assert "0" not in status["Uid"].split() and "0" not in status["Gid"].split()
        assert status["Groups"] == "" and int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"
        assert os.listdir(f"/proc/{pid}/root/") == []


@pytest.mark.parametrize("jail", ["maildir", "home", "none"])
def test_the_broker_is_as_it_was_after_its_rehearsal(jail):
    """It is still root, in no jail, with its own limits; nothing is left open or lying about."""
    site = Site(session__jail=jail)
    try:
        with Server(site) as server:
            server.pop().quit()
            _assert_unchanged(server)
    finally:
        site.remove()


def _assert_unchanged(server):
    own = status_of(os.getpid())
    broker = server.process.pid
    assert os.readlink(f"/proc/{broker}/root") == os.readlink(f"/proc/{broker}/cwd") == "/"
    status = status_of(broker)
    assert status["Uid"].split() == status["Gid"].split() == ["0"] * 4
    assert status["Groups"].split() == own["Groups"].split()
    assert status["SigBlk"] == "0" * 16
    limits = Path(f"/proc/{broker}/limits").read_text()
    ours = Path("/proc/self/limits").read_text()
    assert [line for line in limits.splitlines() if "core" not in line] == [
        line for line in ours.splitlines() if "core" not in line
    ]
    opened = [os.readlink(f"/proc/{broker}/fd/{fd}") for fd in os.listdir(f"/proc/{broker}/fd")]
    assert not [path for path in opened if "rehearsal" in path]
    assert not list((server.site.path / "run").glob("rehearsal*"))


def test_no_session_holds_a_password(server):
    """The memory of a session holds no password: neither its own login's nor an earlier one's."""
    server.pop("user0").quit()
    with pytest.raises(poplib.error_proto):
        server.pop("user2", "a quite unmistakable password")
    with server.login("user1"):
        (pid,) = server.pids("session")
        os.kill(pid, signal.SIGSTOP)
        memory = _memory_of(pid)
        os.kill(pid, signal.SIGCONT)
    assert b"user1" in memory, "the memory was not read"
    assert PASSWORD.encode() not in memory
    assert b"a quite unmistakable password" not in memory


def _memory_of(pid: int) -> bytes:
    memory = bytearray()
    with open(f"/proc/{pid}/mem", "rb") as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, permissions = line.split()[:2]
            if "r" not in permissions or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(word, 16) for word in area.split("-"))
            file.seek(start)
            try:
                memory += file.read(end - start)
            except OSError:
                continue
    return bytes(memory)


def test_planted_modules_are_not_imported(server):
    """A user puts Python files where a jailed import would find them; the session runs none of them."""
    maildir = server.site.maildir("user1")
    planted = "import os\nopen('/planted', 'w').close()\n"
    for name in ("encodings", "idlelib", "_strptime", "calendar", "hashlib", "gzip", "random", "linecache"):
        (maildir / f"{name}.py").write_text(planted)
    server.site.deliver(b"Subject: \xff\xfe 8-bit\n\n.\r\nbody", "user1", base="x" * 90)
    with server.login("user1") as dialogue:
        dialogue.send(b"CAPA\r\nSTAT\r\nUIDL\r\nTOP 1 1\r\nRETR 1\r\n")
        dialogue.send(b"XYZZY \xff\r\nLIST 9\r\nDELE 1\r\nQUIT\r\n")
        dialogue.rest()
    assert server.wait_for_event("session_closed")["close_reason"] == "quit"
    assert not (maildir / "planted").exists()


def test_the_import_machinery_of_a_session_is_empty():
    """Nothing can be imported after the drop: path, finders and hooks are gone before the first fork."""
    output = in_child(
        """
        import sys
        from gpop.broker import starting
        starting.close_import_system()
        print(sys.path, sys.meta_path, sys.path_hooks, dict(sys.path_importer_cache))
        try:
            import calendar
        except ImportError:
            print("refused")
        """
    )
    assert output == "[] [] [] {}\nrefused\n"
