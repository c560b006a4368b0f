"""
The kinds of server: gpop (also of an earlier commit), Dovecot in three configurations, Courier.

Configurations are as small as can be; each says what a figure depends on. All of them listen on loopback,
with TLS only if they are given a certificate, write a log to a file, and have the same accounts and mail.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from loadtest.bench import cpu
from loadtest.bench.accounts import SERVICE
from loadtest.bench.courier import Courier
from loadtest.bench.load import TOP
from loadtest.bench.maildrops import FIRST_UID, ROOT
from loadtest.bench.servers import PROGRAM_PATH, NotHere, Server

# Dovecot: how many processes of a kind that serves one client, how many clients of one that serves many.
PROCESSES = 1024
LOGIN_CLIENTS = 4096


class Gpop(Server):
    """gpop with its defaults, and its auth cache on as with the peers that have one."""

    top = TOP
    auth_cache = True
    more = ""
    fronts = 1
    most_connections = 10_000

    @classmethod
    def check(cls) -> str:
        return f"gpop at {revision()}"

    def prepare(self) -> list[str]:
        if self.accounts.pam:
            source = f'type = "pam"\nservice = "{SERVICE}"'
        else:
            path = self.accounts.passwd_file(self.folder, self.tree, 0o600)
            source = f'type = "passwd-file"\npath = "{path}"'
        config = self.folder / "gpop.toml"
        tls, listen_tls = "", ""  # nothing that an earlier gpop does not know
        if self.certificate:
            tls = f"[tls]\ncertificates = {json.dumps([self.certificate])}"
            listen_tls = f'listen_tls = ["127.0.0.1:{self.tls_port}"]'
        config.write_text(f"""\
[server]
listen = ["127.0.0.1:{self.port}"]
{listen_tls}
fronts = {self.fronts}
max_connections = {self.most_connections}
user = "nobody"
run_dir = "{self.folder / "run"}"
grace_time_s = 1
{tls}
{self.more}
[accounts]
first_valid_uid = 1
first_valid_gid = 1
[accounts.cache]
enabled = {str(self.auth_cache).lower()}
[[accounts.sources]]
{source}
[log]
format = "json"
""")
        main = str(self.top / "gpop" / "__main__.py")
        return [sys.executable, "-I", main, "serve", "--config", str(config)]

    def by_process(self) -> dict[str, float]:
        """Front, auth, broker (the forks themselves are its), and the sessions, those it has reaped too."""
        broker = cpu.usage_of(self.pid, children=False).total
        found = {
            kind: sum(cpu.usage_of(pid).total for pid in self.processes(kind)) for kind in ("front", "auth")
        }
        others = set(self.meter.pids()) - {self.pid, *self.processes("front"), *self.processes("auth")}
        living = sum(cpu.usage_of(pid).total for pid in others)
        return found | {"broker": broker, "sessions": cpu.usage_of(self.pid).total - broker + living}

    def processes(self, kind: str) -> list[int]:
        """The pids of the fronts, or of auth."""
        return [pid for pid in self.meter.pids() if f"{kind}-process" in _arguments(pid)]


class GpopWithoutCache(Gpop):
    """gpop with its auth cache off, as it is by default: a process per password check."""

    auth_cache = False


class GpopWithMetrics(Gpop):
    """gpop that counts for Prometheus; nobody asks for the metrics."""

    def prepare(self) -> list[str]:
        self.more = '[metrics]\nlisten = ["127.0.0.1:0"]'
        return super().prepare()


class GpopReusing(Gpop):
    """gpop for a store of one uid: as Dovecot tuned, processes are shared, and no isolation between users."""

    one_uid = True

    def prepare(self) -> list[str]:
        self.more = f'[session]\nreuse_below = "{self.tree.path}"'
        return super().prepare()


class GpopOfCommit(Gpop):
    """gpop of another commit, run by the same Python with the same packages."""

    def prepare(self) -> list[str]:
        self.top = self.folder / "source"
        git = ["git", "-C", str(TOP), "archive", "--format=tar", self.name.partition("@")[2], "gpop"]
        done = subprocess.run(git, capture_output=True, check=False)
        if done.returncode:
            raise NotHere(f"{self.name}: {done.stderr.decode().strip()}")
        self.top.mkdir()
        # Not `tarfile`: Python 3.11.2 does not know the filter without which later ones complain.
        subprocess.run(["tar", "-x", "-C", str(self.top)], input=done.stdout, check=True)
        return super().prepare()


class Dovecot(Server):
    """Dovecot 2.3 as Debian ships it: a process per connection, and one per session; no auth cache."""

    settings = ""
    login_service = f"process_limit = {PROCESSES}"
    pop3_service = ""
    cache_key = ""

    @classmethod
    def check(cls) -> str:
        program = shutil.which("dovecot", path=PROGRAM_PATH)
        if not program:
            raise NotHere("Dovecot is not installed (Debian: dovecot-pop3d)")
        if not ROOT:
            raise NotHere("Dovecot is started by root only")
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if not version.startswith("2.3."):
            raise NotHere(f"the configurations here are for Dovecot 2.3, this is {version.strip()}")
        return f"Dovecot {version.split()[0]}"

    def users(self) -> str:
        if self.accounts.pam:
            return "driver = passwd"
        return f"driver = passwd-file\n  args = {self.folder}/passwd-file"

    def passwords(self) -> str:
        if self.accounts.pam:
            return f"driver = pam\n  args = {self.cache_key} {SERVICE}"
        # Its auth process is no root, so the file can be read by others; the password is known anyway.
        path = self.accounts.passwd_file(self.folder, self.tree, 0o644)
        return f"driver = passwd-file\n  args = {path}"

    def prepare(self) -> list[str]:
        config = self.folder / "dovecot.conf"
        ssl = "ssl = no"
        if self.certificate:
            ssl = "ssl = yes\nssl_cert = <{}\nssl_key = <{}".format(*self.certificate)
        config.write_text(f"""\
