"""
What only the machine can say about a config: users, files, PAM services, whether we are root.

Everything here looks and changes nothing. Executed by whoever reads the config; as root, when root
is to serve it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import resource
import stat
import time
from typing import TYPE_CHECKING

from gpop import programs
from gpop.accounts.maps import grammar
from gpop.accounts.maps.apart import run_apart
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.textfile import TextMap
from gpop.accounts.maps.virtualusers import open_map
from gpop.accounts.passwdfile import PasswdFile
from gpop.accounts.user_settings import UserSettingsFile
from gpop.privsep.shortage import left_for_connections

if TYPE_CHECKING:
    from gpop.config.reading import Reading

MAP_GRAMMARS = {"virtual_sendmail_maps": grammar.SENDMAIL, "virtual_postfix_maps": grammar.POSTFIX}


def check(reading: Reading) -> None:
    """Add to `reading` every problem of its settings on this machine, for the user we are."""
    if os.geteuid() == 0:
        _check_service_user(reading)
        _check_run_dir(reading)
        _check_own_file(reading)
        _check_store(reading)
        if reading.values["jail"] == "none":
            text = "a session that is taken over can read every file its user can"
            reading.warn(("session", "jail"), text, "none")
    else:
        _check_ports(reading)
    _check_descriptors(reading)
    _check_certificates(reading)
    _make_filters(reading)
    _check_user_settings(reading)
    _check_log(reading)
    if reading.values["metrics_listen"] and importlib.util.find_spec("prometheus_client") is None:
        text = f"prometheus-client is not installed; `{programs.installing('metrics')}` brings it"
        reading.error(("metrics", "listen"), text, reading.values["metrics_listen"])
    for key, text_grammar in MAP_GRAMMARS.items():
        for where, name in reading.elements[key]:
            _check_map(reading, where, name, text_grammar)
    for where, source in reading.elements["sources"]:
        if source["type"] == "pam":
            _check_pam(reading, (*where, "service"), source["service"])
        else:
            _check_passwd_file(reading, (*where, "path"), source["path"])


def _check_service_user(reading: Reading) -> None:
    name = reading.values["user"]
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        text = f"no such user; make one for gpop alone: useradd --system --no-create-home {name}"
        reading.error(("server", "user"), text, name)
        return
    if entry.pw_uid == 0:
        reading.error(("server", "user"), "this is root; expected a user without rights", name)


def _check_store(reading: Reading) -> None:
    path = reading.values["reuse_below"]
    try:
        status = os.stat(path)
    except OSError:
        return  # it may be mounted later; a session looks again
    if stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
        text = "everybody can write there, so it is no jail; expected a directory of the mail's owner"
        reading.error(("session", "reuse_below"), text, path)


def _check_run_dir(reading: Reading) -> None:
    path = reading.values["run_dir"]
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        reading.error(("server", "run_dir"), str(error.strerror), path)
        return
    if not stat.S_ISDIR(status.st_mode):
        reading.error(("server", "run_dir"), "expected a directory, or nothing yet", path)
    elif status.st_uid != 0 or status.st_mode & 0o022:
        text = "expected a directory that belongs to root and that nobody else can write to"
        reading.error(("server", "run_dir"), text, path)


def _check_log(reading: Reading) -> None:
    values = reading.values
    if values["log_target"] == "file":
        _check_log_folder(reading, values["log_path"])
    elif values["log_target"] == "syslog":
        path = values["log_syslog_socket"]
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError as error:
            reading.error(("log", "syslog_socket"), f"{error.strerror}; expected a daemon's socket", path)
            return
        if not is_socket:
            reading.error(("log", "syslog_socket"), "expected the socket of a syslog daemon", path)


def _check_log_folder(reading: Reading, path: str) -> None:
    folder = os.path.dirname(path)
    try:
        status = os.stat(folder)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            reading.error(("log", "path"), "expected a regular file, or nothing yet", path)
    except OSError as error:
        text = f"{folder}: {error.strerror}; make it: install -d -m 750 -g adm {folder}"
        reading.error(("log", "path"), text, path)
        return
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        text = f"expected a folder that nobody else can write to; {folder} is not"
        reading.error(("log", "path"), text, path)


def _check_own_file(reading: Reading) -> None:
    status = os.stat(reading.path)
    if status.st_mode & stat.S_IWOTH:
        reading.error((), "everybody can write to this file, and root believes what it says; chmod o-w it")
    elif _group_may_write(status):
        text = f"group {status.st_gid} can write to this file, and root believes what it says; chmod g-w it"
        reading.warn((), text)
    if status.st_uid != 0:
        text = f"it belongs to {_name_of(status.st_uid)}, and root believes what it says; chown root it"
        reading.warn((), text)


def _group_may_write(status: os.stat_result) -> bool:
    """Whether others than we and root can write to a file, by its group."""
    return bool(status.st_mode & stat.S_IWGRP) and status.st_gid not in (0, os.getegid())


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _check_ports(reading: Reading) -> None:
    first = _first_unprivileged_port()
    for where, address in reading.elements["listen"] + reading.elements["listen_tls"]:
        if 0 < int(address.rpartition(":")[2]) < first:
            text = f"without root a port below {first} can usually not be listened on"
            reading.warn(where, text, address)


def _first_unprivileged_port() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 1024


def _check_descriptors(reading: Reading) -> None:
    """Whether a front, which takes as many descriptors as it may have, can hold its connections."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted, room = reading.values["max_connections"], left_for_connections(limit)
    if limit != resource.RLIM_INFINITY and wanted > room:
        text = (
            f"a process that is started here may have {limit} open files (LimitNOFILE, ulimit -Hn), so "
            f"a front holds {room} connections; expected at most that, or a limit of {2 * wanted}"
        )
        reading.warn(("server", "max_connections"), text, wanted)


