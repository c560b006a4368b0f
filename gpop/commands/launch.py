"""
EDGE: from `gpop serve` to the broker: check the config, then become the broker's program.

The config is read here and not in the broker, which must stay lean; what it says is
handed over as plain values. What has to hold for every gpop process is set here, because
all of them descend from this one.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any

from gpop import log_target, programs
from gpop.commands import surroundings
from gpop.commands.check_config import report
from gpop.config import BrokerSettings, ConfigErrors, reading
from gpop.privsep.confinement import no_new_privileges


def serve(config_path: str, given: dict[str, Any] | None = None) -> int:
    """
    Check the config and become the broker; returns only if that can't be, with the exit status.

    Log lines go where the config says, problems found before that to standard error, or to syslog if
    nobody reads that. `given`: what who started us has opened for us, from `surroundings`.
    """
    given = given or surroundings.nothing()
    complain = surroundings.complain if given["unheard"] else _print
    # Until the broker can heed them (`signals.install`): they must not end a server that is about to start.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
    try:
        settings = reading.load(config_path)
    except ConfigErrors as errors:
        for line in report(errors.problems, errors.warnings):
            complain(line)
        return 2
    if any(tls for _, tls in given["sockets"]) and not settings.broker.tls_certificates:
        complain("without a certificate there is no TLS: set tls.certificates")
        return 2
    plain = settings.as_plain()
    if given["one_connection"]:
        plain["broker"]["fronts"] = 1
    no_new_privileges()
    # Core dumps would hold mail, and auth's would hold passwords.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    if given["unheard"]:
        problem = _write_to_log(settings.broker)
        if problem:
            complain(problem)
            return 2
    for line in report([], settings.warnings):
        _print(line)
    settings_fd = programs.settings_file(plain | {"surroundings": given})
    os.set_inheritable(settings_fd, True)
    command = programs.broker_command([os.path.abspath(config_path), str(settings_fd)])
    sys.stdout.flush()
    os.chdir("/")
    os.execve(command[0], command, programs.broker_environment())


def _print(problem: str) -> None:
    print(f"gpop: {problem}", file=sys.stderr)


def _write_to_log(settings: BrokerSettings) -> str:
    """Have all that is printed go where the log goes, the broker's last words too; "" or why it can't be."""
    if settings.log_target == "stdout":
        return (
            "standard error is the client's connection: set log.target to file or syslog, or say with "
            "--log FILE where the log goes"
        )
    try:
        fd = log_target.open_target(settings)
    except OSError as error:
        return f"log.target = {settings.log_target}: {log_target.place_of(settings)}: {error.strerror}"
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    return ""
