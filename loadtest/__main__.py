"""
python -m loadtest: a server with accounts to test, a run against it, or both (`./dev loadtest`).

    server   make accounts and Maildirs, and be gpop serving them, until Ctrl-C
    run      have locust's users come for a minute; then compare what they expect with the log
    all      both, one after the other, and stop the server

What these do not know is locust's: it gets all other options. Executed by developers, administrators, CI.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest import site as sites
from loadtest.agreement import agreement
from loadtest.site import Site, SiteFailed

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
SHOWN_LOG_OCTETS = 3000
# Several locust processes do not get exactly as many users each as they have accounts.
SPARE_ACCOUNTS = 16


def main(arguments: list[str]) -> int:
    options, for_locust = _parser().parse_known_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        # SIGINT too: shells have what they start in the background ignore it, and so would locust.
        signal.signal(number, signal.default_int_handler)
    try:
        if options.command == "server":
            if for_locust:
                raise SiteFailed(f"not understood: {' '.join(for_locust)}")
            return server(options)
        if importlib.util.find_spec("locust") is None:
            raise SiteFailed("locust is not installed: pip install 'gpop[loadtest]'")
        if options.command == "run":
            return run(options, Site(Path(options.site)), for_locust)
        return both(options, for_locust)
    except SiteFailed as error:
        print(f"load test: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("server", "run", "all"), default="all")
    parser.add_argument("--site", default=str(sites.default_path()), help="the folder for it (%(default)s)")
    server = parser.add_argument_group("the server")
    server.add_argument("--accounts", type=int, default=0, help="how many (default: for --users)")
    server.add_argument("--port", type=int, default=sites.PORT, help="(%(default)s)")
    server.add_argument("--tls-port", type=int, default=sites.TLS_PORT, help="(%(default)s)")
    run = parser.add_argument_group("the run")
    run.add_argument("--users", "-u", type=int, default=500, help="(%(default)s)")
    run.add_argument("--spawn-rate", "-r", type=float, default=50, help="who come in a second (%(default)s)")
    run.add_argument("--run-time", "-t", default="1m", help="such as 90s, 10m, 1h (%(default)s)")
    run.add_argument(
        "--minute-s",
        type=float,
        default=10,
        help="how many seconds are a minute for the users: they poll every minute (%(default)s)",
    )
    run.add_argument("--tls", choices=("no", "stls", "yes"), default="no", help="if and how TLS begins")
    run.add_argument("--web", action="store_true", help="locust's web page, for this machine")
    return parser


# The server


def server(options: argparse.Namespace) -> int:
    """Make the site, and become its server."""
    site = _make(options)
    print(_introduction(site, len(site.accounts())), flush=True)
    log = os.open(site.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.dup2(log, 1)
    os.execv(sys.executable, _serve(site))


def _make(options: argparse.Namespace) -> Site:
    for port in (options.port, options.tls_port):
        _require_free(port)
    accounts = options.accounts or options.users + SPARE_ACCOUNTS
    print(f"Making {accounts} accounts with mail in {options.site} ...", file=sys.stderr)
    return sites.make(Path(options.site), accounts, options.port, options.tls_port)


def _require_free(port: int) -> None:
    """Make sure of a port before anything is removed: it may be this very site that is served there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((sites.HOST, port))
        except OSError as error:
            problem = f"{sites.HOST}:{port}: {error.strerror}; --port and --tls-port name others"
            raise SiteFailed(problem) from error


def _serve(site: Site) -> list[str]:
    return [sys.executable, "-I", "-m", "gpop", "serve", "--config", str(site.config)]


def _introduction(site: Site, accounts: int) -> str:
    who = "each with a uid of its own" if sites.ROOT else "all of them yours: there is no root, and no jail"
    return f"""\
gpop for the load test: {accounts} accounts, {who}.
Everything is in {site.path}, its log in {site.log}

In another terminal:

  ./dev loadtest run                 500 users for a minute, and what the log shows of them
  ./dev loadtest run --web           locust's web page, at http://127.0.0.1:8089

Ctrl-C ends the server."""


@contextlib.contextmanager
def _serving(site: Site) -> Iterator[None]:
    """Run gpop on a site."""
    with open(site.log, "wb") as log:
        process = subprocess.Popen(
            _serve(site),
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
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)


# The run


def run(options: argparse.Namespace, site: Site, for_locust: list[str]) -> int:
    """Run locust; then hold what it expects against the log. Returns the exit status."""
    host = _host(site.host(), options)
    results = site.path / "results"
    results.mkdir(exist_ok=True)
    expected = results / "expected.json"
    expected.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--site", str(site.path)),
        *("--host", host, "--expected", str(expected), "--minute-s", str(options.minute_s)),
        *("--users", str(options.users), "--spawn-rate", str(options.spawn_rate)),
    ]
    # Locust listens to the whole world else.
    command += ["--master-bind-host", sites.HOST]
    if options.web:
        command += ["--web-host", sites.HOST]
    else:
        command += ["--headless", "--only-summary", "--run-time", options.run_time]
        command += ["--html", str(results / "report.html"), "--csv", str(results / "locust")]
    status = _run_locust([*command, *for_locust])
    print(f"\nFigures, HTML report and what the log must show: {results}")
    if not expected.exists():
        return status or 1
    agrees = _compare(json.loads(expected.read_text()), site.log)
    return status or int(not agrees)


def _run_locust(command: list[str]) -> int:
    """Run locust to its end. Ctrl-C, or SIGTERM, has it stop its users and look at the Maildirs as ever."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _host(host: str, options: argparse.Namespace) -> str:
    if options.tls == "yes":
        return f"pop3s://{sites.HOST}:{options.tls_port}"
    return host.replace("pop3://", "pop3+stls://") if options.tls == "stls" else host


def _compare(expected: dict[str, Any], log: Path) -> bool:
    if not log.exists():
        print(f"There is no {log}; hold expected.json against the log of the server you have tested.")
        return True
    agrees, table = agreement(expected, log)
    verdict = "The log shows what was expected." if agrees else "THE LOG SHOWS SOMETHING ELSE."
    print(f"\n{table}\n\n{verdict}")
    return agrees


def both(options: argparse.Namespace, for_locust: list[str]) -> int:
    """Make a site, serve it, run against it, stop."""
    site = _make(options)
    with _serving(site):
        return run(options, site, for_locust)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
