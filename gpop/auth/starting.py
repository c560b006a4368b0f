"""
EDGE: what auth does once, before the first login: clean surroundings, sources built and warmed.

Everything a checker will need is loaded and touched here, because what is done in each
checker is paid at each login. Executed as root.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import TYPE_CHECKING

from gpop import events
from gpop.accounts.maps.lmdbfile import LmdbMissing
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.sources import PamSource, PasswdFileSource, Source, build, limits_of
from gpop.auth.checker import close_all_but
from gpop.auth.reporting import report_map, report_passwd_file

if TYPE_CHECKING:
    from gpop.config import AuthSettings

PR_SET_DUMPABLE = 4  # linux/prctl.h
# More than auth's bounds ever need. A limit far above would make closing "all others" slow
# where the kernel has no close_range.
MAX_DESCRIPTORS = 16384


class StartRefused(Exception):
    """Auth can't do its work with these settings; the text says why."""


def clean_surroundings(keep: set[int]) -> None:
    """
    Leave nothing of who started us that a PAM module might use, and no descriptor but 0-2 and `keep`.

    $DISPLAY would become PAM_TTY, a terminal on descriptor 0 too.
    """
    close_all_but(sorted({0, 1, 2, *keep}))
    for fd in keep:
        os.set_inheritable(fd, False)
    os.environ.clear()
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    if null > 2:
        os.close(null)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most > MAX_DESCRIPTORS:
        most = MAX_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def build_sources(settings: AuthSettings, log: events.Log) -> list[Source]:
    """
    Return the sources of the config, warmed.

    Raises:
        StartRefused: a PAM service without a file; PAM without root.
    """
    if os.geteuid() != 0 and any(row["type"] == "pam" for row in settings.sources):
        raise StartRefused("PAM needs root; without root only a passwd-file can be a source")
    sources = build(settings.sources, limits_of(settings))
    for source in sources:
        if isinstance(source, PamSource) and not source.has_file():
            raise StartRefused(f"PAM service {source.service!r} has no file; PAM would ask its `other`")
        source.warm()
        if isinstance(source, PasswdFileSource):
            report_passwd_file(log, source.file)
    return sources


def build_virtual_users(settings: AuthSettings, log: events.Log) -> VirtualUsers:
    """
    Return the maps and name rules of the config, warmed.

    Raises:
        StartRefused: a map needs a library that is not there.
    """
    virtual = VirtualUsers(settings)
    try:
        virtual.warm()
    except LmdbMissing as error:
        raise StartRefused(str(error)) from None
    for each in virtual.refresh():
        report_map(log, each)
    return virtual


def library_descriptors(own: set[int]) -> list[int]:
    """Return what is open besides 0-2 and `own`: libraries opened it while they were warmed."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    # The one with which the directory was listed is closed by now.
    return [fd for fd in found - own if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]


def forbid_reading() -> None:
    """
    Let nobody read our memory, and no core dump hold it.

    Without root, everything of the same user could otherwise; this comes last, because it
    closes our own /proc/self to us too.
    """
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
