"""
The servers under load: gpop (also of an earlier commit), and Dovecot in three configurations.

A `Server` has a folder of its own with config, passwd-file and log, listens on loopback on a port of the
kernel's choice, and is ended to its last process by pid. Configurations are as small as they can be, and
what a figure depends on is said in each. Nothing outside the bench's own folder is changed: where a server
reads a fixed path in /etc, it gets a mount namespace with another file there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

from loadtest.bench import cpu
from loadtest.bench.accounts import Accounts
from loadtest.bench.load import TOP
from loadtest.bench.maildrops import FIRST_UID, ROOT, Tree

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0


class NotHere(Exception):
    """This server can't be measured here; the text says why."""


class Server:
    """One server: its files, its processes, its meter."""

    one_uid = False
    start_timeout_s = START_TIMEOUT_S

    def __init__(self, name: str, folder: Path, accounts: Accounts) -> None:
        self.name = name
        self.folder = folder / name
        self.accounts = accounts
        self.tree = Tree(folder / f"{name}.mail", self.one_uid)
        self.port = 0
        self.meter: cpu.Meter = cpu.ProcessTree()
        self.process: subprocess.Popen[bytes] | None = None

    # What the kinds of server differ in

    def prepare(self) -> list[str]:
        """Write the files that the server needs into its folder; return its command."""
        raise NotImplementedError

    def mounts(self) -> list[tuple[Path, str]]:
        """Return what has to lie at a fixed path for it: (file or folder, path)."""
        return self.accounts.mounts(self.folder, self.tree)

    def version(self) -> str:
        """Return what it calls itself."""
        raise NotImplementedError

    # What they have in common

    def start(self, meter: str = "auto") -> None:
        """Start it, and wait for its greeting."""
        self.folder.mkdir(mode=0o755)
        self.port = _free_port()
        command = self.prepare()
        mounts = self.mounts()
        if mounts:
            command = [*_in_namespace(mounts), *command]
        self.meter = cpu.new_meter(self.name, meter)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.meter.enter(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self.meter.started(self.process.pid)
        self._wait_for_greeting()

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def _wait_for_greeting(self) -> None:
        assert self.process
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as sock:
                if sock.recv(512).startswith(b"+OK"):
                    sock.sendall(b"QUIT\r\n")
                    return
            time.sleep(0.05)
        log = self.log.read_text(errors="replace")[-2000:]
        self.stop()
        raise NotHere(f"{self.name} did not come up; its log ends with\n{log}")

    def stop(self) -> None:
        """End every process of it."""
        if self.process is None:
            return
        pids = self.meter.pids()
        self.process.terminate()
        self._wait_until_gone()
        # Without a control group, who lost its parent meanwhile is no descendant any more.
        for pid in {*pids, *self.meter.pids()} if self.meter.kind != "/proc" else _still(pids, self.folder):
            with contextlib.suppress(ProcessLookupError):
                if pid in self.meter.pids() or self.meter.kind == "/proc":
                    os.kill(pid, signal.SIGKILL)
        self._wait_until_gone()
        self.process.wait()
        self.meter.remove()
        self.process = None

    def _wait_until_gone(self) -> None:
        assert self.process
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline and (self.process.poll() is None or self.meter.pids()):
            time.sleep(0.02)
