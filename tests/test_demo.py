"""`gpop demo`: what it makes, and that what it tells to type works."""

from __future__ import annotations

import argparse
import json
import os
import poplib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpop.accounts.passwdfile import PasswdFile
from gpop.commands import demo
from gpop.commands.demo_messages import messages
from gpop.config import reading
from tests.serving import wait_until

MAIN = str(Path(demo.__file__).parent.parent / "__main__.py")
DEADLINE_S = 60


def test_the_messages_are_the_same_every_time() -> None:
    """What is seen in one demo can be looked up in another."""
    assert list(messages()) == list(messages())


def test_the_messages_are_of_every_awkward_kind() -> None:
    """A dozen, among them what servers get wrong."""
    contents = [message.octets for message in messages()]
    assert len(contents) == 12
    assert any(re.search(rb"^\.$", octets, re.MULTILINE) for octets in contents), "a line that is a dot"
    assert any(max(map(len, octets.split(b"\n"))) > 100_000 for octets in contents), "a very long line"
    assert any(not octets.isascii() for octets in contents), "8-bit"
    assert any(octets.endswith(b"\n\n") for octets in contents), "an empty body"
    assert any(not octets.endswith(b"\n") for octets in contents), "no final line end"
    assert any(b"\r\n" in octets and b"\n" not in octets.replace(b"\r\n", b"") for octets in contents), "CRLF"
    assert any(b"multipart/alternative" in octets for octets in contents), "alternatives"
    assert any(octets.count(b"\n") > 2000 and b"base64" in octets for octets in contents), "an attachment"


def test_file_names_tell_the_truth() -> None:
    """Where a name has W= it is the octets on the wire, and names come in the order of delivery."""
    names = [message.name for message in messages()]
    assert names == sorted(names)
    for message in messages():
        if found := re.search(r",S=(\d+),W=(\d+)", message.name):
            assert int(found[1]) == len(message.octets)
            assert int(found[2]) == len(message.octets.replace(b"\n", b"\r\n"))


def test_the_folder_is_made_anew_and_is_private(tmp_path: Path) -> None:
    """Each demo starts from the same state; its config has no error and no warning."""
    for _ in range(2):
        place = demo.make_place(tmp_path, 4711)
        (place / "Maildir" / "new" / "left-over").touch()
    place = demo.make_place(tmp_path, 4711)
    assert list(tmp_path.iterdir()) == [place]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    files = [path for folder in ("new", "cur") for path in (place / "Maildir" / folder).iterdir()]
    assert {path.name for path in files} == {message.name for message in messages()}
    checked = reading.read(str(place / "gpop.toml"))
    assert not checked.errors + checked.warnings
    assert checked.config().broker.listen == ["127.0.0.1:4711"]


def test_the_account_is_whoever_runs_the_demo(tmp_path: Path) -> None:
    """Its ids are our own, so that it works without root; the password is not kept as it is."""
    place = demo.make_place(tmp_path, 4711)
    accounts = PasswdFile(str(place / "passwd"))
    accounts.refresh()
    entry = accounts.lookup(demo.NAME.encode())
    assert not accounts.problems
    assert entry is not None
    assert (entry.uid, entry.gid, entry.home) == (os.geteuid(), os.getegid(), os.fsencode(place))
    assert entry.password.startswith(b"{CRYPT}$")


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two demos at once get two ports, and so two folders."""
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo, "FIRST_PORT", port)
        assert port < demo._free_port() < port + demo.PORTS_TRIED


def test_a_second_demo_on_a_port_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It made the folder anew, from which the first one served, and only then found the port taken."""
    # Root would become somebody else first.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = tmp_path / f"gpop-demo-{port}"
        (place / "Maildir").mkdir(parents=True)
        for wanted, words in ((port, "is taken, maybe by another demo"), (70000, "a number from 1 to 65535")):
            assert demo.run(argparse.Namespace(port=wanted, directory=str(tmp_path))) == 1
            assert words in capsys.readouterr().err
        assert (place / "Maildir").exists()


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    """No traceback, and a way out."""
    (tmp_path / "file").touch()
    with pytest.raises(demo.DemoFailed, match="--directory"):
        demo.make_place(tmp_path / "file", 4711)


# The real thing


class Demo:
    """A demo that runs: what it printed, and the events in its log."""

    def __init__(self, pid: int, output: Path) -> None:
        self.pid = pid
        self.output = output

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def sessions(self) -> list[dict[str, object]]:
        lines = [line for line in self.text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == "session_closed"]

    def commands(self) -> list[str]:
        """What it says to type, in the order in which it says so."""
        return re.findall(r"^  ((?:curl|python3) .*)$", self.text(), re.MULTILINE)


@contextmanager
def running_demo() -> Iterator[Demo]:
    """Run `gpop demo` in a folder that every user can reach; end it with SIGTERM."""
    # pytest's own folders are closed to the user that root becomes.
    had_cache = demo.ROOTS_DIRECTORY.exists()
    folder = Path(tempfile.mkdtemp(prefix="gpop-test-demo-"))
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind((demo.HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-I", MAIN, "demo", "--port", str(port), "--directory", str(folder / "demo")]
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd="/")
    running = Demo(process.pid, folder / "output")
    try:
        wait_until(lambda: process.poll() is not None or answers(port), DEADLINE_S, running.text)
        if "cannot reach" in running.text():
            pytest.skip("root's Python is in a folder that no other user can enter, and there is no other")
        assert process.poll() is None, running.text()
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)
        if not had_cache and os.geteuid() == 0:
            shutil.rmtree(demo.ROOTS_DIRECTORY)


def answers(port: int) -> bool:
    try:
        client = poplib.POP3(demo.HOST, port, timeout=5)
    except (OSError, poplib.error_proto):
        return False
    client.quit()
    return True


def test_the_demo_does_what_it_says() -> None:
    """
    The commands it prints work, and the second poll is a hit.

    Started by root it serves as somebody else, and every process of it does.
    """
    with running_demo() as running:
        commands = running.commands()
        assert [command.split()[0] for command in commands] == ["curl", "python3", "curl"]
        list_with_curl, ask_with_python, read_with_curl = commands
        for number in (1, 2):
            assert output_of(ask_with_python) == b"12 452307\n"
            wait_until(lambda number=number: len(running.sessions()) == number, DEADLINE_S, running.text)
        assert [event["cache"] for event in running.sessions()] == ["rebuild", "hit"]
        assert "no jail" in running.text()
        if not shutil.which("curl"):
            pytest.skip("the rest needs curl")
        assert output_of(list_with_curl).splitlines()[-1].startswith(b"12 ")
        sixth = list(messages())[5].octets
        assert output_of(read_with_curl).replace(b"\r\n", b"\n") == sixth
        wait_until(lambda: len(running.sessions()) == 4, DEADLINE_S, running.text)
        output_of(ask_with_python)
        wait_until(lambda: len(running.sessions()) == 5, DEADLINE_S, running.text)
        assert [event["cache"] for event in running.sessions()][2:] == ["hit", "hit", "refresh"]


def output_of(command: str) -> bytes:
    """What a command prints that the demo says to type, in a shell as there."""
    command = re.sub("^python3", sys.executable, command)
    return subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=DEADLINE_S).stdout


def test_root_hands_the_demo_to_somebody_else() -> None:
    """No process of the demo has root's rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it is about what the demo does when root starts it")
    with running_demo() as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert len(children) == 3, "auth, one front, and the log's"
        for pid in (running.pid, *children):
            ids = re.findall(r"^[UG]id:\s(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert len(ids) == 2
            assert not {"0"} & {each for line in ids for each in line.split()}
