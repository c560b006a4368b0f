"""
What happens to the server while users come: reloads, upgrades, kills; and what may come of it.

Nobody may notice a reload or an upgrade. A process that is killed costs its own connections, and
nothing else: `excused` says which of the requests that were cut off are accounted for by that.
Knows the server's process, its children and its log; nothing of locust, POP3 or maildrops. Executed by
the load test's command, which has started the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.agreement import COST_OF_A_KILL
from loadtest.installation import Installation

FIRST_SESSION_TIMEOUT_S = 60.0
# A reload takes a second on a machine that has time; its fronts and auth are started one after the other.
RENEWAL_TIMEOUT_S = 60.0
POLL_S = 0.02
FAILED = ("reload_failed", "upgrade_failed", "config_rejected")
# Of these there must be none if no process was killed.
FAULTS = ("auth_fault", "frame_rejected", "log_lines_dropped", "process_fault", *COST_OF_A_KILL)
# Random deeds. A session is killed far more often than what lasts: a front that never gets
# older than a minute would show nothing of its memory, and is started again later and later.
DEEDS = ("session",) * 15 + ("front",) * 2 + ("auth", "log") + ("reload",) * 2
LASTING = ("front", "auth", "log")
# Whose end costs nobody anything.
UNNOTICED = ("reload", "log")
# Sessions are short: one is looked for so often and for so long, and is killed at any moment of its life.
SESSION_POLL_S = 0.002
SESSION_WAIT_S = 2.0
SESSION_LIFE_S = 0.03
# Who logs in while a front or auth is killed may be cut off at once, or when those that queue are looked at.
EXCUSED_FOR_S = 5.0


class TroubleFailed(Exception):
    """The server did not take what was asked of it; the text says what."""


class Server:
    """The server of a run: a broker to send signals to, its children, and its log."""

    def __init__(self, pid: int, log: Path, installation: Installation | None = None) -> None:
        self.pid = pid
        self.log = log
        self._installation = installation
        self._upgrades = 0

    # Reloads and upgrades

    def reload(self) -> str:
        """
        SIGHUP, and wait until it is done.

        Raises:
            TroubleFailed: it was not.
        """
        took_s = self._renew(signal.SIGHUP, ["reload_finished"])
        return f"reload, {took_s:.1f} s"

    def upgrade(self) -> str:
        """Install another version, SIGUSR2, wait until it serves. Raises TroubleFailed as `reload` does."""
        assert self._installation
        self._upgrades += 1
        first = self._installation.version.partition("+")[0]
        version = f"{first}+{self._upgrades}"
        self._installation.update(version)
        took_s = self._renew(signal.SIGUSR2, ["upgrade_finished", "reload_finished"], version)
        return f"upgrade to {version}, {took_s:.1f} s"

    def _renew(self, number: int, awaited: list[str], version: str = "") -> float:
        started = time.monotonic()
        events = self._following()
        os.kill(self.pid, number)
        while awaited:
            event = next(events, None)
            if event is None:
                if time.monotonic() - started > RENEWAL_TIMEOUT_S:
                    raise TroubleFailed(f"no {awaited[0]} within {RENEWAL_TIMEOUT_S:g} s")
                time.sleep(POLL_S)
            elif event["event"] in FAILED:
                raise TroubleFailed(json.dumps(event))
            elif event["event"] == awaited[0]:
                awaited.pop(0)
                if event.get("version", version) != version:
                    raise TroubleFailed(f"{event['version']} took over, and not {version}")
        return time.monotonic() - started

    def _following(self) -> Iterator[dict[str, Any] | None]:
        """What the log gets from now on; None whenever there is nothing yet."""
        start = self.log.stat().st_size
        return _events(self.log, start)

    def wait_for_a_session(self, ended: threading.Event) -> bool:
        """Wait until users have come; False if none do."""
        deadline = time.monotonic() + FIRST_SESSION_TIMEOUT_S
        events = self._following()
        while time.monotonic() < deadline and not ended.is_set():
            event = next(events, None)
            if event is None:
                time.sleep(POLL_S)
            elif event["event"] == "session_closed":
                return True
        return False

    # Processes

    def children(self) -> dict[int, str]:
        """The processes under the broker: "front", "auth", "log" or "session" by pid; no others."""
        found = {}
        own = _arguments(self.pid)
        for pid in children(self.pid):
            arguments = _arguments(pid)
            if arguments == own:
                found[pid] = "session"  # forked, not executed
            for kind in LASTING:
                if f"{kind}-process".encode() in arguments:
                    found[pid] = kind
        return found

    def lasting(self) -> dict[int, str]:
        """The processes whose memory must not grow."""
        return {self.pid: "broker"} | {
            pid: kind for pid, kind in self.children().items() if kind != "session"
        }

    def kill(self, kind: str) -> str:
        """SIGKILL for one process of a kind; returns "" if there is none."""
        pid = self._session() if kind == "session" else self._one_of(kind)
        if pid is None:
            return ""
        with contextlib.suppress(ProcessLookupError):
            # By its descriptor: the number may be another process's by now.
            descriptor = os.pidfd_open(pid)
            try:
                if pid in children(self.pid) and _is_alive(pid):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    return kind
            finally:
                os.close(descriptor)
        return ""

    def _one_of(self, kind: str) -> int | None:
        candidates = [pid for pid, found in self.children().items() if found == kind]
        return random.choice(candidates) if candidates else None

    def _session(self) -> int | None:
        """Wait for a session, and until some moment of its life."""
        deadline = time.monotonic() + SESSION_WAIT_S
        while time.monotonic() < deadline:
            if (pid := self._one_of("session")) is not None:
                time.sleep(random.uniform(0, SESSION_LIFE_S))
                return pid
            time.sleep(SESSION_POLL_S)
        return None


def _events(log: Path, start: int) -> Iterator[dict[str, Any] | None]:
    with open(log, "rb") as lines:
        lines.seek(start)
        rest = b""
        while True:
            rest += lines.readline()
            if not rest.endswith(b"\n"):
                yield None
                continue
            with contextlib.suppress(ValueError):
                event = json.loads(rest)
                if isinstance(event, dict) and "event" in event:
                    yield event
            rest = b""


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    """Whether it has not ended; as long as its end is not taken note of it is a child all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