def _make_filters(reading: Reading) -> None:
    if not reading.values["seccomp"]:
        return
    # Brings in ctypes, which the broker must never load.
    from gpop.config import seccomp

    values = reading.values
    try:
        filters = seccomp.filters()
    except seccomp.FiltersUnavailable as error:
        reading.warn(("server", "seccomp"), f"no process is confined that way: {error}", True)
    else:
        values["session_calls"], values["service_calls"], values["log_calls"] = filters


def _check_certificates(reading: Reading) -> None:
    if not reading.values["tls_certificates"]:
        return
    # Brings in ssl, which nobody else here needs.
    from gpop import certificates

    version, ciphers = reading.values["tls_min_version"], reading.values["tls_ciphers"]
    for where, pair in reading.elements["tls_certificates"]:
        try:
            certificate = certificates.load(pair[0], pair[1], version, ciphers)
        except certificates.Unusable as error:
            reading.error(where, str(error), pair)
            continue
        reading.values["certificate_ends"][pair[0]] = certificate.not_after_s
        days = certificate.days_left(time.time())
        if days < 0:
            reading.warn(where, f"the certificate has expired on {certificate.not_after}", pair)
        elif days < certificates.SOON_DAYS:
            reading.warn(where, f"the certificate expires on {certificate.not_after}", pair)
        if not certificate.names:
            text = "the certificate has no host name in it (subjectAltName): clients will not believe it"
            reading.warn(where, text, pair)
        if os.stat(pair[1]).st_mode & stat.S_IROTH:
            text = f"everybody can read the key and pretend to be this server; chmod o-r {pair[1]}"
            reading.warn(where, text, pair)


def _check_pam(reading: Reading, where: tuple[str | int, ...], service: str) -> None:
    # Brings in ctypes and python-pam, which nobody else here needs.
    from gpop.accounts.pam import service_file

    if os.geteuid() != 0:
        text = 'PAM and other users\' mail need root; without root expected type = "passwd-file"'
        reading.error(where, text, service)
    if service_file(service) is None:
        text = (
            f"no file /etc/pam.d/{service}; PAM would ask its service `other`, which may accept anybody. "
            "Expected a service that has a file (conf/pam.d/gpop is one to copy)"
        )
        reading.error(where, text, service)


def _check_user_settings(reading: Reading) -> None:
    where, path = ("accounts", "user_settings"), reading.values["user_settings"]
    file = UserSettingsFile(path)
    file.refresh()
    if file.fault:
        reading.error(where, f"{file.fault}; expected a file of settings for single accounts, or none", path)
        return
    if os.path.exists(path) and os.stat(path).st_mode & stat.S_IWOTH:
        reading.error(where, "everybody can write to it and change what holds for others; chmod o-w it", path)
    for line, text in file.problems:
        reading.warn_about_file(path, line, f"{text}; this account cannot log in")


def _check_map(reading: Reading, where: tuple[str | int, ...], name: str, text_grammar: str) -> None:
    opened = open_map(name, text_grammar)
    if isinstance(opened, TextMap):
        opened.refresh()
        path = opened.path
    else:
        path = opened.map_name.file
    try:
        # A look-up that finds nothing, in a process that a damaged map may end.
        run_apart(lambda: opened.get(b"gpop-check-config"))
    except MapError as error:
        reading.error(where, f"{error}; logins would be told [SYS/TEMP]", name)
        return
    if os.stat(path).st_mode & stat.S_IWOTH:
        reading.error(where, f"everybody can write to {path} and give anybody another account", name)
    if isinstance(opened, TextMap):
        for line, text in opened.problems:
            reading.warn_about_file(path, line, text)
        unnamed = opened.problem_count - len(opened.problems)
        if unnamed:
            reading.warn_about_file(path, 0, f"and {unnamed} more lines that cannot be used")
    elif opened.is_stale():
        reading.warn(where, f"{path} is older than its source {opened.map_name.source}", name)


def _check_passwd_file(reading: Reading, where: tuple[str | int, ...], path: str) -> None:
    accounts = PasswdFile(path)
    accounts.refresh()
    if accounts.fault:
        reading.error(where, f"{accounts.fault}; expected a file of accounts (`gpop passwd` makes one)", path)
        return
    status = os.stat(path)
    mode = status.st_mode
    if status.st_uid not in (0, os.geteuid()):
        text = f"it belongs to {_name_of(status.st_uid)}, who can give themselves any account; chown root it"
        reading.warn(where, text, path)
    if mode & stat.S_IWOTH:
        reading.error(where, "everybody can write to it and give themselves any account; chmod o-w it", path)
    elif _group_may_write(status):
        text = f"group {status.st_gid} can write to it and give themselves any account; chmod g-w it"
        reading.warn(where, text, path)
    if mode & stat.S_IROTH and not mode & stat.S_IWOTH:
        reading.warn(where, "everybody can read it and try to crack its hashes; chmod o-r it", path)
    # A line that cannot be used keeps out one user; that is no reason to keep out all of them.
    for line, text in accounts.problems:
        if line:
            reading.warn_about_file(path, line, f"{text}; this user cannot log in")
    unnamed = accounts.problem_count - len(accounts.problems)
    if unnamed:
        reading.warn_about_file(path, 0, f"and {unnamed} more lines that cannot be used")
