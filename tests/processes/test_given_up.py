"""What processes of a real gpop have given up: system calls, memory without end; and what the log says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.serving import PASSWORD, ROOT, wait_until

# Messages that can't be listed in what a forked process need not ask for.
MORE_THAN_LIES_FREE = 6000
FILTERED, UNFILTERED = "2", "0"
needs_root = pytest.mark.skipif(not ROOT, reason="without root nobody may look into a front's /proc")


def seccomp_mode(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Seccomp:"))


def modes(server) -> dict[str, str]:
    """The mode of each kind of process, with a session logged in."""
    with server.connect() as peer:
        assert peer.ask("USER user0").startswith(b"+OK")
        assert peer.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        kinds = ("front", "auth", "metrics", "session")
        found = {kind: {seccomp_mode(pid) for pid in server.pids(kind)} for kind in kinds}
        found["broker"] = {seccomp_mode(server.process.pid)}
    return {kind: "".join(each) for kind, each in found.items()}


@needs_root
def test_who_is_confined(make_server):
    """All that read what strangers send, or what users put into Maildirs; and that are not root."""
    server = make_server(metrics__listen=["127.0.0.1:0"])
    wait_until(lambda: server.pids("metrics"))
    pid = server.pids("metrics")[0]
    wait_until(lambda: seccomp_mode(pid) == FILTERED, what=lambda: "the metrics process to be confined")
    assert modes(server) == {
        "front": FILTERED,
        "session": FILTERED,
        "metrics": FILTERED,
        "auth": UNFILTERED,  # PAM's modules do whatever they do
        "broker": UNFILTERED,  # it starts programs, and becomes other users
    }


@needs_root
def test_it_can_be_turned_off(make_server):
    server = make_server(server__seccomp=False)
    assert set(modes(server).values()) == {UNFILTERED, ""}


def test_a_process_that_is_reused_has_one_filter(make_site, make_server):
    """A filter per login would make every call dearer than the one before."""
    site = make_site()
    site.write_config(session__reuse_below=str(site.path / "home"))
    server = make_server(site)
    for _ in range(3):
        with server.connect() as peer:
            assert peer.ask("USER user0").startswith(b"+OK")
            assert peer.ask(f"PASS {PASSWORD}").startswith(b"+OK")
            (pid,) = server.pids("session")
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            assert [line.split()[1] for line in lines if line.startswith("Seccomp_filters:")] in ([], ["1"])
            assert peer.ask("QUIT").startswith(b"+OK")
    wait_until(lambda: len(server.events("session_closed")) == 3)


def test_a_death_by_the_filter_is_in_the_log(make_server):
    """An attacker who tried something that no session does leaves a line with SIGSYS."""
    server = make_server()
    with server.connect() as peer:
        assert peer.ask("USER user0").startswith(b"+OK")
        assert peer.ask(f"PASS {PASSWORD}").startswith(b"+OK")
        (pid,) = server.pids("session")
        os.kill(pid, signal.SIGSYS)  # as the kernel does
        died = server.wait_for_event("session_died")
    assert died["signal"] == "SIGSYS"
    assert died["account"] == "user0"


def address_space(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[3] for line in lines if line.startswith("Max address space"))


def test_a_session_has_so_much_memory_and_no_more(make_server):
    """4 GiB if nothing else is said; the broker, which it was forked from, has no limit."""
    server = make_server()
    with server.login():
        (pid,) = server.pids("session")
        assert address_space(pid) == str(4 << 30)
        assert address_space(server.process.pid) == "unlimited"


def test_a_session_without_memory_shows_no_empty_maildrop(make_server):
    """What can't be listed is a fault: the login is refused, and there is no maildrop without mail."""
    server = make_server(session__memory_limit_mib=1)
    server.site.deliver(b"Subject: one\n\nA line.\n")
    (delivered,) = server.site.files(folder="new")
    new = server.site.maildir() / "new"
    for number in range(1, MORE_THAN_LIES_FREE):
        os.link(new / delivered, new / f"{number}.link")
    with server.connect() as peer:
        assert peer.ask("USER user0").startswith(b"+OK")
        assert peer.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
    server.site.write_config(session__memory_limit_mib=0)
    os.kill(server.process.pid, signal.SIGHUP)
    server.wait_for_event("reload_finished")
    with server.login() as peer:
        assert peer.ask("STAT").startswith(f"+OK {MORE_THAN_LIES_FREE} ".encode())
