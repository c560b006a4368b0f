"""
What a user names his files, and a stranger himself, reaches no terminal and no log as it is.

Every command that shows such names is run on them, for real, over a pipe and on a terminal, by root.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.maildrop.store import Store
from tests.serving import Server, Site, gpop_command, wait_until

PACKAGE = Path(__file__).parents[2]
# What a terminal would do something about, also as UTF-8 of C1 controls, and what turns text around.
CONTROL = re.compile(
    rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)
CLEAR = b"\x1b[2J\x1b]0;owned\x07"
NAMES = [
    b"1700000001.%s" % CLEAR,
    b"1700000002.two\nlines\r3",
    b"1700000003.\x9b2J\x9d0;owned\x9c",
    "1700000004.\x9b2J".encode(),
    b"1700000005.invalid\xff\xfe\xc0\xaf",
    "1700000006.\u202egpj.exe\u2066\u200b\u2028".encode(),
    b"1700000007." + b"\x07" * 244,
    b"1700000008.\x7f\x08\x08\x0e\t",
    b"1700000009.twin\x1bc:2,S",
    b"1700000009.twin\x1bc:2,\x1bc",
]


def assert_harmless(octets: bytes) -> None:
    """Nothing in it but text and line ends; and it is UTF-8."""
    octets = octets.replace(b"\r\n", b"\n")
    found = CONTROL.search(octets)
    assert b"\nlines" not in octets, octets  # a name is in one line
    assert not found, octets[max(0, found.start() - 100) : found.end() + 100]
    octets.decode("utf-8")


def on_a_pipe(arguments: list[bytes]) -> bytes:
    """All that a command says."""
    command = [os.fsencode(word) for word in gpop_command()] + arguments
    environment = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run(
        command, cwd=PACKAGE, env=environment, stdout=-1, stderr=-2, check=False, timeout=60
    ).stdout


def on_a_terminal(arguments: list[bytes]) -> bytes:
    """The same, where it can tell that somebody looks."""
    ours, theirs = pty.openpty()
    command = [os.fsencode(word) for word in gpop_command()] + arguments
    environment = os.environ | {"PYTHONUTF8": "1", "TERM": "dumb", "NO_COLOR": "1"}
    with subprocess.Popen(
        command, cwd=PACKAGE, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = bytearray()
        while True:
            try:
                octets = os.read(ours, 65536)
            except OSError:  # the last one who had the terminal is gone
                break
            said += octets
        process.wait(60)
    os.close(ours)
    return bytes(said)


WAYS = [on_a_terminal, on_a_pipe]
# Every command both ways, which takes twice as long.
BOTH_WAYS = "GPOP_TEST_BOTH_WAYS" in os.environ


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site whose users have chosen their names with care."""
    made = Site(accounts=2)
    for name in NAMES:
        made.deliver(b"Subject: one\n\nbody\n", "user1", base=os.fsdecode(name))
    yield made
    made.remove()


@pytest.fixture(scope="module")
def odd(site: Site) -> bytes:
    """A directory of the user's below his home, whose name is the attack, with a Maildir in it."""
    home = os.fsencode(site.home("user1"))
    path = home + b"/Mail" + CLEAR + b"\n\xff" + "\u202e".encode()
    os.mkdir(path)
    shutil.copytree(site.maildir("user1"), os.fsdecode(path + b"/Maildir"))
    os.symlink(path + b"/Maildir", home + b"/link")
    for folder, folders, files in os.walk(path):
        for each in [b"", *folders, *files]:
            os.chown(os.path.join(folder, each), site.uid("user1"), site.gid("user1"), follow_symlinks=False)
    return path


def every_command(site: Site, odd: bytes) -> dict[str, list[list[bytes]]]:
    """The commands that name what users have named, and errors about such names."""
    plain, home = os.fsencode(site.maildir("user1")), os.fsencode(site.home("user1"))
    places = [plain, odd + b"/Maildir", home + b"/link"]
    faulty = [odd, odd + b"/absent"]
    config = [b"--config", os.fsencode(site.config)]
    name = b"user\x1b[2J\x9b\xff"
    return {
        "cache": [[b"cache", action, each] for action in (b"rebuild", b"verify", b"show") for each in places]
        + [[b"cache", b"verify", each] for each in faulty],
        "uidl": [[b"uidl", b"show", each] for each in places + faulty]
        + [[b"uidl", b"unhide", each, CLEAR] for each in places[:2]],
        "import": [
            [b"uidl", b"import", b"--dry-run", b"--verbose", b"--from", b"dovecot", *places],
            [b"uidl", b"import", b"--from", b"dovecot", b"--list", odd],
        ],
        "accounts": [
            [b"who", *config, name],
            [b"kick", *config, name],
            [b"log", *config, b"--debug", b"on", name],
            [b"user", b"set", *config, name, b"pop3=off"],
            [b"user", b"unset", *config, name],
            [b"passwd", b"delete", os.fsencode(site.passwd), name],
            [b"virtusers", b"lookup", *config, name],
        ],
        "command line": [
            [b"cache", b"show", *places],
            [b"uidl", b"show", *places],
            [b"cache", CLEAR],
            [CLEAR],
            [b"report", odd],
            [b"check-config", b"--config", odd],
        ],
    }


