"""
A server under load: its files, its processes, its meter. What kinds of server there are is in `kinds`.

A `Server` has a folder of its own with config, accounts and log, listens on loopback on a port of the
kernel's choice, and is ended to its last process by pid. Nothing outside the bench's own folder is changed:
where a server reads a fixed path in /etc, it gets a mount namespace in which another file lies there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

from loadtest.bench import cpu
from loadtest.bench.accounts import Accounts
from loadtest.bench.ending import ending
from loadtest.bench.maildrops import Tree

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
# Where the peers' programs are, whatever the caller's environment says.
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotHere(Exception):
    """This server can't be measured here; the text says why."""


class Server:
    """One server; a kind of server says what is written into its folder, and what is started."""

    one_uid = False  # all mail belongs to one user
    cores: frozenset[int] = frozenset()  # the only ones that its processes run on; none: all
    # Connections that a client may hold idle before it logs in, without a limit of the server in the way.
    most_connections = 300

    def __init__(self, name: str, folder: Path, accounts: Accounts) -> None:
        self.name = name
        self.folder = folder / re.sub(r"[^\w.@-]+", "_", name)
        self.accounts = accounts
        self.tree = Tree(folder / f"{self.folder.name}.mail", self.one_uid)
        self.port = 0
        # The files of a chain and its key: then TLS is spoken, by STLS and on a port of its own.
        self.certificate: tuple[str, str] | None = None
        self.tls_port = 0
        self.meter: cpu.Meter = cpu.ProcessTree()
        self.process: subprocess.Popen[bytes] | None = None

    # What the kinds of server differ in

    @classmethod
    def check(cls) -> str:
        """
        Return what it calls itself, with its version.

        Raises:
            NotHere: it is not installed, or can't be run by us.
        """
        raise NotImplementedError

    def prepare(self) -> list[str]:
        """Write the files that the server needs into its folder; return its command."""
        raise NotImplementedError

    def mounts(self) -> list[tuple[Path, str]]:
        """Write what has to lie at a fixed path for it; returns (path, where it has to be)."""
        return self.accounts.mounts(self.folder, self.tree)

    def by_process(self) -> dict[str, float]:
        """
        CPU seconds so far by kind of process, where the kinds are known.

        Only user and system time together: the kernel estimates the two by its clock ticks, and of a
        process that lives for less than a tick it says that all was user time.
        """
        return {}

    # What they have in common

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def start(self, meter: str) -> None:
        """
        Start it, and wait for its greeting.

        Raises:
            NotHere: it did not come up.
        """
        self.folder.mkdir(mode=0o755)
        self.port = _free_port()
        self.tls_port = _free_port() if self.certificate else 0
        command = self.prepare()
        mounts = self.mounts()
        if mounts:
            command = _in_namespace(mounts, command)
        if self.cores:
            command = ["taskset", "--cpu-list", ",".join(map(str, sorted(self.cores))), *command]
        with ending.held(), open(self.log, "ab") as log:
            self.meter = cpu.new_meter(f"{os.getpid()}-{self.port}-{self.folder.name}", meter)
            self.process = subprocess.Popen(
                self.meter.enter(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
            self.meter.started(self.process.pid)
        self._wait_for_greeting(self.process)

    def _wait_for_greeting(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as sock:
                if sock.recv(512).startswith(b"+OK"):
                    sock.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.05)
        self.stop()
        log = self.log.read_text(errors="replace")[-2000:]
        raise NotHere(f"{self.name} did not come up; its log ends with\n{log}")

    def stop(self) -> None:
        """End every process of it."""
        with ending.held():
            self._stop()

    def _stop(self) -> None:
        if self.process is None:
            self.meter.remove()
            return
        known = cpu.identified(self.meter.pids())
        self.process.terminate()
        self._wait_until_gone(self.process, known)
        for pid, _ in known & cpu.identified(pid for pid, _ in known) | cpu.identified(self.meter.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_until_gone(self.process, known)
        self.process.wait()
        self.process = None
        self.meter.remove()

    def _wait_until_gone(self, process: subprocess.Popen[bytes], known: set[tuple[int, str]]) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            left = known & cpu.identified(pid for pid, _ in known)
            if process.poll() is not None and not left and not self.meter.pids():
                return
            time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _in_namespace(mounts: list[tuple[Path, str]], command: list[str]) -> list[str]:
    """Return the command that runs `command` where other files lie at some paths."""
    binds = [f"mount --bind {shlex.quote(str(path))} {shlex.quote(where)}" for path, where in mounts]
    script = " && ".join([*binds, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh", *command]
