"""
python -m loadtest: a server with accounts to test, a run against it, or both (`./dev loadtest`).

    server   make accounts and Maildirs, and be gpop serving them, until Ctrl-C
    run      have locust's users come for a minute; then compare what they expect with the log
    all      both, one after the other, and stop the server

What these do not know is locust's: it gets all other options. Executed by developers, administrators, CI.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest import memory, trouble
from loadtest import site as sites
from loadtest.agreement import COST_OF_A_KILL, agreement
from loadtest.installation import Installation
from loadtest.memory import Memory
from loadtest.serving import serve_command, serving
from loadtest.site import Site, SiteFailed
from loadtest.trouble import Trouble

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# Several locust processes do not get exactly as many users each as they have accounts.
SPARE_ACCOUNTS = 16
SECONDS = {"h": 3600, "m": 60, "s": 1}
MEAN_BETWEEN_KILLS_S = 5.0
LOCUST_POLL_S = 0.5


def main(arguments: list[str]) -> int:
    options, for_locust = _parser().parse_known_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        # SIGINT too: shells have what they start in the background ignore it, and so would locust.
        signal.signal(number, signal.default_int_handler)
    try:
        _require_sense(options)
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
    more = parser.add_argument_group("what happens to the server meanwhile (server and run in one)")
    more.add_argument("--reloads", type=int, default=0, help="SIGHUP so often, at even distances")
    more.add_argument("--upgrades", type=int, default=0, help="another version takes over so often")
    more.add_argument(
        "--kills",
        type=float,
        nargs="?",
        const=MEAN_BETWEEN_KILLS_S,
        default=0.0,
        metavar="SECONDS",
        help="kill -9 of sessions, fronts and auth, and reloads, at random, so far apart (%(const)g)",
    )
    more.add_argument(
        "--memory", action="store_true", help="sample the memory of broker, auth and fronts, judge it"
    )
    return parser


def _require_sense(options: argparse.Namespace) -> None:
    """Say what does not go together, before anything is made."""
    meanwhile = options.reloads or options.upgrades or options.kills or options.memory
    if meanwhile and (options.command != "all" or options.web):
        raise SiteFailed(
            "--reloads, --upgrades, --kills and --memory are for `./dev loadtest` as a whole, without --web"
        )
    if options.kills and (options.reloads or options.upgrades):
        raise SiteFailed(
            "--kills reloads at random; --reloads and --upgrades are for a run in which nothing is killed"
        )
    if options.kills and options.tls != "no":
        # A front that is killed leaves sessions that go on for a moment without their client.
        raise SiteFailed("--kills is for connections without TLS")
    if min(options.reloads, options.upgrades, options.kills) < 0:
        raise SiteFailed("--reloads, --upgrades and --kills are not negative")
    if options.command == "all":
        _seconds(options.run_time)


def _seconds(run_time: str) -> int:
    """Seconds of what locust takes for a run time: 90, 90s, 10m, 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", run_time)
    if not found or not run_time:
        raise SiteFailed(f"--run-time: {run_time!r} is none; give one such as 90s, 10m, 1h")
    return sum(int(each or 0) * unit for each, unit in zip(found.groups(), SECONDS.values(), strict=True))


# The server


