"""Real users, real PAM, real clients: each lists, fetches and removes mail as its users do."""

from __future__ import annotations

import os
import poplib
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.serving import ROOT, Server, wait_until

pytestmark = pytest.mark.skipif(not ROOT, reason="makes users and a PAM service, which takes root")

CLIENTS = ["poplib", "curl", "fetchmail", "fetchkeep", "mpop", "mpopkeep", "getmail", "mutt"]
SERVICE = "gpop-test-clients"
PASSWORD = "correct horse battery"
MESSAGES = [
    b"From: a@example.org\nSubject: plain\nMessage-ID: <1@example.org>\n\none\ntwo\n",
    b"From: a@example.org\nSubject: dots\nMessage-ID: <2@example.org>\n\n.\n..\n.dot\nend\n",
    b"From: a@example.org\nSubject: 8-bit\nMessage-ID: <3@example.org>\n\ncaf\xc3\xa9 \xe9\xff\n",
    b"From: a@example.org\nSubject: long\nMessage-ID: <4@example.org>\n\n" + b"x" * 900 + b"\nend\n",
    b"From: a@example.org\r\nSubject: crlf\r\nMessage-ID: <5@example.org>\r\n\r\nkept\r\n",
    b"From: a@example.org\nSubject: no final line end\nMessage-ID: <6@example.org>\n\nlast line",
]


