"""Real certificates for tests, made with the openssl command."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "30", "-subj", "/CN=gpop test authority"),
            *("-keyout", str(self._key), "-out", str(self.file)),
        )

    def issue(
        self, *names: str, file: str = "", days: int = 30, rsa: bool = False, usage: str = "serverAuth"
    ) -> tuple[str, str]:
        """Issue a certificate for `names`; returns the paths of its chain and its key."""
        stem = self.folder / (file or names[0].replace("*", "any"))
        chain, key, request = (stem.with_name(f"{stem.name}.{end}") for end in ("pem", "key", "csr"))
        kind = ["rsa:2048"] if rsa else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        alternatives = ",".join(f"DNS:{name}" for name in names)
        _openssl(
            *("req", "-new", "-newkey", *kind, "-nodes", "-subj", f"/CN={names[0]}"),
            *("-addext", f"subjectAltName={alternatives}", "-addext", f"extendedKeyUsage={usage}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        issued = _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.file), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", str(days), "-copy_extensions", "copy"),
        )
        key.chmod(0o600)
        # As a renewal should: never half a file.
        for path, octets in ((chain, issued + self.file.read_bytes()),):
            new = path.with_suffix(".new")
            new.write_bytes(octets)
            new.rename(path)
        return str(chain), str(key)

    def client_context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A client that believes this authority and no other."""
        context = ssl.create_default_context(cafile=str(self.file))
        if version:
            context.minimum_version = context.maximum_version = version
        return context


def _openssl(*arguments: str) -> bytes:
    done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
