"""
Descriptors, processes, memory and disks that really run out, under a real gpop.

What can't be had on a machine (control groups, loop devices) is skipped, saying why. `GPOP_TEST_FAULTS=all`
tries every step of a limit, where CI tries a few.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.processes import failing
from tests.processes.failing import Attempt, Drop, Lasting, mounted
from tests.serving import PASSWORD, ROOT, Server, Site, wait_until

pytestmark = pytest.mark.skipif(not ROOT, reason="needs root: it changes limits, control groups and mounts")

ALL = os.environ.get("GPOP_TEST_FAULTS") == "all"
GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def server():
    """gpop with one account, for all that give back what they took."""
    site = Site()
    try:
        with Server(site) as made:
            yield made
    finally:
        site.remove()


@pytest.mark.parametrize("kind", ["broker", "auth"])
def test_descriptors_run_out(server, kind):
    """A process, or the session that is forked from it, can open no more: the next login is served."""
    lasting = Lasting(server)
    served = 0
    for room in range(0, 30, 1 if ALL else 7):
        drop = Drop(server, Drop.STATES[room % 3])
        (pid,) = [server.process.pid] if kind == "broker" else server.pids(kind)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # A session closes what is its broker's: there the limit is counted from the bottom.
        most = room if kind == "broker" else failing.free_descriptor(pid) + room
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
        attempt = Attempt(drop)
        print(f"{kind} may have {most} descriptors: {attempt.cut.strip() or 'served'}")
        served += not attempt.cut
        with suppress(ProcessLookupError):  # auth may have been replaced
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        failing.after(attempt)
    assert served
    lasting.check()


def test_a_limit_below_what_the_broker_waits_for(server):
    """poll(2) refuses to wait for more descriptors than the limit allows; the broker went down with it."""
    lasting = Lasting(server)
    broker, drop = server.process.pid, Drop(server, "changed")
    before = resource.prlimit(broker, resource.RLIMIT_NOFILE)
    resource.prlimit(broker, resource.RLIMIT_NOFILE, (1, before[1]))
    attempt = Attempt(drop)
    resource.prlimit(broker, resource.RLIMIT_NOFILE, before)
    assert "[SYS/TEMP]" in attempt.cut
    failing.after(attempt)
    lasting.check()


@pytest.mark.parametrize("short, sender", [("auth", "front"), ("broker", "auth")])
def test_nobody_is_ended_for_a_login_that_a_process_had_no_descriptor_for(short, sender):
    """The logins are refused with [SYS/TEMP], one line says what is short, and everybody is still there."""
    site = Site()
    try:
        with Server(site) as server:
            drop, lasting = Drop(server, "changed"), Lasting(server)
            wait_until(lambda: not server.pids("session"), 60)
            known = server.children()
            pid = server.process.pid if short == "broker" else server.pids(short)[0]
            with failing.no_descriptor_free(pid) as limit:
                attempts = [Attempt(drop) for _ in range(3)]
            assert all("[SYS/TEMP]" in attempt.cut for attempt in attempts)
            said = server.wait_for_event("descriptors_exhausted")
            assert (said["process"], said["sender"], said["limit"]) == (short, sender, limit)
            assert "LimitNOFILE" in said["problem"]
            failing.after(attempts[-1])
            wait_until(lambda: not server.pids("session"), 60)
            assert server.children() == known
            assert server.faults() == []
            # Three logins within ten seconds.
            assert len(server.events("descriptors_exhausted")) == 1
            lasting.check()
    finally:
        site.remove()


def test_a_way_to_a_front_that_auth_had_no_descriptor_for_is_made_again():
    """Auth is not ended for it, nor is the front; logins are served as soon as there is room."""
    site = Site(server__answer_timeout_s=1.5)
    try:
        with Server(site) as server:
            drop = Drop(server, "changed")
            ((auth,), (front,)) = server.pids("auth"), server.pids("front")
            had = failing.descriptors(auth)
            server.process.send_signal(signal.SIGSTOP)
            os.kill(front, signal.SIGKILL)
            wait_until(lambda: failing.descriptors(auth) < had, 60, "auth to have let go of the front")
            with failing.no_descriptor_free(auth):
                server.process.send_signal(signal.SIGCONT)
                assert server.wait_for_event("descriptors_exhausted")["sender"] == "broker"
            failing.next_login(drop).quit()
            assert server.pids("auth") == [auth]
            assert [event["ended"] for event in server.events("process_ended")] == ["front"]
            assert not server.events("frame_rejected")
    finally:
        site.remove()


def test_a_way_to_auth_that_a_front_had_no_descriptor_for_is_made_again():
    """It drained and closed all its connections, those inside TLS among them, when auth was replaced."""
    site = Site(server__answer_timeout_s=1.5)
    try:
        with Server(site) as server:
            drop = Drop(server, "changed")
            ((auth,), (front,)) = server.pids("auth"), server.pids("front")
            there = socket.create_connection(("127.0.0.1", server.port), 60)
            assert there.recv(512).startswith(b"+OK")
            with failing.no_descriptor_free(front):
                os.kill(auth, signal.SIGKILL)
                with socket.create_connection(("127.0.0.1", server.port), 60):
                    for sender in ("peer", "broker"):
                        said = server.wait_for_event("descriptors_exhausted", sender=sender)
                        assert said["process"] == "front"
            failing.next_login(drop).quit()
            there.sendall(b"NOOP\r\n")
            assert there.recv(512)
            there.close()
            assert server.pids("front") == [front]
            assert [event["ended"] for event in server.events("process_ended")] == ["auth"]
    finally:
        site.remove()


def test_a_log_that_auth_had_no_descriptor_for_is_handed_over_again(tmp_path):
    """After SIGUSR1 auth writes to the new file, too, though it could not take that at first."""
    tmp_path.chmod(0o755)
    path = tmp_path / "gpop.log"
    site = Site(log__target="file", log__path=str(path), server__answer_timeout_s=1.5)
    try:
        with Server(site, log_path=path) as server:
            (auth,) = server.pids("auth")

            def logs() -> set[str]:
                folder = Path(f"/proc/{auth}/fd")
                return {target for target in map(os.readlink, folder.iterdir()) if "gpop.log" in target}

            with failing.no_descriptor_free(auth):
                path.rename(tmp_path / "gpop.log.1")
                server.process.send_signal(signal.SIGUSR1)
                wait_until(lambda: "descriptors_exhausted" in (tmp_path / "gpop.log.1").read_text(), 60)
                assert logs() == {str(tmp_path / "gpop.log.1")}
            wait_until(lambda: logs() == {str(path)}, 60)
            assert server.pids("auth") == [auth]
    finally:
        site.remove()


def test_a_login_that_a_front_has_no_descriptor_for_is_explained(server):
    """The log said `auth_gone`, and nothing of descriptors."""
    lasting = Lasting(server)
    Drop(server, "unchanged")
    (front,) = server.pids("front")
    with server.connect() as dialogue:
        with failing.no_descriptor_free(front):
            assert dialogue.ask("USER user0").startswith(b"+OK")
            assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
        said = server.wait_for_event("descriptors_exhausted", process="front")
        assert (said["sender"], said["problem"].partition(":")[0]) == (
            "peer",
            "no descriptor was free for a login",
        )
        dialogue.ask("USER user0")
        assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    lasting.check()


def test_idle_strangers_leave_a_front_descriptors_for_logins():
    """More silent peers than it may have descriptors: nobody could log in before they had gone."""
    site = Site(server__max_connections=100)
    try:
        with Server(site, started_by=["prlimit", "--nofile=48:48"]) as server:
            lasting = Lasting(server)
            drop = Drop(server, "changed")
            peers = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(80)]
            said = server.wait_for_event("connections_exhausted")
            assert (said["reason"], said["limit"]) == ("longest_without_login_closed", 48)
            assert said["connections"] < said["limit"] < said["max_connections"] == 100
            attempt = Attempt(drop)
            assert not attempt.cut
            assert not server.events("descriptors_exhausted")
            for peer in peers:
                peer.close()
            failing.after(attempt)
            lasting.check()
            assert not server.events("process_ended", "process_fault")
    finally:
        site.remove()


def test_a_front_whose_descriptors_sessions_have_turns_others_away_in_words():
    """Without a login refused for it: who is there is served, and who comes is told at once."""
    site = Site(server__max_connections=100, session__max_per_account=100, session__lock=False)
    try:
        with ExitStack() as there, Server(site, started_by=["prlimit", "--nofile=48:48"]) as server:
            for _ in range(48):
                dialogue = there.enter_context(server.connect())
                if dialogue.greeting.startswith(b"-ERR [SYS/TEMP]"):
                    break
                assert dialogue.ask("USER user0").startswith(b"+OK")
                assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")
            said = server.wait_for_event("connections_exhausted")
            assert (said["reason"], said["limit"]) == ("turned_away", 48)
            assert not server.events("descriptors_exhausted")
    finally:
        site.remove()


def test_memory_runs_out_for_a_session(server):
    """A limit of addresses, from too few for anything to enough: a whole maildrop or none."""
    lasting = Lasting(server)
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0])
    before = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
    for more_kib in (0, 16, 64, 256, 512, 1024, 4096, 16384) if ALL else (0, 256, 1024, 16384):
        drop = Drop(server, "changed")
        most = pages * resource.getpagesize() + more_kib * 1024
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (most, before[1]))
        attempt = Attempt(drop)
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, before)
        print(f"{more_kib} KiB more than the broker has: {attempt.cut.strip() or 'served'}")
        failing.after(attempt)
    assert not attempt.cut
    lasting.check()


# Control groups


@contextmanager
def group(controller: str, limit_v1: str, limit_v2: str) -> Iterator[tuple[Path, Path]]:
    """A new control group, of version 1 or 2, and the file of its limit."""
    unified = (GROUPS / "cgroup.controllers").exists()
    path = (GROUPS if unified else GROUPS / controller) / f"gpop-test-{os.getpid()}"
    try:
        if unified:
            (GROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for {controller} can be made here: {error.strerror}")
    try:
        limit = path / (limit_v2 if unified else limit_v1)
        if not limit.exists():
            pytest.skip(f"control groups here have no {limit.name}")
        yield path, limit
    finally:
        wait_until(lambda: removed(path), 60)


def removed(path: Path) -> bool:
    """Remove a group, once its processes have ended or gone back."""
    for pid in (path / "cgroup.procs").read_text().split():
        try:
            (path.parent / "cgroup.procs").write_text(pid)
        except OSError:
            return False
    try:
        path.rmdir()
    except OSError:
        return False
    return True


def test_no_process_can_be_forked(server):
    """The limit of a service's tasks (systemd's TasksMax) is reached: [SYS/TEMP], and later all is well."""
    lasting = Lasting(server)
    with group("pids", "pids.max", "pids.max") as (path, limit):
        for pid in [server.process.pid, *server.children()]:
            (path / "cgroup.procs").write_text(str(pid))
        for room, outcome in ((0, "[SYS/TEMP]"), (1, ""), (2, "")):
            drop = Drop(server, "unchanged")
            wait_until(lambda: not server.pids("session"), 60)
            present = len((path / "cgroup.procs").read_text().split())
            threads = int((path / "pids.current").read_text())
            limit.write_text(str(max(present, threads) + room))
            attempt = Attempt(drop)
            limit.write_text("max")
            print(f"room for {room} processes: {attempt.cut.strip() or 'served'}")
            if outcome:
                assert outcome in attempt.cut
            failing.after(attempt)
        assert server.events("login_refused")[-1]["reason"] == "fork_failed"
        lasting.check()


def test_the_kernel_kills_a_session_for_memory(server):
    """Out of memory in a control group: the session dies, nothing is removed, the log says so."""
    lasting = Lasting(server)
    with group("memory", "memory.limit_in_bytes", "memory.max") as (path, limit):
        drop = Drop(server, "changed")
        wait_until(lambda: not server.pids("session"), 60)

        def squeeze() -> None:
            (pid,) = server.pids("session")
            limit.write_text("65536")
            (path / "cgroup.procs").write_text(str(pid))

        before = len(server.events("session_died"))
        attempt = Attempt(drop, logged_in=squeeze)
        assert attempt.cut
        died = server.wait_for_event("session_died", before + 1)
        assert died["signal"] == "SIGKILL"
        failing.after(attempt)
    lasting.check()


# Disks


def fill_disk(where: Path) -> Path:
    """Write a file until no octet more can be written; returns it."""
    path = where / "filler"
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return path


def all_served_without_room(server, where: Path, said: str) -> None:
    """With no octet free at `where` everything is served, and mail can be removed."""
    for state in Drop.STATES:
        drop = Drop(server, state)
        filler = fill_disk(where)
        before = len(server.events("cache_unwritable"))
        attempt = Attempt(drop, wrong_sizes=0)
        print(f"{said}, cache {state}: {attempt.cut.strip() or 'served'}")
        assert attempt.removed
        if state != "unchanged":
            said_of_it = server.wait_for_event("cache_unwritable", before + 1)["detail"]
            assert said_of_it == f"reason={said}"
        failing.after(attempt)
        filler.unlink()
    wait_until(lambda: not server.pids("session"), 60)


def test_a_full_disk_under_a_server(server):
    """ENOSPC: what is there is served, and the cache is not."""
    lasting = Lasting(server)
    with mounted(server.site, "-t", "tmpfs", "-o", "size=1m", "tmpfs") as where:
        all_served_without_room(server, where, "ENOSPC")
        lasting.check()


@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="mkfs.btrfs (btrfs-progs) is not installed")
def test_a_full_quota_under_a_server(server, tmp_path):
    """EDQUOT: as a full disk, but there is room for others."""
    lasting = Lasting(server)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "--quiet", "--mixed", image], check=True)
    with mounted(server.site, "-o", "loop", image) as where:
        subprocess.run(["btrfs", "quota", "enable", where], check=True)
        subprocess.run(["btrfs", "qgroup", "limit", "1M", where], check=True)
        all_served_without_room(server, where, "EDQUOT")
        lasting.check()


@pytest.mark.parametrize("state", Drop.STATES if ALL else ["changed"])
def test_a_disk_that_fails(server, state, tmp_path):
    """The device ends too early: real EIO of folders and messages. No empty maildrop, no wrong octet."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    lasting = Lasting(server)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    with mounted(server.site, "-o", "loop", image):
        truth = Drop(server, state)
        wait_until(lambda: not server.pids("session"), 60)
    whole = image.read_bytes()
    used = len(whole.rstrip(b"\0"))
    outcomes = []
    for part in range(1, 64) if ALL else (20, 61, 63):
        with mounted(server.site, "-o", "loop", image, again=True):
            with open(image, "r+b") as file:
                file.truncate(used * part // 64 // 4096 * 4096)
            attempt = Attempt(truth, wrong_sizes=len(truth.truth))
            outcomes.append(attempt.cut.strip() or "served")
            print(f"{part}/64 of the disk, cache {state}: {outcomes[-1]}")
            wait_until(lambda: not server.pids("session"), 60)
        # The disk works again, with all that it had; what was removed meanwhile may have come back.
        image.write_bytes(whole)
        with mounted(server.site, "-o", "loop", image, again=True):
            attempt.removed = None
            failing.after(attempt)
        image.write_bytes(whole)
    server.site.make_home("user0")
    lasting.check()
    assert any(outcome != "served" for outcome in outcomes)
