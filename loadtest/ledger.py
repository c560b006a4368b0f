"""
What has to be in each maildrop, what its next session must say, and what the server's log must show.

Each maildrop has one user, in one process, and only the postman besides; so everything that a
session answers is known beforehand, to the octet, and so is what the statcache does:

    rebuild   in the first session (the cache is removed before)
    refresh   if something was delivered, removed, or moved to cur/ since the last login
    hit       else

For that to hold without exception nothing is delivered while a login is under way (`login_gate`),
and no login begins in the tick of the file system's clock in which the maildrop has changed
(`wait_for_clock`): there gpop would have to look once more, in the next session (docs/statcache.md, racy).

Knows no sockets and nothing of locust. Executed by locust's processes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field

import gevent
from gevent.lock import BoundedSemaphore

from loadtest.mail import Mail, digest, on_the_wire
from loadtest.site import Account, Clock, deliver

HIT, REFRESH, REBUILD, UNSURE = "hit", "refresh", "rebuild", "unsure"
# Stamps of whole seconds take one; what is stamped with the future is waited for in vain.
CLOCK_WAIT_S = 3.0
SETTLING_S = 20.0
SETTLING_POLL_S = 0.01


class Wrong(Exception):
    """What the server answered, or what lies in a Maildir, is not what it has to be."""


@dataclass(slots=True, eq=False)
class Message:
    """One message that is in a maildrop; there is one object for each."""

    base: str  # the name of its file without flags, which is its unique-id
    octets: int
    digest: bytes
    folder: str
    received: bool = False  # it was retrieved in a session that ended with QUIT


@dataclass(slots=True)
class Tally:
    """Counts of a run: what is to be found in the log again, and where the mail went."""

    cache: Counter[str] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)
    close_reason: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    removed: int = 0
    # What a killed process has cost: when, and 1 if it was within a session, 0 before the login was answered.
    cut_off: list[tuple[float, int]] = field(default_factory=list)
    # By behaviour: messages that came, were retrieved, were retrieved again, and are there at the end.
    delivered: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    received_again: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)


class Maildrop:
    """
    One account's maildrop, as it should be.

    Attributes:
        account: whose it is.
        messages: by unique-id.
        login_gate: held while a login is under way; who delivers takes it.
        delivered: how many have come, those that were there at the beginning included.
        removed_in_doubt: of those that were removed, how many by a QUIT that was not answered.
    """

    def __init__(self, account: Account, clock: Clock) -> None:
        self.account = account
        self.messages: dict[str, Message] = {}
        self.login_gate = BoundedSemaphore()
        self.delivered = 0
        self.removed_in_doubt = 0
        self._clock = clock
        self._expected = REBUILD
        self._may_be_removed: set[str] = set()
        self._may_be_moved: set[str] = set()

    # How it starts

    def adopt(self) -> None:
        """Take over what lies in the Maildir, and remove its statcache: so the first session builds one."""
        (self.account.maildir / ".statcache").unlink(missing_ok=True)
        for folder in ("new", "cur"):
            for name in os.listdir(self.account.maildir / folder):
                gevent.sleep(0)  # the others' answers are being timed
                sent = on_the_wire((self.account.maildir / folder / name).read_bytes())
                base = name.partition(":")[0]
                self.messages[base] = Message(base, len(sent), digest(sent), folder)
        self.delivered = len(self.messages)

    # Mail that comes

    def receive(self, mail: Mail) -> None:
        """Deliver a message. Not while a login is under way."""
        deliver(self.account, mail)
        self.messages[mail.base] = Message(mail.base, mail.octets, mail.digest, "new")
        self.delivered += 1
        self._changed()

    def _changed(self) -> None:
        if self._expected == HIT:
            self._expected = REFRESH

    # Sessions

    def wait_for_clock(self) -> None:
        """Wait until the file system's clock has stepped since the last change of the folders."""
        folders = [os.stat(self.account.maildir / folder) for folder in ("new", "cur")]
        changed_ns = max(max(each.st_mtime_ns, each.st_ctime_ns) for each in folders)
        deadline = time.monotonic() + CLOCK_WAIT_S
        while self._clock.now_ns() <= changed_ns and time.monotonic() < deadline:
            gevent.sleep(0.001)

    def next_outcome(self) -> str:
        """What the statcache will do in the next session."""
        self._resolve_doubts()
        return self._expected

    def logged_in(self) -> list[Message]:
        """A login was accepted: return the messages of the session, in message order."""
        self._expected = HIT
        return sorted(self.messages.values(), key=lambda each: (int(each.base.partition(".")[0]), each.base))

    def login_failed(self) -> None:
        """Nobody knows how far the server came: what the statcache does next can't be told."""
        self._expected = UNSURE

    def updated(self, removed: list[Message], retrieved: list[Message]) -> None:
        """A QUIT was carried out."""
        for message in removed:
            del self.messages[message.base]
        moved = [each for each in retrieved if each.base in self.messages and each.folder == "new"]
        for message in moved:
            message.folder = "cur"
        if removed or moved:
            self._changed()

    def update_failed(self, removed: list[Message], retrieved: list[Message]) -> None:
        """A QUIT was sent, and nobody knows whether it was carried out; the disk will tell."""
        # `updated` may have been believed already.
        self.messages.update((message.base, message) for message in removed)
        self._may_be_removed.update(message.base for message in removed)
        self._may_be_moved.update(message.base for message in retrieved)
        self._expected = UNSURE

    def _resolve_doubts(self) -> None:
        """Believe the disk of messages whose QUIT has failed: they are still there, or not."""
        if not (self._may_be_removed or self._may_be_moved):
            return
        found = self.on_disk()
        for base in self._may_be_removed - found.keys():
            # A message that was only retrieved has to be there whatever became of the QUIT.
            if self.messages.pop(base, None):
                self.removed_in_doubt += 1
        for base in self._may_be_moved & found.keys() & self.messages.keys():
            self.messages[base].folder = found[base][0]
        self._may_be_removed.clear()
        self._may_be_moved.clear()

    # What lies on the disk

    def on_disk(self) -> dict[str, tuple[str, str]]:
        """Folder and file name by unique-id."""
        return {
            name.partition(":")[0]: (folder, name)
            for folder in ("cur", "new")
            for name in os.listdir(self.account.maildir / folder)
        }

    def file(self, message: Message) -> bytes:
        """What the file of a message holds."""
        folder, name = self.on_disk()[message.base]
        return (self.account.maildir / folder / name).read_bytes()

    def wait_until_settled(self) -> None:
        """
        Wait until an UPDATE has been carried out whose reply nobody has waited for.

        Raises:
            Wrong: it was not, after a long while.
        """
        deadline = time.monotonic() + SETTLING_S
        while difference := self._difference():
            if time.monotonic() > deadline:
                raise Wrong(f"{SETTLING_S:g} s after a QUIT that was sent: {difference}")
            gevent.sleep(SETTLING_POLL_S)

    def _difference(self) -> str:
        """The first difference between what should lie in the folders and what does."""
        found = self.on_disk()
        for base, message in self.messages.items():
            if base not in found:
                return f"{base} is gone"
            if found[base][0] != message.folder:
                return f"{base} is in {found[base][0]}/ and not in {message.folder}/"
        for base in found.keys() - self.messages.keys():
            return f"{base} is there, and should not be"
        return ""

    def check_disk(self) -> None:
        """
        Compare the Maildir with what it should be, octet for octet.

        Raises:
            Wrong: the first difference.
        """
        self._resolve_doubts()
        if difference := self._difference():
            raise Wrong(difference)
        for base, (folder, name) in self.on_disk().items():
            gevent.sleep(0)
            file = (self.account.maildir / folder / name).read_bytes()
            if digest(on_the_wire(file)) != self.messages[base].digest:
                raise Wrong(f"{base} has other octets than it was delivered with")
