"""
EDGE: from the tallies of all processes to metrics, for prometheus_client to write down.

Every metric stands in `METRICS`, with what it means; docs/monitoring.md, the rules for alerts and the
dashboard in ops/ are held to it by tests. Executed by the metrics process, as the service user. What another
process has put into its tally is a number to it, and nothing else.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gpop import __version__, tally
from gpop.tally import BOUNDS_US, KINDS

if TYPE_CHECKING:
    from gpop.tally import Key

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"


@dataclass(frozen=True)
class Described:
    """One metric. `key` is what it is called in a tally, "" for what is in none."""

    key: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Described("", "gpop_build_info", GAUGE, ("version",), "Always 1; the version of this process."),
    Described(
        *("started_s", "gpop_start_time_seconds", GAUGE, ()), "When counting began, in seconds since 1970."
    ),
    Described("", "gpop_processes", GAUGE, ("process",), "Processes that run: broker, fronts, auth."),
    Described(
        *("restarts", "gpop_process_restarts_total", COUNTER, ("process",)),
        "Processes that ended unexpectedly and were started again.",
    ),
    Described("open_connections", "gpop_open_connections", GAUGE, (), "Connections now, with sessions."),
    Described("listening", "gpop_listening_sockets", GAUGE, (), "Sockets on which fronts accept, added up."),
    Described("connections", "gpop_connections_total", COUNTER, (), "Connections that were accepted."),
    Described("running_sessions", "gpop_running_sessions", GAUGE, (), "Sessions now."),
    Described(
        *("logins", "gpop_logins_total", COUNTER, ("result", "source")),
        "Logins: accepted and served, or refused with a response code; by who decided it.",
    ),
    Described(
        *("decision", "gpop_login_decision_seconds", HISTOGRAM, ("source",)),
        "From auth's receipt of a login until its decision.",
    ),
    Described("undecided_logins", "gpop_undecided_logins", GAUGE, (), "Logins that auth still decides."),
    Described("running_checks", "gpop_running_password_checks", GAUGE, (), "Checker processes now."),
    Described(
        *("penalised_sources", "gpop_penalised_sources", GAUGE, ()),
        "Source addresses of which auth remembers wrong passwords.",
    ),
    Described("auth_cache_entries", "gpop_auth_cache_entries", GAUGE, (), "Logins that auth remembers."),
    Described(
        *("sessions", "gpop_sessions_total", COUNTER, ("close_reason",)),
        "Sessions that have ended, as session_closed says why.",
    ),
    Described("session", "gpop_session_seconds", HISTOGRAM, (), "From PASS to the end of the session."),
    Described(
        *("statcache", "gpop_statcache_seconds", HISTOGRAM, ("outcome",)),
        "Time to open a maildrop, by what the statcache was good for; its count is the outcomes.",
    ),
    Described("fork", "gpop_fork_seconds", HISTOGRAM, (), "What the broker needs to fork a session."),
    Described(
        *("retrieved", "gpop_retrieved_messages_total", COUNTER, ("command",)),
        "Messages sent by RETR and TOP.",
    ),
    Described(
        *("retrieved_octets", "gpop_retrieved_octets_total", COUNTER, ("command",)),
        "Octets on the wire for these.",
    ),
    Described("sent_octets", "gpop_sent_octets_total", COUNTER, (), "Everything that sessions have sent."),
    Described(
        *("marked", "gpop_marked_messages_total", COUNTER, ("reason",)),
        "At QUIT: messages marked as deleted, by the client (DELE) or by retention.",
    ),
    Described(
        *("removed", "gpop_removed_messages_total", COUNTER, ("outcome",)),
        "Messages that were removed, or could not be.",
    ),
    Described("events", "gpop_events_total", COUNTER, ("event",), "Events for the log, by name."),
    Described(
        *("log_lines_dropped", "gpop_log_lines_dropped_total", COUNTER, ("process",)),
        "Lines of the log that could not be written.",
    ),
    Described(
        *("", "gpop_certificate_expiry_timestamp_seconds", GAUGE, ("path",)),
        "When a certificate ends, in seconds since 1970.",
    ),
)


class Reader:
    """The tallies that the broker has shown to us, of whichever process."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, fd: int) -> None:
        """Take over a tally."""
        self._fds.append(fd)

    def read(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield of each tally the kind of its process, and the numbers; not of another version's."""
        for fd in self._fds:
            octets = os.pread(fd, tally.SIZE, 0)
            if len(octets) != tally.SIZE:
                continue
            numbers = tally.NUMBERS.unpack(octets)
            kind = KINDS[numbers[tally.KIND]] if numbers[tally.KIND] < len(KINDS) else ""
            if kind and numbers[tally.LAYOUT] == LAYOUTS[kind]:
                yield kind, numbers


LAYOUTS = {kind: tally.layout(kind) for kind in KINDS[1:]}
PLACES = {kind: tally.places(kind) for kind in KINDS[1:]}


class Metrics(Collector):
    """What prometheus_client asks for the metrics of the moment."""

    def __init__(self, reader: Reader, certificates: Mapping[str, float]) -> None:
        """`certificates`: the ends of their lives, in seconds since 1970, by path."""
        self._reader = reader
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        sums: Counter[Key] = Counter()
        for kind in KINDS[1:]:
            sums.update(dict.fromkeys(_labelled(PLACES[kind], kind), 0))
            sums["processes", kind] = 0
        for kind, numbers in self._reader.read():
            sums["processes", kind] += numbers[tally.PID] != 0
            for key, at in _labelled(PLACES[kind], kind).items():
                sums[key] += numbers[at]
        sums["version", __version__] = 1
        by_name: dict[str, dict[Key, int]] = defaultdict(dict)
        for key, number in sums.items():
            by_name[key[0]][key[1:]] = number
        for described in METRICS:
            yield self._family(described, by_name)

    def _family(self, described: Described, by_name: Mapping[str, Mapping[Key, int]]) -> Metric:
        if described.kind == HISTOGRAM:
            return _histogram(described, by_name[described.key])
        make = CounterMetricFamily if described.kind == COUNTER else GaugeMetricFamily
        family = make(described.name, described.meaning, labels=described.labels)
        values: Mapping[Key, float]
        if described.name == "gpop_certificate_expiry_timestamp_seconds":
            values = {(path,): end for path, end in self._certificates.items()}
        else:
            values = by_name[described.key or NOT_IN_TALLIES[described.name]]
        for labels, number in values.items():
            family.add_metric(labels, number)
        return family


NOT_IN_TALLIES = {"gpop_build_info": "version", "gpop_processes": "processes"}


def _labelled(places: Mapping[Key, int], kind: str) -> dict[Key, int]:
    """Lines that are missing are told apart by whose they are; everything else says so itself."""
    return {(*key, kind) if key == ("log_lines_dropped",) else key: at for key, at in places.items()}


def _histogram(described: Described, values: Mapping[Key, int]) -> HistogramMetricFamily:
    """Add up: in a tally a time is counted once, in Prometheus in every bucket that it is not above."""
    family = HistogramMetricFamily(described.name, described.meaning, labels=described.labels)
    for labels in dict.fromkeys(key[:-1] for key in values):
        total, buckets = 0, []
        for bound in BOUNDS_US:
            total += values[*labels, str(bound)]
            buckets.append((str(bound / 1e6), total))
        total += values[*labels, "inf"]
        buckets.append(("+Inf", total))
        family.add_metric(labels, buckets, sum_value=values[*labels, "sum"] / 1e6)
    return family


def answered(reader: Reader) -> Iterator[tuple[str, int, int, bool]]:
    """Yield of each process that runs: kind, pid, when it last said that it is at work, if it accepts."""
    listening = PLACES["front"]["listening",]
    for kind, numbers in reader.read():
        if numbers[tally.PID]:
            accepts = kind == "front" and numbers[listening] > 0
            yield kind, numbers[tally.PID], numbers[tally.ANSWERED_MS], accepts
