"""A real Dovecot for tests, started by root from a folder of its own, ended to its last process by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.serving import ROOT, children_of, wait_until

# As Debian ships them; what stands in /etc may have been changed.
SHIPPED = Path("/usr/share/dovecot")
PROGRAM = shutil.which("dovecot", path="/usr/sbin:/usr/bin:/sbin:/bin")


def reason_to_skip() -> str:
    """Why Dovecot can't be started here; "" if it can."""
    if not ROOT:
        return "Dovecot is started by root only"
    if not PROGRAM or not (SHIPPED / "protocols.d/pop3d.protocol").exists():
        return "Dovecot is not installed (Debian: dovecot-pop3d)"
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True, timeout=20)
    return "" if said.stdout.startswith("2.3.") else f"written for Dovecot 2.3, not {said.stdout.strip()}"


class Dovecot:
    """
    Dovecot with Debian's configuration, a certificate, ports of its own, and `more` before all that.

    Attributes:
        port, tls_port: POP3, and POP3 with TLS from the start, on 127.0.0.1.
    """

    def __init__(self, folder: Path, certificate: tuple[str, str], more: str = "") -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        # Sockets lie in it, whose whole path has 107 octets at most.
        self._base = tempfile.mkdtemp(prefix="gpop-dovecot-")
        self.port, self.tls_port = _free_port(), _free_port()
        self.log_path = folder / "log"
        command = [PROGRAM or "dovecot", "-F", "-c", self._configure(certificate, more)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._greets, what=lambda: f"Dovecot: {self.log_path.read_text()}")

    def __enter__(self) -> Dovecot:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configure(self, certificate: tuple[str, str], more: str) -> str:
        """Write the configuration: a copy of what is shipped, with our files in it."""
        shutil.copytree(SHIPPED / "conf.d", self.folder / "conf.d")
        shutil.copy(SHIPPED / "dovecot.conf", self.folder)
        tls = self.folder / "conf.d" / "10-ssl.conf"
        text = tls.read_text()
        for shipped, ours in zip(("pem", "key"), certificate, strict=True):
            assert f"</etc/dovecot/private/dovecot.{shipped}" in text
            text = text.replace(f"</etc/dovecot/private/dovecot.{shipped}", f"<{ours}")
        tls.write_text(text)
        config = self.folder / "test.conf"
        config.write_text(f"""\
{more}
!include {self.folder}/dovecot.conf
protocols = pop3
listen = 127.0.0.1
base_dir = {self._base}/base
state_dir = {self.folder}/state
log_path = {self.log_path}
service pop3-login {{
  inet_listener pop3 {{
    port = {self.port}
  }}
  inet_listener pop3s {{
    port = {self.tls_port}
    ssl = yes
  }}
}}
""")
        return str(config)

    def _greets(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), 20) as sock:
                return sock.recv(512).startswith(b"+OK")
        except OSError:
            return False

    def stop(self) -> None:
        """End it; what its master leaves behind is ended as well."""
        children = children_of(self.process.pid)
        self.process.terminate()
        self.process.wait(20)
        for pid in filter(_is_dovecots, children):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._base, ignore_errors=True)


def _is_dovecots(pid: int) -> bool:
    """Whether that process, which was Dovecot's, still is: a pid may be used again."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"dovecot/")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