class Trouble(threading.Thread):
    """
    Does one deed after the other, from the first session of a run on.

    Attributes:
        deeds: what was done, each with its time.
        problem: why it has ended too early, if it has.
    """

    def __init__(
        self, server: Server, plan: Iterator[tuple[float, Callable[[], str]]], seconds: float
    ) -> None:
        """`plan`: what to do when, in seconds from the first session. It lasts for `seconds`, or longer."""
        super().__init__(name="trouble", daemon=True)
        self.deeds: list[tuple[float, str]] = []
        self.problem = ""
        self._server = server
        self._plan = plan
        self._seconds = seconds
        self._ended = threading.Event()

    def run(self) -> None:
        if not self._server.wait_for_a_session(self._ended):
            self.problem = "there were no sessions"
            return
        started = time.monotonic()
        try:
            for due_s, deed in self._plan:
                if self._ended.wait(max(0.0, started + due_s - time.monotonic())):
                    return
                if done := deed():
                    self.deeds.append((time.time(), done))
                    print(f"{time.monotonic() - started:7.1f} s  {done}", flush=True)
            self._ended.wait(max(0.0, started + self._seconds - time.monotonic()))
        except (TroubleFailed, OSError) as error:
            self.problem = str(error)

    def end(self) -> None:
        self._ended.set()
        self.join()


def in_turn(
    server: Server, reloads: int, upgrades: int, seconds: float
) -> Iterator[tuple[float, Callable[[], str]]]:
    """Reloads and upgrades, mixed, at even distances."""
    deeds = [((number + 0.5) / reloads, server.reload) for number in range(reloads)]
    deeds += [((number + 0.5) / upgrades, server.upgrade) for number in range(upgrades)]
    deeds.sort(key=lambda deed: deed[0])
    for number, (_, deed) in enumerate(deeds, 1):
        yield seconds * number / (len(deeds) + 1), deed


def at_random(server: Server, every_s: float, seconds: float) -> Iterator[tuple[float, Callable[[], str]]]:
    """Kills and reloads, at random moments, as long as the users are there."""
    due_s = random.expovariate(1 / every_s)
    while due_s < seconds:
        deed = random.choice(DEEDS)
        yield due_s, server.reload if deed == "reload" else partial(server.kill, deed)
        due_s += random.expovariate(1 / every_s)


def in_log(log: Path) -> Counter[str]:
    """How often the log has each event."""
    found: Counter[str] = Counter()
    for event in _events(log, 0):
        if event is None:
            break
        found[event["event"]] += 1
    return found


def excused(cut_off: Sequence[Sequence[float]], deeds: Sequence[tuple[float, str]], log: Counter[str]) -> str:
    """
    Return why not every request that was cut off is accounted for by a process that was killed, or "".

    `cut_off`: when, and 1 if it was within a session, 0 before. A session that is killed costs one of the
    first kind. A front or auth costs no session at all, but the logins that are under way with it; the
    process that writes the log costs nothing.
    """
    within = sum(bool(in_session) for _, in_session in cut_off)
    if within > log["session_died"]:
        return f"{within} sessions were cut off, and {log['session_died']} were killed"
    kills = [when for when, done in deeds if not done.startswith(UNNOTICED)]
    for when, in_session in cut_off:
        if not in_session and not any(-1 <= when - kill <= EXCUSED_FOR_S for kill in kills):
            at = time.strftime("%H:%M:%S", time.localtime(when))
            return f"a login was cut off at {at}, and no kill was near"
    return ""


def told(deeds: Sequence[tuple[float, str]], cut_off: Sequence[Sequence[float]], log: Counter[str]) -> str:
    """What was done, what it has killed, and what that has cost, in a line."""
    counts = Counter(done.partition(",")[0] for _, done in deeds)
    done = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    within = sum(bool(in_session) for _, in_session in cut_off)
    died = f"{log['session_died']} sessions, {log['process_ended']} fronts, auths and log processes"
    cost = f"{within} sessions, {len(cut_off) - within} logins"
    return f"\nKilled, and reloaded: {done}. Died, by the log: {died}. Cut off: {cost}."