def run(*command: str, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; `user` runs it as somebody else."""
    return subprocess.run(command, check=False, capture_output=True, timeout=60, **kwargs)


def need(program: str) -> None:
    """Skip where a client is not installed."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


class PamSite:
    """Users of the machine, one per client, each with the same mail, and gpop asking PAM."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config = folder / "gpop.toml"
        self.pam_file = Path("/etc/pam.d") / SERVICE
        self.pam_file.write_text("auth required pam_unix.so\naccount required pam_unix.so\n")
        for name in CLIENTS:
            user = self.user(name)
            made = run("useradd", "--create-home", "--base-dir", str(folder), "--shell", "/bin/sh", user)
            assert made.returncode == 0, made.stderr
            run("chpasswd", input=f"{user}:{PASSWORD}".encode())
            self.deliver(name)
        self.config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\nuser = "nobody"\nrun_dir = "{folder}/run"\n'
            f'[log]\nformat = "json"\n[[accounts.sources]]\ntype = "pam"\nservice = "{SERVICE}"\n'
        )

    def user(self, client: str) -> str:
        """The user for a client."""
        return f"gpt-{client}"

    def maildir(self, client: str) -> Path:
        """Its Maildir."""
        return self.path / self.user(client) / "Maildir"

    def deliver(self, client: str, messages: list[bytes] = MESSAGES, first: int = 0) -> None:
        """Deliver messages as the user."""
        maildir = self.maildir(client)
        for folder in ("", "new", "cur", "tmp"):
            (maildir / folder).mkdir(exist_ok=True)
        for number, octets in enumerate(messages, first):
            (maildir / "new" / f"{1_700_000_000 + number}.M{number}P1.test").write_bytes(octets)
        run("chown", "-R", f"{self.user(client)}:", str(maildir))

    def contents(self, client: str) -> list[bytes]:
        """The octets of all messages in the Maildir, in their order."""
        files = [*(self.maildir(client) / "new").iterdir(), *(self.maildir(client) / "cur").iterdir()]
        return [path.read_bytes() for path in sorted(files, key=lambda path: path.name)]

    def remove(self) -> None:
        """Remove the users and the service."""
        for name in CLIENTS:
            run("userdel", "--remove", self.user(name))
        self.pam_file.unlink()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, made once for all clients."""
    folder = Path(f"/tmp/gpop-clients-{os.getpid()}")
    folder.mkdir(mode=0o755)
    made = PamSite(folder)
    yield made
    made.remove()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(site):
    """gpop on it."""
    with Server(site) as running:
        yield running


@pytest.fixture
def work(tmp_path):
    """A folder for a client's files."""
    os.chmod(tmp_path, 0o700)
    return tmp_path


def wire_form(octets: bytes) -> bytes:
    """A message as a client receives it, written down the slow and obvious way."""
    text = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return text if text.endswith(b"\r\n") else text + b"\r\n"


def test_poplib(site, server):
    """Python's poplib: sizes as listed, octet for octet, removed after DELE and QUIT."""
    client = poplib.POP3("127.0.0.1", server.port, timeout=30)
    client.user(site.user("poplib"))
    client.pass_(PASSWORD)
    sizes = [int(line.split()[1]) for line in client.list()[1]]
    fetched = [b"\r\n".join(client.retr(number)[1]) + b"\r\n" for number in range(1, 7)]
    assert fetched == [wire_form(octets) for octets in MESSAGES]
    assert sizes == [len(octets) for octets in fetched]
    for number in (1, 3):
        client.dele(number)
    client.quit()
    assert site.contents("poplib") == [MESSAGES[n] for n in (1, 3, 4, 5)]
    closed = server.wait_for_event("session_closed", user=site.user("poplib"))
    assert closed["auth_source"] == "pam"


def test_curl(site, server, work):
    """curl lists, fetches octet for octet, and deletes."""
    need("curl")
    url = f"pop3://127.0.0.1:{server.port}/"
    access = ["--silent", "--show-error", "--user", f"{site.user('curl')}:{PASSWORD}"]
    listed = run("curl", *access, url)
    assert listed.stdout.split() == [
        word for n, octets in enumerate(MESSAGES, 1) for word in (b"%d" % n, b"%d" % len(wire_form(octets)))
    ], listed.stderr
    for number, octets in enumerate(MESSAGES, 1):
        assert run("curl", *access, f"{url}{number}").stdout == wire_form(octets)
    deleted = run("curl", *access, "--list-only", "--request", "DELE", f"{url}2")
    assert deleted.returncode == 0, deleted.stderr
    wait_until(lambda: site.contents("curl") == MESSAGES[:1] + MESSAGES[2:])


def bodies_of(folder: Path) -> list[bytes]:
    """The bodies of the messages a client has stored, line ends made alike, sorted."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name in ("new", "cur")]
    contents = (path.read_bytes().replace(b"\r\n", b"\n") for path in files)
    return sorted(octets.partition(b"\n\n")[2].rstrip(b"\n") for octets in contents)


EXPECTED_BODIES = sorted(
    octets.replace(b"\r\n", b"\n").partition(b"\n\n")[2].rstrip(b"\n") for octets in MESSAGES
)
LATER = [b"From: a@example.org\nSubject: later\nMessage-ID: <7@example.org>\n\ncame later\n"]


def private_file(path: Path, text: str) -> str:
    """Write a file that only we can read, as clients demand of one with a password."""
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def make_maildir(path: Path) -> Path:
    """Make the folder a client delivers to."""
    for folder in ("new", "cur", "tmp"):
        (path / folder).mkdir(parents=True)
    return path


def fetchmail(site: PamSite, server: Server, work: Path, client: str, options: str) -> None:
    """Run fetchmail once; it hands each message to a small script."""
    inbox = work / "inbox" / "new"
    inbox.mkdir(parents=True, exist_ok=True)
    script = work / "mda"
    script.write_text(f'#!/bin/sh\ncat > "$(mktemp {inbox}/XXXXXX)"\n')
    script.chmod(0o755)
    config = private_file(
        work / "fetchmailrc",
        f"poll 127.0.0.1 service {server.port} protocol pop3 uidl "
        f'user "{site.user(client)}" password "{PASSWORD}" '
        f'sslproto "" {options} mda "{script}"\n',
    )
    command = ["fetchmail", "--nosyslog", "--fetchmailrc", config, "--idfile", str(work / "ids")]
    done = run(*command, "--pidfile", str(work / "pid"), env=os.environ | {"HOME": str(work)})
    # 1 means that there was nothing new.
    assert done.returncode in (0, 1), done.stdout + done.stderr


def test_fetchmail_removes(site, server, work):
    """fetchmail without keep: everything arrives, nothing stays."""
    need("fetchmail")
    fetchmail(site, server, work, "fetchmail", "fetchall nokeep")
    assert bodies_of(work) == EXPECTED_BODIES
    assert site.contents("fetchmail") == []


def test_fetchmail_keeps(site, server, work):
    """fetchmail with keep and uidl: all stays as it was, and a second run fetches only what is new."""
    need("fetchmail")
    for _ in range(2):
        fetchmail(site, server, work, "fetchkeep", "keep")
        assert bodies_of(work) == EXPECTED_BODIES
    assert site.contents("fetchkeep") == MESSAGES
    site.deliver("fetchkeep", LATER, first=10)
    fetchmail(site, server, work, "fetchkeep", "keep")
    assert bodies_of(work) == sorted([*EXPECTED_BODIES, b"came later"])


def mpop(site: PamSite, server: Server, work: Path, client: str, keep: str) -> None:
    """Run mpop once, delivering to a Maildir."""
    config = private_file(
        work / "mpoprc",
        f"defaults\ntls off\nauth user\naccount default\nhost 127.0.0.1\nport {server.port}\n"
        f"user {site.user(client)}\npassword {PASSWORD}\nkeep {keep}\n"
        f"delivery maildir {work}/inbox\nuidls_file {work}/uidls\n",
    )
    done = run("mpop", "--file", config)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mpop_removes(site, server, work):
    """mpop without keep: everything arrives, nothing stays."""
    need("mpop")
    make_maildir(work / "inbox")
    mpop(site, server, work, "mpop", "off")
    assert bodies_of(work) == EXPECTED_BODIES
    assert site.contents("mpop") == []


def test_mpop_keeps(site, server, work):
    """mpop with keep: all stays, a second run fetches only what is new."""
    need("mpop")
    make_maildir(work / "inbox")
    mpop(site, server, work, "mpopkeep", "on")
    site.deliver("mpopkeep", LATER, first=10)
    mpop(site, server, work, "mpopkeep", "on")
    assert bodies_of(work) == sorted([*EXPECTED_BODIES, b"came later"])
    assert site.contents("mpopkeep") == MESSAGES + LATER


def test_getmail(site, server):
    """getmail6: fetches all and keeps, then only what is new, then removes. It refuses to run as root."""
    need("getmail")
    user = site.user("getmail")
    work = site.path / user / "getmail"
    make_maildir(work / "inbox")

    def getmail(delete: str) -> None:
        private_file(
            work / "getmailrc",
            f"[retriever]\ntype = SimplePOP3Retriever\nserver = 127.0.0.1\nport = {server.port}\n"
            f"username = {site.user('getmail')}\npassword = {PASSWORD}\n"
            f"[destination]\ntype = Maildir\npath = {work}/inbox/\n"
            f"[options]\nread_all = false\ndelete = {delete}\n",
        )
        run("chown", "-R", f"{user}:", str(work))
        done = run(
            "getmail", "--getmaildir", str(work), "--rcfile", "getmailrc", user=user, group=user, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr

    getmail("false")
    assert bodies_of(work) == EXPECTED_BODIES and site.contents("getmail") == MESSAGES
    site.deliver("getmail", LATER, first=10)
    getmail("false")
    assert bodies_of(work) == sorted([*EXPECTED_BODIES, b"came later"])
    getmail("true")
    assert bodies_of(work) == sorted([*EXPECTED_BODIES, b"came later"])
    assert site.contents("getmail") == []


def test_mutt(site, server, work):
    """mutt on a terminal: copies all messages to a local folder, deletes one, and quits."""
    need("mutt")
    inbox = make_maildir(work / "inbox")
    config = private_file(
        work / "muttrc",
        f'set pop_user="{site.user("mutt")}"\nset pop_pass="{PASSWORD}"\n'
        "set ssl_starttls=no\nset ssl_force_tls=no\nset pop_authenticators=user\n"
        "set confirmappend=no\nset confirmcreate=no\nset delete=yes\nset quit=yes\nset mbox_type=Maildir\n"
        "set pop_delete=no\nset move=no\nset sort=mailbox-order\n"
        f"set auto_tag=yes\nset folder={work}\n"
        f'push "<tag-pattern>~A<enter><copy-message>{inbox}<enter>'
        '<untag-pattern>~A<enter><first-entry><delete-message><sync-mailbox><quit>"\n',
    )
    url = f"pop://127.0.0.1:{server.port}/"
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {"TERM": "xterm", "HOME": str(work), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        os.execve(str(shutil.which("mutt")), ["mutt", "-n", "-F", config, "-f", url], environment)
    screen = bytearray()
    deadline = time.monotonic() + 40
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                screen += os.read(terminal, 4096)
    except OSError:
        pass  # the terminal of a program that has ended can't be read any more
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert bodies_of(work) == EXPECTED_BODIES, screen[-2000:]
    wait_until(lambda: site.contents("mutt") == MESSAGES[1:])
