"""
The settings that each process gets, as plain values, and what a config file can have wrong with it.

`reading` makes them from a file; settings.py describes every one of them. Light: auth and the
fronts load no more than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DEFAULT_PATH = "/etc/gpop/gpop.toml"


@dataclass(frozen=True)
class BrokerSettings:
    """
    What the broker needs.

    At run time a process gets the fields as plain values out of marshal; the class is what they are
    checked against. That is why lists are lists here, and sources are plain dicts.
    """

    listen: list[str]  # "127.0.0.1:110", "[::1]:110": checked, in normal form
    listen_tls: list[str]
    tls_certificates: list[list[str]]  # of each the file of its chain, and of its key: absolute paths
    fronts: int
    user: str
    run_dir: str
    grace_time_s: float
    answer_timeout_s: float
    lock: bool
    max_per_account: int
    first_valid_uid: int
    first_valid_gid: int
    metrics_listen: list[str]
    log_target: str
    log_path: str
    log_syslog_socket: str
    log_syslog_facility: str
    log_format: str
    log_level: str


@dataclass(frozen=True)
class FrontSettings:
    """What a front needs."""

    service_calls: bytes  # a seccomp filter, b"" for none
    user: str
    run_dir: str
    hostname: str
    language: str
    max_connections: int
    max_connections_per_address: int
    trusted_networks: list[str]
    login_delay_s: int
    expire_retrieved_days: int
    login_timeout_s: float
    autologout_s: float
    cleartext: str
    tls_certificates: list[list[str]]
    tls_min_version: str
    tls_ciphers: str
    proxy_listen: list[str]  # those of BrokerSettings.listen where a PROXY header comes first
    proxy_networks: list[str]
    proxy_timeout_s: float
    xclient_networks: list[str]
    log_format: str
    log_level: str
    log_removals: bool


@dataclass(frozen=True)
class AuthSettings:
    """What auth needs."""

    user_settings: str  # the path of a file that may be absent
    sources: list[dict[str, str]]  # {"type": "passwd-file", "path": ...} or {"type": "pam", "service": ...}
    maildir: str
    first_valid_uid: int
    last_valid_uid: int
    first_valid_gid: int
    max_checks: int
    max_logins_per_address: int
    max_logins_per_second: int
    login_delay_s: int
    login_delay_burst: int
    check_timeout_s: float
    refusal_time_s: float
    trusted_networks: list[str]
    proxy_networks: list[str]
    xclient_networks: list[str]
    penalty_forget_s: float
    cache_enabled: bool
    cache_lifetime_s: float
    cache_max_entries: int
    cache_always_check_account: bool
    virtual_case: str
    virtual_domain_separators: str
    virtual_default_domains: dict[str, str]  # by local address, or "*"
    virtual_sendmail_maps: list[str]  # "hash:/etc/mail/virtusertable"
    virtual_sendmail_domains: list[str]
    virtual_postfix_maps: list[str]
    virtual_recipient_delimiter: str
    virtual_propagate_extensions: bool
    virtual_local_domains: list[str]
    log_format: str
    log_level: str


@dataclass(frozen=True)
class MetricsSettings:
    """What the metrics process needs."""

    service_calls: bytes
    user: str
    run_dir: str
    metrics_listen: list[str]
    certificate_ends: dict[str, float]  # by the file of its chain: seconds since 1970


@dataclass(frozen=True)
class LogSettings:
    """What the log process needs. Where the log goes, and how, the broker hands over."""

    log_calls: bytes
    user: str
    run_dir: str


@dataclass(frozen=True)
class SessionSettings:
    """What a session needs."""

    memory_limit_mib: int
    session_calls: bytes  # a seccomp filter, b"" for none
    autologout_s: float
    jail: str
    lock: bool
    lock_wait_s: float
    takeover_after_s: float
    move_to_cur: bool
    removal: str
    max_messages: int
    statcache: bool
    reuse_below: str
    login_delay_s: int
    expire_retrieved_days: int
    utf8_headers: str
    language: str
    first_valid_uid: int
    first_valid_gid: int
    log_level: str
    log_removals: bool


@dataclass(frozen=True)
class Problem:
    """Something in the file that is wrong, or worth a warning. `line` is 0 if no line is to blame."""

    path: str
    line: int
    key: str
    value: str
    text: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        what = f"{self.key} = {self.value}" if self.value else self.key
        return ": ".join(filter(None, (place, what, self.text)))


class ConfigErrors(Exception):
    """The file cannot be used; `problems` says everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem], warnings: Sequence[Problem] = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)
        self.warnings = list(warnings)


@dataclass(frozen=True)
class Config:
    """A checked config file: one group of settings per process, and the warnings."""

    broker: BrokerSettings
    front: FrontSettings
    auth: AuthSettings
    session: SessionSettings
    metrics: MetricsSettings
    log: LogSettings
    warnings: list[Problem] = field(default_factory=list)

    def as_plain(self) -> dict[str, dict[str, Any]]:
        """The settings as marshal knows them: a dict per process, "broker", "front", "auth", and so on."""
        return {name: asdict(getattr(self, name)) for name in PROCESSES}


PROCESSES = ("broker", "front", "auth", "session", "metrics", "log")
