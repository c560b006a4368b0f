"""
What the log hears of files that auth has read, or can't read: accounts, settings of accounts, maps.

Each is said once for each change of a file, with the lines in it that are of no use. It reads nothing
itself, and no login's name comes here. Executed by auth, as root.
"""

from __future__ import annotations

from gpop import events
from gpop.accounts.maps.textfile import TextMap
from gpop.accounts.maps.virtualusers import AnyMap
from gpop.accounts.passwdfile import PasswdFile
from gpop.accounts.rereading import RereadFile
from gpop.accounts.sources import MAPS, PasswdFileSource
from gpop.accounts.user_settings import UserSettingsFile


def report_passwd_file(log: events.Log, file: PasswdFile) -> None:
    """Log that a passwd-file was read, or can't be, and which of its lines are of no use."""
    if file.fault:
        fields = {"source": PasswdFileSource.kind, "path": file.path, "detail": file.fault}
        log.write("auth_fault", "error", reason="passwd_file_unreadable", **fields)
        return
    log.write("passwd_file_read", path=file.path, accounts=len(file), problems=file.problem_count)
    _report_problems(log, "passwd_file_problem", file)


def report_user_settings(log: events.Log, file: UserSettingsFile) -> None:
    """Log that the settings of single accounts were read, or can't be, and what in them is of no use."""
    if file.fault:
        fields = {"source": "user_settings", "path": file.path, "detail": file.fault}
        log.write("auth_fault", "error", reason="user_settings_unreadable", **fields)
        return
    log.write("user_settings_read", path=file.path, accounts=len(file), problems=file.problem_count)
    _report_problems(log, "user_settings_problem", file)


def _report_problems(log: events.Log, event: str, file: RereadFile) -> None:
    for line, text in file.problems:
        log.write(event, "warning", path=file.path, line=line, problem=text)


def report_map(log: events.Log, each: AnyMap) -> None:
    """Log that the text of a map was read, or can't be, with lines that are no use; or that one is stale."""
    if not isinstance(each, TextMap):
        source = each.map_name.source
        log.write("virtual_map_stale", "warning", map=each.name, source=source)
    elif each.fault:
        fields = {"source": MAPS, "path": each.path, "detail": each.fault}
        log.write("auth_fault", "error", reason="map_unreadable", **fields)
    else:
        log.write("virtual_map_read", path=each.path, entries=len(each), problems=each.problem_count)
        _report_problems(log, "virtual_map_problem", each)