protocols = pop3
listen = 127.0.0.1
base_dir = {self.folder}/base
state_dir = {self.folder}/state
log_path = {self.log}
{ssl}
disable_plaintext_auth = no
first_valid_uid = 1
mail_location = maildir:~/Maildir
{self.settings}
passdb {{
  {self.passwords()}
}}
userdb {{
  {self.users()}
}}
# Limits only: the defaults are for a hundred sessions.
service auth {{
  client_limit = {2 * PROCESSES + LOGIN_CLIENTS}
}}
service anvil {{
  client_limit = {2 * PROCESSES + LOGIN_CLIENTS}
}}
service pop3-login {{
  {self.login_service}
  inet_listener pop3 {{
    port = {self.port}
  }}
  inet_listener pop3s {{
    port = {self.tls_port}
    ssl = yes
  }}
}}
service pop3 {{
  process_limit = {PROCESSES}
  {self.pop3_service}
}}
""")
        return [shutil.which("dovecot", path=PROGRAM_PATH) or "dovecot", "-F", "-c", str(config)]


class DovecotWithAuthCache(Dovecot):
    """Login processes serve many connections, passwords are cached; still a process and a uid per session."""

    settings = "auth_cache_size = 10M"
    login_service = (
        f"service_count = 0\n  process_min_avail = 2\n  process_limit = 2\n  client_limit = {LOGIN_CLIENTS}"
    )
    most_connections = LOGIN_CLIENTS
    cache_key = "cache_key=%u"


class DovecotTuned(DovecotWithAuthCache):
    """As fast as it gets: all mail has one uid, and processes are shared; no isolation between users."""

    one_uid = True
    settings = (
        DovecotWithAuthCache.settings
        + "\nmail_fsync = never\nmaildir_very_dirty_syncs = yes\npop3_no_flag_updates = yes"
    )
    pop3_service = "service_count = 1000\n  process_min_avail = 4"

    def users(self) -> str:
        args = f"uid={FIRST_UID} gid={FIRST_UID} home={self.tree.path}/%u allow_all_users=yes"
        return f"driver = static\n  args = {args}"


KINDS: dict[str, type[Server]] = {
    "gpop": Gpop,
    "gpop-reuse": GpopReusing,
    "gpop-nocache": GpopWithoutCache,
    "gpop-metrics": GpopWithMetrics,
    "dovecot-tuned": DovecotTuned,
    "dovecot-authcache": DovecotWithAuthCache,
    "dovecot-secure": Dovecot,
    "courier": Courier,
}
# What a run has if nobody says: gpop without its cache, or with metrics, only if it is asked for.
USUAL = [name for name in KINDS if name not in ("gpop-nocache", "gpop-metrics")]


def kind_of(name: str) -> type[Server]:
    """
    Return the class for a name on the command line; "gpop@REV" is gpop of that commit.

    Raises:
        NotHere: there is no such kind.
    """
    if name.startswith("gpop@"):
        return GpopOfCommit
    if name not in KINDS:
        raise NotHere(f"{name}: no such server; there are {', '.join(KINDS)}, gpop@REV")
    return KINDS[name]


def revision() -> str:
    """The commit of this tree, and whether there is more than that."""
    git = ["git", "-C", str(TOP), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here: a figure is worth having all the same
        return "an unknown commit"
    return done.stdout.strip() or "an unknown commit"


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []
