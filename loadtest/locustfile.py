"""
What locust loads: a class of users for each behaviour, and what happens when a run begins and ends.

    locust -f loadtest/locustfile.py

README.md says how to use it. Locust may be one process, or a master with workers. Then the master
gives each worker a part of the accounts before the users start; at the end it has every worker stop
its users and look at its Maildirs before anybody leaves, and puts together what they have counted.
Executed by locust.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import User as LocustUser
from locust import events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC
from locust.user.task import LOCUST_STATE_STOPPING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest import site as sites
from loadtest.behaviours import BEHAVIOURS, Behaviour, User
from loadtest.client import CHECK, SESSION, Failed, Failure, Server
from loadtest.run import NoAccountLeft, Run, merged

logger = logging.getLogger("loadtest")

# Sessions that are under way when a run ends may go on for so long; of those that are cut off nobody knows
# what the log says. On a busy machine it takes a while to fetch a thousand messages.
STOP_TIMEOUT_S = 45
# How long the master waits for workers beyond that: they have all their Maildirs to look at.
RECKONING_S = 300
# How long the master waits until every worker has its part, and how often it says what the part is.
SHARE_S = 60
SHARE_EVERY_S = 0.1
# A server that is down fails without end; locust keeps every text, and the first ones say it all.
FAILURES_TOLD = 200


class Part:
    """This process's part in the load test, whatever its part in locust is."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.run: Run | None = None
        self._failures_left = FAILURES_TOLD
        self._started = 0.0, 0.0

    def report(self, kind: str, name: str, ms: float, octets: int, failure: Failure | None = None) -> None:
        """Tell locust of a request."""
        if failure:
            self._failures_left -= 1
            if self._failures_left < 0:
                failure = Failure(f"failed as well, after {FAILURES_TOLD} failures that are told", "")
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=ms,
            response_length=octets,
            exception=failure,
            context={},
        )

    def begin(self, part: int, of: int) -> None:
        options = self.environment.parsed_options
        assert options
        self._failures_left = FAILURES_TOLD
        site = sites.Site(Path(options.site))
        self.run = Run(site, part, of, _server(self.environment), options.mail_per_s, self.report)
        self._started = time.monotonic(), time.process_time()

    def finish(self) -> dict[str, Any] | None:
        """End the run; None if none has begun."""
        run, self.run = self.run, None
        if not run:
            return None
        seconds, cpu_s = time.monotonic() - self._started[0], time.process_time() - self._started[1]
        share = 100 * cpu_s / seconds
        logger.info("This process has used %.1f s of CPU in %.1f s: %.0f %% of a core", cpu_s, seconds, share)
        return run.finish()


class MailUser(LocustUser):
    """A user of the mail server; what it does is its behaviour's business."""

    abstract = True
    behaviour: Behaviour
    part: Part  # of this process, for all of its users

    user: User | None = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._leaving = Event()

    def on_start(self) -> None:
        try:
            if not self.part.run:
                raise NoAccountLeft("this process has no part in the run; its log says why")
            self.user = self.part.run.user(self.behaviour)
        except NoAccountLeft as error:
            self.part.report(CHECK, "accounts", 0, 0, Failure(str(error), ""))
            raise StopUser from error

    def on_stop(self) -> None:
        if self.user and self.part.run:
            self.part.run.give_back(self.user)

    def wait_time(self) -> float:
        """Wait, and have locust wait no more."""
        assert self.environment.parsed_options
        minute_s: float = self.environment.parsed_options.minute_s
        self._leaving.wait(self.behaviour.pause_min * minute_s * random.uniform(0.75, 1.25))
        return 0.0

    def stop(self, force: bool = False) -> bool:
        """
        End after the session, at once if there is none.

        Locust would kill a user that waits, but on a busy machine some milliseconds later, when it
        may be logging in again: of such a session nobody knows what the log says.
        """
        if force or self._state is None:
            return bool(super().stop(force))
        self._state = LOCUST_STATE_STOPPING
        self._leaving.set()
        return False

    @task
    def act(self) -> None:
        assert self.user
        started = time.perf_counter()
        try:
            octets = self.user.act()
        except Failed:
            return  # the command that failed has been reported
        ms = (time.perf_counter() - started) * 1000
        self.part.report(SESSION, f"session: {self.behaviour.name}", ms, octets)


def _class_of(behaviour: Behaviour) -> type[MailUser]:
    members = {
        "behaviour": behaviour,
        "weight": behaviour.share,
        "abstract": False,
        "__doc__": behaviour.act.__doc__,
    }
    return type(behaviour.name, (MailUser,), members)


globals().update({behaviour.name: _class_of(behaviour) for behaviour in BEHAVIOURS})


