"""
A real gpop under test: its files in a folder of its own, its processes, its log, its end.

`Site` is what an administrator has (config, passwd-file, Maildirs); `Server` is
`gpop serve` running on it, on a port of the kernel's choice. As root the accounts get ids
that belong to no user of the machine; without root there is one account, our own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import poplib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = os.geteuid() == 0
FIRST_TEST_UID = 61000
PASSWORD = "open sesame"
SYS_PIDFD_GETFD = 438
# No peer and no maildrop, however odd, may be the cause of one of these.
FAULTS = (
    "auth_fault",
    "frame_rejected",
    "log_line_rejected",
    "log_lines_dropped",
    "process_ended",
    "process_fault",
    "session_died",
    "session_unreported",
)
_counter = itertools.count(1)


class Site:
    """A config, a passwd-file with accounts, and their homes."""

    def __init__(self, accounts: int = 1, one_uid: bool = False, **settings: object) -> None:
        self.one_uid = one_uid
        # Not pytest's tmp_path: that is root's alone, and the mail users must get through.
        self.path = Path(tempfile.mkdtemp(prefix="gpop-test-"))
        self.path.chmod(0o755)
        self.settings = settings
        self.passwd = self.path / "passwd"
        self.config = self.path / "gpop.toml"
        self.names = [f"user{n}" for n in range(accounts if ROOT else 1)]
        for name in self.names:
            self.make_home(name)
        if not ROOT:
            (self.path / "run").mkdir()  # root's broker makes it
        self.write_passwd()
        self.write_config()

    def uid(self, name: str) -> int:
        """The uid of an account, which is its gid as well."""
        return FIRST_TEST_UID + self._number(name) if ROOT else os.geteuid()

    def gid(self, name: str) -> int:
        """The gid of an account."""
        return FIRST_TEST_UID + self._number(name) if ROOT else os.getegid()

    def _number(self, name: str) -> int:
        return 0 if self.one_uid else int(name.removeprefix("user"))

    def home(self, name: str = "user0") -> Path:
        """The home of an account."""
        return self.path / "home" / name

    def maildir(self, name: str = "user0") -> Path:
        """The Maildir of an account."""
        return self.home(name) / "Maildir"

    def make_home(self, name: str) -> None:
        """Make a home with an empty Maildir."""
        for folder in ("", "Maildir", "Maildir/new", "Maildir/cur", "Maildir/tmp"):
            path = self.home(name) / folder
            path.mkdir(parents=True, exist_ok=True)
            self.own(path, name)
            path.chmod(0o700)

    def own(self, path: Path, name: str) -> None:
        """Give a file to an account."""
        if ROOT:
            os.chown(path, self.uid(name), self.gid(name), follow_symlinks=False)

    def write_passwd(self) -> None:
        """Write the passwd-file anew."""
        lines = [
            f"{name}:{{PLAIN}}{PASSWORD}:{self.uid(name)}:{self.gid(name)}::{self.home(name)}::"
            for name in self.names
        ]
        self.passwd.write_text("\n".join(lines) + "\n")
        self.passwd.chmod(0o600)

    def write_config(self, **changes: object) -> None:
        """Write gpop.toml; settings are given as section__key=value."""
        self.settings |= changes
        settings = {
            "server__listen": ["127.0.0.1:0"],
            "server__user": "nobody",
            "server__grace_time_s": 1,
            "server__run_dir": str(self.path / "run"),
            "accounts__first_valid_uid": 1,
            "accounts__first_valid_gid": 1,
            "accounts__refusal_time_s": 0.2,
            "log__format": "json",
        } | self.settings
        sections: dict[str, list[str]] = {}
        for key, value in settings.items():
            section, name = key.split("__")
            written = json.dumps(value)
            sections.setdefault(section.replace("_", "."), []).append(f"{name} = {written}")
        text = "".join(f"[{section}]\n" + "\n".join(lines) + "\n\n" for section, lines in sections.items())
        self.config.write_text(text + f'[[accounts.sources]]\ntype = "passwd-file"\npath = "{self.passwd}"\n')

    def deliver(
        self, octets: bytes, name: str = "user0", base: str | None = None, folder: str = "new"
    ) -> str:
        """Deliver a message as an MDA does, by a rename; returns its file name."""
        number = next(_counter)
        base = base or f"{int(time.time())}.M{number:06d}P{os.getpid()}.test"
        temporary = self.maildir(name) / "tmp" / base
        temporary.write_bytes(octets)
        self.own(temporary, name)
        temporary.rename(self.maildir(name) / folder / base)
        return base

    def files(self, name: str = "user0", folder: str | None = None) -> list[str]:
        """The file names in new/ and cur/ (or one of them), sorted."""
        folders = [folder] if folder else ["new", "cur"]
        return sorted(file for each in folders for file in os.listdir(self.maildir(name) / each))

    def empty(self, name: str = "user0") -> None:
        """Give an account a new, empty Maildir."""
        shutil.rmtree(self.maildir(name), ignore_errors=True)
        self.make_home(name)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path)


def gpop_command(*arguments: str, program: Path | None = None) -> list[str]:
    """The command line of this gpop, or of another installation's __main__.py."""
    return [sys.executable, *(["-I", str(program)] if program else ["-m", "gpop"]), *arguments]


