"""Whether conf/gpop.service leaves gpop enough: run with its capabilities and limits, without systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpop.accounts import hashes
from tests.serving import PASSWORD, Server, Site

UNIT = (Path(__file__).parent.parent.parent / "conf" / "gpop.service").read_text()
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which Linux has since 6.3: what MemoryDenyWriteExecute= does.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("setpriv", "strace", "useradd"))),
    reason="setpriv, strace or useradd is not installed",
)


def directive(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return value


def confined() -> list[str]:
    """What runs a command with the capabilities of the unit, and no memory both written and run."""
    capabilities = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in
                            directive("CapabilityBoundingSet").split())  # fmt: skip
    sets = [f"--{name}=-all{',' + capabilities if name == 'bounding-set' else ''}" for name in
            ("ambient-caps", "inh-caps", "bounding-set")]  # fmt: skip
    return [sys.executable, "-c", DENY_WRITE_EXECUTE, "setpriv", *sets, "--no-new-privs"]


@pytest.fixture
def site():
    """A site, and the name of an account of PAM's, with the home of another one."""
    site = Site(accounts=2)
    name, uid = f"gpt{os.getpid()}unit", str(site.uid("user1"))
    service = Path(f"/etc/pam.d/{name}")
    hashed = hashes.make(PASSWORD.encode()).decode().removeprefix("{CRYPT}")
    options = ["--uid", uid, "--home-dir", str(site.home("user1")), "--no-create-home", "--password", hashed]
    subprocess.run(["useradd", *options, name], check=True, capture_output=True)
    try:
        service.write_text("auth required pam_unix.so\naccount required pam_unix.so\n")
        with open(site.config, "a") as config:
            config.write(f'[[accounts.sources]]\ntype = "pam"\nservice = "{service.name}"\n')
        yield site, name
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)
        service.unlink(missing_ok=True)
        site.remove()


def use(server: Server, pam_user: str) -> None:
    """Everything that an ordinary day brings."""
    server.site.deliver(b"Subject: one\n\nbody\n")
    with server.login() as dialogue:
        assert dialogue.ask("RETR 1").startswith(b"+OK")
        dialogue.lines()
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    server.pop(pam_user).quit()
    with server.connect() as dialogue:
        dialogue.ask(f"USER {pam_user}")
        assert dialogue.ask("PASS wrong").startswith(b"-ERR [AUTH]")
    for number, event in ((signal.SIGHUP, "reload_finished"), (signal.SIGUSR2, "upgrade_finished")):
        server.process.send_signal(number)
        server.wait_for_event(event)
    server.pop(pam_user).quit()
    # One that is to be ended at the end of the grace time: another user's process.
    with server.login():
        assert server.stop() == 0
    server.wait_for_event("sessions_ended")
    assert not server.faults() and not server.events("config_warning"), server.events()


def test_what_the_unit_leaves_gpop_is_enough(site, tmp_path):
    """Sessions, jails, PAM, reload, upgrade, stop: with its capabilities, and no call that it forbids."""
    site, pam_user = site
    trace = tmp_path / "trace"
    with Server(site, started_by=["strace", "-D", "-f", "-qq", "-o", str(trace), *confined()]) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        bounding = int(re.search(r"CapBnd:\s*(\w+)", status)[1], 16)
        assert bounding.bit_count() == len(directive("CapabilityBoundingSet").split())
        use(server, pam_user)
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace.read_text(), re.MULTILINE))
    assert {"clone", "chroot", "execve", "setresuid"} <= used
    if shutil.which("systemd-analyze"):
        assert used - allowed(directive("SystemCallFilter").split()) == set()


def allowed(names: list[str]) -> set[str]:
    """The calls that a SystemCallFilter= lets through, groups resolved as this machine's systemd does."""
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True,
                                check=True).stdout.splitlines()  # fmt: skip
        found |= allowed([line.strip() for line in listed[1:] if line.strip() and "#" not in line])
    return found