SUBJECTS = ["cache", "uidl", "import", "accounts", "command line"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_command_prints_a_name_as_it_is(site, odd, subject):
    """Control characters, line ends, ESC, C1, what is no UTF-8, what turns text around: shown escaped."""
    for number, arguments in enumerate(every_command(site, odd)[subject]):
        for way in WAYS if BOTH_WAYS else [WAYS[number % 2]]:
            said = way(arguments)
            assert said, arguments
            assert b"Traceback" not in said, said
            assert_harmless(said)


def test_a_dovecot_list_with_such_names_is_told_harmlessly(site):
    """The other server's file is the user's as well: its names and unique-ids are shown escaped."""
    listed = site.maildir("user1") / "dovecot-uidlist"
    lines = [b"3 V1700000000 N12"] + [b"%d P\x1bc :%s" % (n, name) for n, name in enumerate(NAMES, start=1)]
    listed.write_bytes(b"\n".join(lines) + b"\n")
    site.own(listed, "user1")
    try:
        for arguments in ([b"--dry-run", b"--verbose"], [b"--dry-run"]):
            where = os.fsencode(site.maildir("user1"))
            said = on_a_pipe([b"uidl", b"import", *arguments, b"--from", b"dovecot", where])
            assert b"1700000001" in said or b"doubt" in said
            assert_harmless(said)
    finally:
        listed.unlink()


def test_log_who_and_report_are_harmless(site, odd):
    """A server in use: strange names, strange files, damaged caches; then its log, `who`, `report`."""
    site.write_config(log__level="debug", log__removals=True)
    with Server(site) as server:
        for name in (CLEAR, b"\x9b2J", b"a\r\n\x1bc", "\u202eroot\u2028".encode(), b"\xff" * 255):
            with server.connect() as stranger:
                stranger.send(b"USER " + name + b"\r\nPASS " + CLEAR + b"\r\n" + CLEAR + b"\r\n")
                stranger.send(b"AUTH PLAIN " + b64encode(b"\0" + name + b"\0x") + b"\r\nQUIT\r\n")
                stranger.rest()
        cache = site.maildir("user1") / ".statcache"
        cache.write_bytes(CLEAR)
        site.own(cache, "user1")
        with server.login("user1") as dialogue:
            shown = on_a_terminal([b"who", b"--config", os.fsencode(site.config)])
            assert b"user1" in shown
            assert_harmless(shown)
            assert dialogue.ask("UIDL").startswith(b"+OK")
            ids = dialogue.lines()
            assert len(ids) == len(NAMES)
            assert_harmless(b"\n".join(ids))
            for number in range(1, len(NAMES) + 1):
                dialogue.send(b"RETR %d\r\n" % number)
                assert dialogue.line().startswith(b"+OK")
                dialogue.lines()
            dialogue.ask("DELE 1")
            dialogue.ask(f"XX{os.fsdecode(CLEAR)}")
            assert dialogue.ask("QUIT").startswith(b"+OK")
        server.wait_for_event("session_closed", account="user1")
        wait_until(lambda: len(server.events("login_refused")) >= 5)
        log = server.log_path
        server.stop()
        text = log.read_bytes()
        assert_harmless(text)
        # The one of a terminal may be coloured; nothing else in it is a control character.
        for way in (on_a_pipe, on_a_terminal):
            assert_harmless(way([b"report", os.fsencode(log)]))
        assert_harmless(on_a_pipe([b"report", b"--csv", b"polling_most", os.fsencode(log)]))


def test_a_path_of_a_users_is_printed_escaped_by_cache_show(tmp_path):
    """A Maildir that is a link to a name with ESC in it: root was told that name as it is."""
    target = tmp_path / os.fsdecode(b"x" + CLEAR)
    Store(target).close()
    (tmp_path / "Maildir").symlink_to(target)
    said = on_a_pipe([b"cache", b"show", os.fsencode(tmp_path / "Maildir")])
    assert b"symbolic link" in said and b"x\\x1b[2J" in said
    assert_harmless(said)
