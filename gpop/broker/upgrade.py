"""
EDGE: what one broker hands to the next: the same process, with another version's program in it.

An exec keeps the process: its id, its children, the descriptors that are marked for it. So a broker
that executes the new version's program loses nothing but its memory, and what of that is
worth keeping is put into plain values here: which processes and sessions there are, and under which
numbers the listening sockets and control channels are open. Sessions are processes of their own
and notice nothing.

There is no way back from an exec, so it comes last, after the new version has shown what it can: its
auth and fronts are ready, and `Trial` has had its broker take over a copy of everything.

Executed by the broker, as root. The format is read by another version than it was written by.
"""

from __future__ import annotations

import _socket
import os

from gpop import __version__
from gpop.broker.supervision import DRAINING, Generation, Process
from gpop.broker.tallies import Lent, Tallies
from gpop.programs import Inquiry, broker_command, broker_environment, settings_file, start_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from gpop.broker.listening import Listening
    from gpop.events import Log

# To be raised when a broker of before could not read it any more: then the new version needs a restart.
FORMAT = 1
TRIAL = "trial"


class NotTakenOver(Exception):
    """What the broker before hands over can't be used; the text says why."""


def handed_over(
    log: Log,
    listening: Listening,
    generations: Sequence[Generation],
    tallies: Tallies | None,
    **others: Any,
) -> dict[str, Any]:
    """Return what the next broker has to know, as plain values; `others` among them."""
    lent = tallies.all if tallies else []
    plain = [_generation_as_plain(generation, lent) for generation in generations]
    processes = [process for generation in generations for process in generation.processes()]
    new = [sock for generation in generations for sock in generation.listening.values()]
    descriptors = [log.fd, *(sock.fileno() for sock in (*listening.values(), *new))]
    descriptors += [process.control.fileno() for process in processes]
    descriptors += [process.log_pipe for process in processes]
    descriptors += [fd for generation in generations for fd, _, _ in generation.log_pipes.unread]
    descriptors += [fd for each in lent for fd in (each.fd, each.reading_fd)]
    return others | {
        "format": FORMAT,
        "version": __version__,
        "log_fd": log.fd,
        "listening": _listening_as_plain(listening),
        "generations": plain,
        "tallies": [(each.kind, each.fd, each.reading_fd) for each in lent],
        # Those that were closed have no number.
        "descriptors": sorted({fd for fd in descriptors if fd >= 0}),
    }


def check(state: dict[str, Any]) -> None:
    """
    Make sure that this version can read what `handed_over` of another one has written.

    Raises:
        NotTakenOver: it can't.
    """
    if state.get("format") != FORMAT:
        raise NotTakenOver(
            f"version {state.get('version')} hands over in format {state.get('format')}, and version "
            f"{__version__} reads format {FORMAT}: this upgrade needs a restart"
        )


def taken_over(state: dict[str, Any], log: Log) -> tuple[Listening, list[Generation], Tallies | None]:
    """Return listening sockets, generations and tallies, and keep their descriptors from other programs."""
    for fd in state["descriptors"]:
        os.set_inheritable(fd, False)
    sockets: dict[int, _socket.socket] = {}
    listening = _listening_from_plain(state["listening"], sockets)
    lent = [Lent(*row) for row in state["tallies"]]
    tallies = Tallies(lent) if lent else None
    generations = [_generation_from_plain(each, sockets, log, tallies) for each in state["generations"]]
    if tallies:
        running = [process for generation in generations for process in generation.processes()]
        tallies.find_free([process.tally for process in running if process.tally])
        tallies.readers += [process for process in running if process.name == "metrics"]
    return listening, generations, tallies


def _listening_as_plain(listening: Listening) -> list[tuple[str, bool, int]]:
    return [(address, tls, sock.fileno()) for (address, tls), sock in listening.items() if sock.fileno() >= 0]


def _listening_from_plain(
    rows: Sequence[tuple[str, bool, int]], sockets: dict[int, _socket.socket]
) -> Listening:
    """`sockets`: those that are known already, by descriptor; each is to have one owner."""
    for _, _, fd in rows:
        if fd not in sockets:
            sockets[fd] = _socket.socket(fileno=fd)
            sockets[fd].setblocking(False)
    return {(address, tls): sockets[fd] for address, tls, fd in rows}


