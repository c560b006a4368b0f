"""What people use to fetch mail, and to look at a server's TLS, against real processes: implicit and STLS."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Server, Site

MESSAGES = [
    b"From: a@example.org\nSubject: one\nMessage-ID: <1@example.org>\n\none\n",
    b"From: a@example.org\nSubject: two\nMessage-ID: <2@example.org>\n\n.\n.dot\ntwo\n",
]
BODIES = [b".\n.dot\ntwo", b"one"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who issues the certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def module_server(authority):
    """gpop that takes no password without TLS."""
    pair = authority.issue("localhost")
    site = Site(
        server__listen_tls=["127.0.0.1:0"], tls__certificates=[list(pair)], accounts__cleartext="never"
    )
    try:
        with Server(site) as running:
            yield running
    finally:
        site.remove()


@pytest.fixture
def server(module_server):
    """It, with two messages."""
    module_server.site.empty()
    for octets in MESSAGES:
        module_server.site.deliver(octets)
    return module_server


def need(program: str) -> None:
    """Skip where a program is not installed."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


def run(*command: str, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    done = subprocess.run(
        command, check=False, capture_output=True, timeout=90, **({"stdin": subprocess.DEVNULL} | kwargs)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def private_file(path: Path, text: str) -> str:
    """Write a file that only we can read."""
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def bodies_of(inbox: Path) -> list[bytes]:
    """The bodies of the messages that a client has stored, sorted."""
    files = [path for folder in ("new", "cur") for path in (inbox / folder).glob("*")]
    contents = (path.read_bytes().replace(b"\r\n", b"\n") for path in files)
    return sorted(octets.partition(b"\n\n")[2].rstrip(b"\n") for octets in contents)


def make_inbox(folder: Path) -> Path:
    """Make the Maildir a client delivers to."""
    for name in ("new", "cur", "tmp"):
        (folder / "inbox" / name).mkdir(parents=True)
    return folder / "inbox"


BOTH = pytest.mark.parametrize("stls", [False, True], ids=["implicit", "stls"])


@BOTH
def test_openssl_s_client(server, authority, stls):
    """The certificate is verified, and a session is spoken by hand."""
    need("openssl")
    port = server.port if stls else server.tls_port
    done = run(
        *("openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", str(authority.file), "-crlf"),
        *("-verify_return_error", "-verify_hostname", "localhost", "-ign_eof"),
        *(["-starttls", "pop3"] if stls else []),
        stdin=None,
        input=f"USER user0\nPASS {PASSWORD}\nSTAT\nQUIT\n".encode(),
    )
    assert b"Verification: OK" in done.stdout
    assert b"Secure Renegotiation IS NOT supported" in done.stdout or b"TLSv1.3" in done.stdout
    assert b"+OK 2 " in done.stdout
    assert b"+OK bye" in done.stdout


@BOTH
def test_curl(server, authority, stls):
    """--ssl-reqd, or pop3s://: lists and fetches octet for octet."""
    need("curl")
    url = f"pop3://localhost:{server.port}/" if stls else f"pop3s://localhost:{server.tls_port}/"
    access = ["--ssl-reqd", "--cacert", str(authority.file), "--user", f"user0:{PASSWORD}"]
    fetched = run("curl", "--silent", "--show-error", *access, f"{url}2").stdout
    assert fetched == MESSAGES[1].replace(b"\n", b"\r\n")


def test_curl_without_tls_sends_no_password(server):
    """It is refused before PASS."""
    need("curl")
    command = ["curl", "--silent", "--user", f"user0:{PASSWORD}", f"pop3://localhost:{server.port}/"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert done.returncode != 0
    assert done.stdout == b""


@BOTH
def test_fetchmail(server, authority, tmp_path, stls):
    """sslproto, with the certificate checked."""
    need("fetchmail")
    inbox = make_inbox(tmp_path)
    script = tmp_path / "mda"
    script.write_text(f'#!/bin/sh\ncat > "$(mktemp {inbox}/new/XXXXXX)"\n')
    script.chmod(0o755)
    how = (
        f'service {server.port} protocol pop3 user "user0" password "{PASSWORD}" sslproto tls1.2+'
        if stls
        else f'service {server.tls_port} protocol pop3 user "user0" password "{PASSWORD}" ssl'
    )
    config = private_file(
        tmp_path / "fetchmailrc",
        f'poll localhost {how} sslcertck sslcertfile "{authority.file}" fetchall nokeep mda "{script}"\n',
    )
    command = ["fetchmail", "--nosyslog", "--fetchmailrc", config, "--idfile", str(tmp_path / "ids")]
    run(*command, "--pidfile", str(tmp_path / "pid"), env=os.environ | {"HOME": str(tmp_path)})
    assert bodies_of(inbox) == BODIES
    assert server.site.files() == []


@BOTH
def test_mpop(server, authority, tmp_path, stls):
    """tls on, tls_starttls on or off."""
    need("mpop")
    inbox = make_inbox(tmp_path)
    config = private_file(
        tmp_path / "mpoprc",
        f"defaults\ntls on\ntls_starttls {'on' if stls else 'off'}\ntls_trust_file {authority.file}\n"
        f"account default\nhost localhost\nport {server.port if stls else server.tls_port}\n"
        f'user user0\npassword "{PASSWORD}"\nkeep off\n'
        f"delivery maildir {inbox}\nuidls_file {tmp_path}/uidls\n",
    )
    run("mpop", "--file", config)
    assert bodies_of(inbox) == BODIES
    assert server.site.files() == []


def test_getmail(server, authority):
    """SimplePOP3SSLRetriever, with the certificate checked. It refuses to run as root."""
    need("getmail")
    work = server.site.path / "getmail"
    inbox = make_inbox(work)
    shutil.copy(authority.file, work)  # into pytest's own folder only root can look
    private_file(
        work / "getmailrc",
        f"[retriever]\ntype = SimplePOP3SSLRetriever\nserver = localhost\nport = {server.tls_port}\n"
        f"username = user0\npassword = {PASSWORD}\nca_certs = {work}/{authority.file.name}\n"
        f"[destination]\ntype = Maildir\npath = {inbox}/\n[options]\ndelete = true\n",
    )
    someone: dict[str, object] = {"cwd": "/"}
    if ROOT:
        for path in [work, *work.rglob("*")]:
            shutil.chown(path, "nobody", "nogroup")
        someone |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
    environment = os.environ | {"HOME": str(work), "USER": "nobody"}
    run("getmail", "--getmaildir", str(work), "--rcfile", "getmailrc", env=environment, **someone)
    assert bodies_of(inbox) == BODIES
    assert server.site.files() == []


@BOTH
def test_sslscan_finds_nothing_weak(server, stls):
    """No old version, no weak cipher, no compression, no renegotiation."""
    need("sslscan")
    port, how = (server.port, ["--starttls-pop3"]) if stls else (server.tls_port, [])
    text = run("sslscan", "--no-colour", *how, f"localhost:{port}").stdout.decode()
    for version in ("SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"):
        assert f"{version:<10}disabled" in text.replace("\t", " "), text
    assert "TLSv1.2   enabled" in text
    assert "TLSv1.3   enabled" in text
    assert "Compression enabled" not in text
    ciphers = [line.split() for line in text.splitlines() if line.startswith(("Preferred", "Accepted"))]
    assert ciphers
    # tls.ciphers is not set: what Debian's Python allows, it means to.
    of_python = [each["name"] for each in ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).get_ciphers()]
    for words in ciphers:
        bits, name = int(words[2]), words[4]
        assert bits >= 128
        assert name.startswith("TLS_") or name.startswith("ECDHE-"), name
        assert not name.endswith("-SHA") or name in of_python, name
    assert "vulnerable" not in text.replace("not vulnerable", "")


@BOTH
def test_nmap_reads_the_capabilities(server, stls):
    """nmap's pop3-capabilities, on either port."""
    need("nmap")
    port = server.port if stls else server.tls_port
    done = run(
        *("nmap", "-Pn", "-p", str(port), "--script", "+pop3-capabilities", "localhost"),
    )
    found = done.stdout.decode()
    assert "PIPELINING" in found
    assert ("STLS" in found) == stls
    assert ("SASL(PLAIN LOGIN)" in found) != stls
