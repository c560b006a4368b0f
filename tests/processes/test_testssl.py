"""testssl.sh looks at gpop's TLS and at Dovecot's, each with its defaults: gpop is rated no worse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.dovecot import Dovecot, reason_to_skip

PROGRAM = shutil.which("testssl") or shutil.which("testssl.sh")
pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="testssl.sh is not installed"),
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip()),
]

# Protocols, ciphers by strength and in their order, what a server says in its first flight, vulnerabilities.
CHECKS = ("--protocols", "--standard", "--server-preference", "--server-defaults", "--vulnerable")
# From "nothing to say" to the worst; WARN and DEBUG are about the scan itself.
SEVERITIES = {"OK": 0, "INFO": 0, "WARN": 0, "DEBUG": 0, "LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}
# A scan that was cut off must not pass for a good one.
FOUND_BY_A_WHOLE_SCAN = {
    *("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3"),
    *("cipherlist_NULL", "cipherlist_LOW", "cipherlist_STRONG", "cipher_order", "protocol_negotiated"),
    *("cert_keySize", "cert_signatureAlgorithm", "heartbleed", "CCS", "ticketbleed", "ROBOT"),
    *("secure_renego", "CRIME_TLS", "SWEET32", "FREAK", "DROWN", "LOGJAM", "BEAST", "LUCKY13", "RC4"),
}


def scan(port: int, report: Path) -> dict[str, int]:
    """Return the severity of everything that testssl.sh finds at a port, by the name of the finding."""
    command = [str(PROGRAM), "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"]
    command += ["--ip", "127.0.0.1", "--openssl-timeout", "10", "--jsonfile", str(report), *CHECKS]
    # It asks what it takes for a web server, and would wait for 5 s.
    environment = os.environ | {"HEADER_MAXSLEEP": "1"}
    done = subprocess.run(
        [*command, f"localhost:{port}"],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=240,
    )
    found: dict[str, int] = {}
    for finding in json.loads(report.read_text()):
        name, severity = finding["id"], finding["severity"]
        assert severity in SEVERITIES, finding
        found[name] = max(found.get(name, 0), SEVERITIES[severity])
    assert found.keys() >= FOUND_BY_A_WHOLE_SCAN, done.stdout.decode()
    return found


def test_testssl_rates_nothing_worse_than_dovecots_defaults(make_server, tmp_path):
    """With one certificate; what is fine at Dovecot's must be fine at gpop's."""
    pair = Authority(tmp_path / "authority").issue("localhost", days=89)
    server = make_server(server__listen_tls=["127.0.0.1:0"], tls__certificates=[list(pair)])
    with Dovecot(tmp_path / "dovecot", pair) as dovecot, ThreadPoolExecutor(2) as pool:
        ours = pool.submit(scan, server.tls_port, tmp_path / "ours.json")
        theirs = pool.submit(scan, dovecot.tls_port, tmp_path / "theirs.json").result()
    worse = {
        name: (severity, theirs.get(name, 0))
        for name, severity in ours.result().items()
        if severity > theirs.get(name, 0)
    }
    assert worse == {}
    assert server.faults() == []
