"""
gpop, serving a site: the server of a load test, from its start until nobody needs it.

Executed by the commands of the load test.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from loadtest.installation import Installed
from loadtest.site import Site, SiteFailed

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
SHOWN_LOG_OCTETS = 3000


def serve_command(site: Site, installation: Installed | None = None) -> list[str]:
    """The command line of gpop on a site, this one or one that is installed elsewhere."""
    program = [str(installation.program)] if installation else ["-m", "gpop"]
    return [sys.executable, "-I", *program, "serve", "--config", str(site.config)]


@contextlib.contextmanager
def serving(site: Site, installation: Installed | None = None) -> Iterator[int]:
    """
    Run gpop on a site; its process id.

    Raises:
        SiteFailed: it did not start.
    """
    with open(site.log, "wb") as log:
        process = subprocess.Popen(
            serve_command(site, installation),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for locust first: sessions are to end in order
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b'"broker_started"' not in site.log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                text = site.log.read_text(errors="replace")[-SHOWN_LOG_OCTETS:]
                raise SiteFailed(f"gpop did not start; it says:\n{text}")
            time.sleep(0.05)
        yield process.pid
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)
