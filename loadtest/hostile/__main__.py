"""
python -m loadtest.hostile (`./dev hostile`): peers who mean harm, one attack after the other.

A gpop of its own on loopback, 50 honest users who poll all the time, and a process with the attackers. For
each scenario: how fast the users are served without and beside the attack, and what the server's processes
have before and after it. Exit status 1 if a user was not served, or anything is out of the bounds that
loadtest/hostile/scenarios.py and judgement.py state. Executed by developers, administrators, CI.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest import site as sites
from loadtest import trouble
from loadtest.hostile import judgement
from loadtest.hostile.attacker import UNDER_WAY
from loadtest.hostile.honest import Honest
from loadtest.hostile.judgement import Result, left_behind
from loadtest.hostile.rest import settled
from loadtest.hostile.scenarios import BY_NAME, SCENARIOS, Scenario
from loadtest.installation import Installed
from loadtest.mail import Mail
from loadtest.serving import serving
from loadtest.site import Account, Site, SiteFailed

ATTACKERS, FEWEST_ATTACKERS = 100, 4  # accounts of theirs
MESSAGE_OCTETS = 1024 * 1024
# Nobody is trusted, so that all limits hold for addresses of loopback as for any others. As the scenarios
# follow each other, penalties are forgotten soon: a later one would find its addresses penalised.
SETTINGS = """trusted_networks = []
cleartext = "always"
penalty_forget_s = 20"""
CACHE = "\n[accounts.cache]\nenabled = true"
BETWEEN_SIGNALS_S = 0.5
UNDER_WAY_WITHIN_S = 120.0
ENDED_WITHIN_S = 60.0
# Attackers, and whatever else this machine does, are elsewhere in earnest: the server and the honest users go
# before them, if root allows it.
NICENESS = -10
WARM_UP_S = 3.0


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    # However it is stopped, the server is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _allow_many_descriptors()
    try:
        if sites.ROOT:
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        installation = Installed(options.installation) if options.installation else None
        with _site(options) as site, serving(site, installation) as pid:
            results = asyncio.run(_run(options, site, trouble.Server(pid, site.log)))
            # The first of two: nobody needs the time that sessions are given to end.
            os.kill(pid, signal.SIGTERM)
            time.sleep(BETWEEN_SIGNALS_S)
    except SiteFailed as error:
        print(f"hostile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    failed = [each["scenario"] for each in results if each["problems"]]
    print(f"\nOut of bounds: {', '.join(failed)}" if failed else "\nEverything is within bounds.")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev hostile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{each.name:<18} {each.what}" for each in SCENARIOS),
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", choices=[*BY_NAME, []], help="(all)")
    parser.add_argument("--users", type=int, default=50, help="honest ones (%(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="between two polls of one, s (%(default)s)")
    parser.add_argument("--quiet-s", type=float, default=6.0, help="polls without attack (%(default)s s)")
    parser.add_argument("--attack-s", type=float, default=15.0, help="polls beside it (%(default)s s)")
    parser.add_argument(
        "--settle-s", type=float, default=20.0, help="for the server, to come to rest (%(default)s s)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the attackers' numbers (%(default)s)")
    parser.add_argument("--cache", action="store_true", help="with the auth cache (accounts.cache.enabled)")
    parser.add_argument("--no-times", action="store_true", help="judge everything but how long polls took")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--installation", metavar="FOLDER", type=Path, help="a copy of gpop in it is served, not this one"
    )
    return parser


def _allow_many_descriptors() -> None:
    """As many as the system lets us have, for the server, which inherits it, and for the attackers."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _site(options: argparse.Namespace) -> Iterator[Site]:
    """A site for this run, on ports of the kernel's choice, with mail for honest users and attackers."""
    # Below /var/tmp and not in memory: mail is on a disk.
    folder = Path(tempfile.mkdtemp(prefix="gpop-hostile-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        settings = SETTINGS + (CACHE if options.cache else "")
        site = sites.make(folder / "site", options.users + _attackers(options), 0, 0, settings)
        if not site.certificate.exists():
            raise SiteFailed("there is no openssl to make a certificate with")
        for number, account in enumerate(site.accounts()[options.users :]):
            _give_only_a_large_message(account, number)
        yield site
    finally:
        shutil.rmtree(folder)


def _attackers(options: argparse.Namespace) -> int:
    """How many accounts they have."""
    scale: float = options.scale
    return max(FEWEST_ATTACKERS, round(ATTACKERS * scale))


def _give_only_a_large_message(account: Account, number: int) -> None:
    for folder in ("new", "cur"):
        for file in (account.maildir / folder).iterdir():
            file.unlink()
    line = b"x" * 71 + b"\n"
    text = b"Subject: large\n\n" + line * (MESSAGE_OCTETS // len(line))
    # The last two are what a client compares; nobody reads this one to its end.
    sites.deliver(account, Mail(f"1.M{number}P1.test", text, 0, b""))


async def _run(options: argparse.Namespace, site: Site, server: trouble.Server) -> list[dict[str, Any]]:
    """Every scenario; prints the table as it goes."""
    accounts = site.accounts()
    ports = _ports(site)
    honest = Honest(accounts[: options.users], ports["port"], options.pause)
    honest.go_on()
    await asyncio.sleep(min(WARM_UP_S, options.quiet_s))
    attackers = [(each.name, each.password) for each in accounts[options.users :]]
    print(f"{options.users} honest users, each polls every {options.pause:g} s\n")
    print(f"{judgement.HEAD}\n{judgement.SUBHEAD}")
    results = []
    for scenario in [BY_NAME[name] for name in options.scenarios] or SCENARIOS:
        told = {"scenario": scenario.name, **ports, "accounts": attackers, "scale": options.scale}
        result = await _one(options, scenario, server, honest, json.dumps(told).encode() + b"\n")
        judged = judgement.problems(result, not options.no_times)
        print(judgement.row(result))
        for problem in judged:
            print(f"  OUT OF BOUNDS: {problem}")
        sys.stdout.flush()
        results.append(judgement.as_json(result, judged))
    honest.end()
    return results


def _ports(site: Site) -> dict[str, int]:
    """The ports that the kernel has chosen, from the server's log."""
    lines = site.log.read_text().splitlines()
    started = next(json.loads(line) for line in lines if '"broker_started"' in line)
    return {
        "port": int(started["listen"][0].rpartition(":")[2]),
        "tls_port": int(started["listen_tls"][0].rpartition(":")[2]),
    }


async def _one(
    options: argparse.Namespace, scenario: Scenario, server: trouble.Server, honest: Honest, told: bytes
) -> Result:
    """One scenario, from rest to rest."""
    await honest.pause()
    before = await settled(server, lambda _: True, options.settle_s)
    log_before = trouble.in_log(server.log)
    honest.go_on()
    quiet = await honest.of_next(options.quiet_s)
    attackers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.hostile.attacker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=_as_anybody if sites.ROOT else None,
    )
    assert attackers.stdin and attackers.stdout
    try:
        attackers.stdin.write(told)
        async with asyncio.timeout(UNDER_WAY_WITHIN_S):
            if (await attackers.stdout.readline()).decode().strip() != UNDER_WAY:
                raise SiteFailed(f"the attackers of {scenario.name} did not come up")
        attacked = await honest.of_next(options.attack_s)
        attackers.stdin.close()
        async with asyncio.timeout(ENDED_WITHIN_S):
            achieved = json.loads(await attackers.stdout.read() or b"{}")
    finally:
        # It ends with its standard input.
        attackers.stdin.close()
        await attackers.wait()
    await honest.pause()
    log = trouble.in_log(server.log) - log_before
    penalties = log["penalty_raised"]
    after = await settled(server, lambda now: not any(left_behind(before, now, penalties)), options.settle_s)
    faults = [f"{event} {log[event]} times" for event in trouble.FAULTS if log[event]]
    return Result(scenario, quiet, attacked, before, after, achieved, faults, penalties)


def _as_anybody() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