def _generation_as_plain(generation: Generation, lent: Sequence[Lent]) -> dict[str, Any]:
    return {
        "settings": generation.settings,
        "listening": _listening_as_plain(generation.listening) if generation.state != DRAINING else [],
        "started": generation.started,
        "state": generation.state,
        "missing": [(when, name) for when, name in generation.missing if name != "log"],
        "back_off": generation.back_off,
        "processes": [
            _process_as_plain(process, lent)
            for process in generation.processes()
            if process is not generation.log_process
        ],
        # Apart: a version that has no log process takes every name that it does not know for a front's.
        "log": _process_as_plain(generation.log_process, lent) if generation.log_process else None,
        "unread": generation.log_pipes.unread,
    }


def _process_as_plain(process: Process, lent: Sequence[Lent]) -> dict[str, Any]:
    return {
        "name": process.name,
        "pid": process.pid,
        "control_fd": process.control.fileno(),
        "ready": process.ready,
        "asked": process.asked,
        "started": process.started,
        "tally": lent.index(process.tally) if process.tally else None,
        "holds_log": process.holds_log,
        "log_pipe": process.log_pipe,
        "lost": [*process.lost],
    }


def _generation_from_plain(
    plain: dict[str, Any], sockets: dict[int, _socket.socket], log: Log, tallies: Tallies | None
) -> Generation:
    listening = _listening_from_plain(plain["listening"], sockets)
    counted = tallies if plain["settings"]["broker"]["metrics_listen"] else None
    generation = Generation(plain["settings"], listening, log, counted, plain["started"])
    generation.state = plain["state"]
    generation.missing = plain["missing"]
    generation.back_off |= plain["back_off"]
    # What follows the version before the log process does not know.
    generation.log_pipes.unread = [*plain.get("unread", ())]
    log_process = plain.get("log")
    if log_process:
        generation.log_pipes.reader = _process_from_plain(log_process, generation, tallies)
    for each in plain["processes"]:
        process = _process_from_plain(each, generation, tallies)
        if process.name == "auth":
            generation.auth = process
        elif process.name == "metrics":
            generation.metrics = process
        else:
            generation.fronts.append(process)
    if not log_process and generation.log_pipes.has_unread_lines(generation.processes()):
        generation.missing.append((0.0, "log"))  # it has just ended
    return generation


def _process_from_plain(each: dict[str, Any], generation: Generation, tallies: Tallies | None) -> Process:
    control = _socket.socket(fileno=each["control_fd"])
    control.setblocking(False)
    process = Process(each["name"], each["pid"], control, generation, each["started"])
    process.ready, process.asked = each["ready"], each["asked"]
    process.holds_log, process.log_pipe = each.get("holds_log", True), each.get("log_pipe", -1)
    process.lost.update(each.get("lost", ()))
    if tallies and each["tally"] is not None:
        process.tally = tallies.all[each["tally"]]
    return process


def start_trial(config_path: str, state: dict[str, Any], now: float) -> Inquiry:
    """
    Have the new version's broker take over copies of everything, and end; what it says is why it can't.

    Raises:
        OSError: there can't be another process now.
    """
    state_fd = settings_file({"upgrade": state})
    command = broker_command([config_path, str(state_fd), TRIAL])
    keep = [state_fd, *state["descriptors"]]
    try:
        return Inquiry(lambda fd: start_command(command, broker_environment(), keep, fd, fd), now)
    finally:
        os.close(state_fd)


def become_next(config_path: str, state: dict[str, Any]) -> OSError:
    """
    Become the new version's broker; returns only if that can't be, with why, and nothing has changed.

    Signals are blocked: who comes back has to unblock them.
    """
    try:
        state_fd = settings_file({"upgrade": state})
    except OSError as error:
        return error
    keep = [state_fd, *state["descriptors"]]
    command = broker_command([config_path, str(state_fd)])
    for fd in keep:
        os.set_inheritable(fd, True)
    try:
        os.execve(command[0], command, broker_environment())
    except OSError as error:
        for fd in keep:
            os.set_inheritable(fd, False)
        os.close(state_fd)
        return error