def server(options: argparse.Namespace) -> int:
    """Make the site, and become its server."""
    site = _make(options)
    print(_introduction(site, len(site.accounts())), flush=True)
    log = os.open(site.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.dup2(log, 1)
    os.execv(sys.executable, serve_command(site))


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


def _introduction(site: Site, accounts: int) -> str:
    who = "each with a uid of its own" if sites.ROOT else "all of them yours: there is no root, and no jail"
    return f"""\
gpop for the load test: {accounts} accounts, {who}.
Everything is in {site.path}, its log in {site.log}

In another terminal:

  ./dev loadtest run                 500 users for a minute, and what the log shows of them
  ./dev loadtest run --web           locust's web page, at http://127.0.0.1:8089

Ctrl-C ends the server."""


# The run


def run(
    options: argparse.Namespace, site: Site, for_locust: list[str], while_alive: Trouble | None = None
) -> int:
    """
    Run locust; then hold what it expects against the log. Returns the exit status.

    `while_alive`: for as long as this goes on, and not for --run-time.
    """
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
    if options.kills:
        command.append("--server-is-killed")
    # Locust listens to the whole world else.
    command += ["--master-bind-host", sites.HOST]
    if options.web:
        command += ["--web-host", sites.HOST]
    else:
        command += ["--headless", "--only-summary"]
        command += [] if while_alive else ["--run-time", options.run_time]
        command += ["--html", str(results / "report.html"), "--csv", str(results / "locust")]
    status = _run_locust([*command, *for_locust], while_alive)
    print(f"\nFigures, HTML report and what the log must show: {results}")
    if not expected.exists():
        return status or 1
    agrees = _compare(json.loads(expected.read_text()), site.log, bool(options.kills))
    return status or int(not agrees)


def _run_locust(command: list[str], while_alive: Trouble | None) -> int:
    """Run locust to its end. Ctrl-C, or SIGTERM, has it stop its users and look at the Maildirs as ever."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while True:
        try:
            while while_alive and process.poll() is None and while_alive.is_alive():
                while_alive.join(LOCUST_POLL_S)
            if while_alive:
                while_alive = None
                process.send_signal(signal.SIGINT)
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _host(host: str, options: argparse.Namespace) -> str:
    if options.tls == "yes":
        return f"pop3s://{sites.HOST}:{options.tls_port}"
    return host.replace("pop3://", "pop3+stls://") if options.tls == "stls" else host


def _compare(expected: dict[str, Any], log: Path, is_killed: bool) -> bool:
    if not log.exists():
        print(f"There is no {log}; hold expected.json against the log of the server you have tested.")
        return True
    agrees, table = agreement(expected, log, is_killed)
    verdict = "The log shows what was expected." if agrees else "THE LOG SHOWS SOMETHING ELSE."
    print(f"\n{table}\n\n{verdict}")
    return agrees


def both(options: argparse.Namespace, for_locust: list[str]) -> int:
    """Make a site, serve it, run against it with whatever is to happen meanwhile, stop."""
    site = _make(options)
    installation = None
    if options.upgrades:
        (site.path / "installed").mkdir()
        installation = Installation(site.path / "installed")
    with serving(site, installation) as pid:
        server = trouble.Server(pid, site.log, installation)
        (site.path / "results").mkdir(exist_ok=True)
        deeds = _trouble(options, server)
        samples = Memory(server.lasting, site.path / "results/memory.csv") if options.memory else None
        threads = [each for each in (deeds, samples) if each]
        for thread in threads:
            thread.start()
        try:
            status = run(options, site, for_locust, deeds)
        finally:
            for thread in threads:
                thread.end()
    problems: list[str] = []
    if deeds:
        problems += _judge_deeds(options, deeds, site)
    if samples:
        problems += _judge_memory(samples, site)
    for problem in problems:
        print(f"load test: {problem}", file=sys.stderr)
    return status or int(bool(problems))


def _trouble(options: argparse.Namespace, server: trouble.Server) -> Trouble | None:
    seconds = _seconds(options.run_time)
    if options.kills:
        return Trouble(server, trouble.at_random(server, options.kills, seconds), seconds)
    if options.reloads or options.upgrades:
        return Trouble(server, trouble.in_turn(server, options.reloads, options.upgrades, seconds), seconds)
    return None


def _judge_deeds(options: argparse.Namespace, deeds: Trouble, site: Site) -> Iterator[str]:
    if deeds.problem:
        yield deeds.problem
    log = trouble.in_log(site.log)
    if options.kills:
        expected = site.path / "results/expected.json"
        cut_off = json.loads(expected.read_text())["cut_off"] if expected.exists() else []
        print(trouble.told(deeds.deeds, cut_off, log))
        if problem := trouble.excused(cut_off, deeds.deeds, log):
            yield problem
    elif len(deeds.deeds) != options.reloads + options.upgrades:
        yield f"{len(deeds.deeds)} of {options.reloads + options.upgrades} reloads and upgrades were done"
    else:
        print(f"{options.reloads} reloads and {options.upgrades} upgrades were done.")
    for event in trouble.FAULTS:
        if log[event] and not (options.kills and event in COST_OF_A_KILL):
            yield f"the log has {event}, {log[event]} times"


def _judge_memory(samples: Memory, site: Site) -> Iterator[str]:
    judged = memory.growth(samples.samples)
    print("\nMemory of their own, the second quarter of the run and the last one:")
    for each in judged:
        print(each)
        if not each.is_flat:
            yield f"the memory of {each.process} grows"
    if not judged:
        print("too short a run to say")
    if not memory.draw(samples.samples, site.path / "results/memory.svg"):
        print(memory.MATPLOTLIB_MISSING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
