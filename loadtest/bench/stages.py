"""
Where scenarios take place: a folder, servers with mail of their own in it, and somebody who makes load.

What is made is noted for removal in the same step, twice: a stage is removed when it is done with, and
whatever is left of any of them when the run ends, however it does.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.bench import maildrops
from loadtest.bench.accounts import Accounts
from loadtest.bench.ending import ending
from loadtest.bench.load import Load
from loadtest.bench.maildrops import Post, Profile
from loadtest.bench.servers import Server

Kinds = dict[str, type[Server]]


def progress(what: str) -> None:
    """Say on stderr what is going on; the report is on stdout."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


class Stage:
    """Servers that run on mail of their own."""

    def __init__(self, folder: Path, meter: str, load: Load, accounts: Accounts) -> None:
        self.folder = folder
        self.accounts = accounts
        self.load = load
        self.servers: list[Server] = []
        self.post: Post
        self._meter = meter
        self._removals = contextlib.ExitStack()

    def new(self, kinds: Kinds) -> list[Server]:
        """Return servers of these kinds, not started yet."""
        return [kind(name, self.folder, self.accounts) for name, kind in kinds.items()]

    def start(self, servers: list[Server], profiles: list[Profile]) -> None:
        """
        Make everybody's mail, and start the servers.

        Raises:
            NotHere: one of them did not come up.
        """
        self._removals.callback(maildrops.remove, self.folder)
        messages = sum(each.count * each.accounts for each in profiles)
        progress(f"making {messages:,} messages for each of {len(servers)} servers")
        self.post = Post(self.folder, profiles)
        for server in servers:
            self.post.fill(server.tree)
        for server in servers:
            self._removals.callback(server.stop)
            server.start(self._meter)
        self.servers = servers

    def close(self) -> None:
        """End the servers and remove their mail, unless that was done."""
        with ending.held():
            self._removals.close()


@dataclass
class Ground:
    """What every scenario is told about the run, and where it gets its stages."""

    folder: Path
    kinds: Kinds
    rounds: int
    seconds: float
    concurrency: int
    idle_connections: int
    idle_sessions: int
    pam: str
    meter: str
    removals: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def new_load(self) -> Load:
        """Start one more process that makes load."""
        with ending.held():
            load = Load()
            self.removals.callback(load.close)
        return load

    @contextlib.contextmanager
    def stage(self, pam: str | None = None) -> Iterator[Stage]:
        """An empty stage, which is removed afterwards."""
        accounts = Accounts(self.pam if pam is None else pam)
        load = self.new_load()
        with ending.held():
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            folder.chmod(0o755)  # the mail users have to get through
            stage = Stage(folder, self.meter, load, accounts)
            self.removals.callback(stage.close)
        try:
            yield stage
        finally:
            stage.close()
            load.close()


@contextlib.contextmanager
def ground(make: Callable[[Path], Ground], parent: Path | None) -> Iterator[Ground]:
    """
    A temporary folder for a run, and everything that it came to.

    Raises:
        Interrupted: afterwards, if a signal came; by then everything is removed.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpop-bench-", dir=parent))
    made = None
    try:
        folder.chmod(0o755)
        made = make(folder)
        with ending.interruptible():
            yield made
    finally:
        # No signal interrupts from here on.
        progress("removing everything")
        if made:
            made.removals.close()
        maildrops.remove(folder)
        if folder.exists():
            progress(f"could not remove {folder}")