class Server:
    """`gpop serve` on a site, started and ready; `with` stops it. `log_path`: if not on its output."""

    def __init__(
        self,
        site: Site,
        ready: bool = True,
        log_path: Path | None = None,
        program: Path | None = None,
        started_by: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Start it. `program`: the __main__.py of another installation than this one.

        `started_by`: a command that becomes, in the same process, the command that follows it.
        """
        self.site = site
        self.output_path = site.path / f"log{next(_counter)}"
        self.log_path = log_path or self.output_path
        with open(self.output_path, "wb") as log:
            self.process = subprocess.Popen(
                [*started_by, *gpop_command("serve", "--config", str(site.config), program=program)],
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if ready:
            started = self.wait_for_event("broker_started")
            self.port = int(started["listen"][0].rpartition(":")[2])
            self.addresses = started["listen"]
            self.tls_port = int(started.get("listen_tls", [":0"])[0].rpartition(":")[2])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def events(self, *names: str) -> list[dict]:
        """The log so far, what fronts have said until now included, or the events with these names in it."""
        self.await_log()
        events = []
        if not self.log_path.exists():
            return []  # gpop makes it, or a syslog daemon does
        for line in self.log_path.read_text().splitlines(keepends=True):
            # The last one may be half written when it is read.
            if line.startswith("{") and line.endswith("\n"):
                event = json.loads(line)
                if not names or event["event"] in names:
                    events.append(event)
        return events

    def await_log(self) -> None:
        """Wait until the log process has written what it was told until now (not for one that is stalled)."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(map(_unread_octets, self.pids("log"))), 2.0)

    def log_text(self) -> str:
        """The log so far, as it stands there."""
        self.await_log()
        return self.log_path.read_text()

    def wait_for_event(self, name: str, count: int = 1, timeout_s: float = 30.0, **fields: object) -> dict:
        """Wait until the log holds `count` events of that name with these fields; returns the last."""

        def matching() -> list[dict]:
            return [
                event for event in self.events(name) if all(event.get(key) == fields[key] for key in fields)
            ]

        def enough() -> bool:
            if self.process.poll() is not None and len(matching()) < count:
                raise AssertionError(f"gpop ended before {name}:\n{self.output_path.read_text()}")
            return len(matching()) >= count

        def what() -> str:
            return f"{count} of {name} {fields}:\n{self.log_path.read_text()[-4000:]}"

        wait_until(enough, timeout_s, what)
        return matching()[count - 1]

    def faults(self) -> list[dict]:
        """The events so far that say that gpop itself was wrong, whatever peers and maildrops were."""
        return [event for event in self.events() if event["event"] in FAULTS or event.get("fault")]

    def children(self) -> dict[int, str]:
        """The processes under the broker: pid -> "front", "auth", "metrics", "log" or "session"."""
        found = {}
        for child in children_of(self.process.pid):
            try:
                arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            for kind in ("front", "auth", "metrics", "log"):
                if f"{kind}-process".encode() in arguments:
                    found[child] = kind
                    break
            else:
                found[child] = "session"
        return found

    def pids(self, kind: str) -> list[int]:
        """The pids of the fronts, of auth, or of the sessions."""
        return [pid for pid, name in self.children().items() if name == kind]

    def pop(self, name: str = "user0", password: str = PASSWORD, timeout_s: float = 20) -> poplib.POP3:
        """Log in with Python's poplib."""
        client = poplib.POP3("127.0.0.1", self.port, timeout=timeout_s)
        client.user(name)
        client.pass_(password)
        return client

    def connect(self, timeout_s: float = 20) -> Dialogue:
        """Connect, and read the greeting."""
        dialogue = Dialogue(socket.create_connection(("127.0.0.1", self.port), timeout_s))
        dialogue.greeting = dialogue.line()
        return dialogue

    def login(self, name: str = "user0", password: str = PASSWORD) -> Dialogue:
        """Connect and log in by hand."""
        dialogue = self.connect()
        dialogue.ask(f"USER {name}")
        answer = dialogue.ask(f"PASS {password}")
        assert answer.startswith(b"+OK"), answer
        return dialogue

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 40) -> int:
        """Stop it, and make sure that nothing of it is left; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            for pid in [self.process.pid, *self.children()]:
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise


class Dialogue:
    """A connection spoken by hand, line by line."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.file = sock.makefile("rb")
        self.greeting = b""

    def __enter__(self) -> Dialogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, octets: bytes) -> None:
        """Send octets as they are."""
        self.socket.sendall(octets)

    def line(self) -> bytes:
        """The next line, without its CRLF; empty at the end of the connection."""
        return self.file.readline().removesuffix(b"\r\n")

    def ask(self, command: str) -> bytes:
        """Send a command and return the first line of the answer."""
        self.send(command.encode() + b"\r\n")
        return self.line()

    def lines(self) -> list[bytes]:
        """The lines of a multi-line response up to its terminator, as they stand on the wire."""
        lines = []
        while (line := self.line()) != b".":
            assert line or self.file.peek(1), "the connection ended within a multi-line response"
            lines.append(line)
        return lines

    def rest(self) -> bytes:
        """Everything until the server closes."""
        return self.file.read()

    def close(self) -> None:
        """Close the connection."""
        self.file.close()
        self.socket.close()


def _unread_octets(pid: int) -> int:
    """How much lies in the pipes that a process reads."""
    unread = 0
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[3]
            if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY and os.readlink(link).startswith("pipe:"):
                pipe = os.open(link, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    unread += struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
                finally:
                    os.close(pipe)
    return unread


def socket_of(pid: int, fd: int) -> socket.socket:
    """A copy of a process' socket; only root may have that."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    taken = libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
    os.close(pidfd)
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=taken)


def wait_until(condition, timeout_s: float = 20.0, what=lambda: "a condition") -> None:
    """Wait until `condition()` holds; fails with what it waited for."""
    deadline = time.monotonic() + timeout_s
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what() if callable(what) else what}")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