def _server(environment: Environment) -> Server:
    options = environment.parsed_options
    assert options
    site = sites.Site(Path(options.site))
    authority = options.tls_authority or (str(site.certificate) if site.certificate.exists() else None)
    return Server.of(environment.host or site.host(), authority, options.server_is_killed)


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("gpop's load test")
    group.add_argument(
        "--site",
        default=str(sites.default_path()),
        help="the folder with accounts and Maildirs that `./dev loadtest server` has made",
    )
    group.add_argument(
        "--mail-per-s", type=float, default=5.0, help="messages that the postman delivers in a second, in all"
    )
    group.add_argument(
        "--minute-s",
        type=float,
        default=60.0,
        help="how long a minute of the users is: with 10 they come six times as often",
    )
    group.add_argument(
        "--expected", default="", help="the file for what the server's log must show (default: in the site)"
    )
    group.add_argument(
        "--server-is-killed",
        action="store_true",
        help="its processes are killed: connections that break off are counted apart, as no failures",
    )
    group.add_argument(
        "--tls-authority", default="", help="a file of certificates to believe (default: the site's own)"
    )


@events.init.add_listener
def _init(environment: Environment, **_: object) -> None:
    part = MailUser.part = Part(environment)
    environment.stop_timeout = environment.stop_timeout or STOP_TIMEOUT_S
    if isinstance(environment.runner, WorkerRunner):
        Worker(part, environment.runner)  # which learns from the master where the site is
        return
    assert environment.parsed_options
    try:
        _server(environment)
        sites.Site(Path(environment.parsed_options.site)).accounts()
    except (ValueError, OSError, sites.SiteFailed) as error:
        raise SystemExit(f"load test: {error}") from error
    if isinstance(environment.runner, MasterRunner):
        Master(environment, environment.runner)
    else:
        environment.events.test_start.add_listener(lambda **_: part.begin(0, 1))
        environment.events.test_stop.add_listener(lambda **_: _write([part.finish()], environment))


class Worker:
    """A worker: gets its part of the accounts from the master, and reports what it has counted."""

    def __init__(self, part: Part, runner: WorkerRunner) -> None:
        self._part = part
        self._events = part.environment.events
        self._runner = runner
        self._share: dict[str, int] = {}
        runner.register_message("share", self._take_share)
        runner.register_message("finish", self._finish, concurrent=True)
        self._events.test_start.add_listener(self._begin)
        self._events.test_stop.add_listener(self._reckon)

    def _take_share(self, msg: Any, **_: object) -> None:
        self._share = msg.data
        self._runner.send_message("share taken")

    def _begin(self, **_: object) -> None:
        self._part.begin(**self._share)

    def _finish(self, **_: object) -> None:
        self._runner.stop()

    def _reckon(self, **_: object) -> None:
        counted = self._part.finish()
        # What the reckoning has found goes first, because the master leaves as soon as everybody has counted.
        stats: dict[str, Any] = {}
        self._events.report_to_master.fire(client_id=self._runner.client_id, data=stats)
        self._runner.send_message("stats", stats)
        self._runner.send_message("counted", counted)


class Master:
    """The master: shares out the accounts, waits for everybody at the end."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        self._environment = environment
        self._runner = runner
        self._expected: set[str] = set()
        self._has_share: set[str] = set()
        self._counted: dict[str, dict[str, Any] | None] = {}
        runner.register_message("share taken", self._take_taken)
        runner.register_message("counted", self._take_count)
        environment.events.test_start.add_listener(self._share_out)
        environment.events.test_stopping.add_listener(self._gather)
        environment.events.test_stop.add_listener(self._write)

    def _share_out(self, **_: object) -> None:
        """
        Give each worker its part, before locust sends users to it.

        Locust counts a worker as ready before it has executed its locustfile to the end, and such a
        worker drops the message: it is sent until there is an answer.
        """
        workers = [worker.id for worker in self._runner.clients.all]
        self._expected, self._has_share, self._counted = set(workers), set(), {}
        deadline = time.monotonic() + SHARE_S
        while self._expected - self._has_share and time.monotonic() < deadline:
            for number, worker in enumerate(workers):
                if worker not in self._has_share:
                    self._runner.send_message("share", {"part": number, "of": len(workers)}, worker)
            gevent.sleep(SHARE_EVERY_S)

    def _take_taken(self, msg: Any, **_: object) -> None:
        self._has_share.add(msg.node_id)

    def _take_count(self, msg: Any, **_: object) -> None:
        self._counted[msg.node_id] = msg.data

    def _gather(self, **_: object) -> None:
        """Have the workers stop, and wait for what they have counted: locust would leave without it."""
        self._runner.send_message("finish")
        deadline = time.monotonic() + self._environment.stop_timeout + RECKONING_S
        while self._expected - self._counted.keys() and time.monotonic() < deadline:
            gevent.sleep(0.1)
            self._expected &= set(self._runner.clients) | self._counted.keys()

    def _write(self, **_: object) -> None:
        _write(list(self._counted.values()), self._environment)


def _write(parts: list[dict[str, Any] | None], environment: Environment) -> None:
    """Write what the server's log must show, and let locust write its own files once more."""
    assert environment.parsed_options
    options = environment.parsed_options
    path = Path(options.expected or Path(options.site) / "expected.json")
    counted = [each for each in parts if each]
    if counted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(merged(counted), indent=2) + "\n")
        logger.info("What the server's log must show is in %s", path)
    if options.csv_prefix:
        gevent.sleep(1.5 * CSV_STATS_INTERVAL_SEC)
