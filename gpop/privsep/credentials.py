"""
EDGE: giving up root. The only callers of chroot, setgroups, setres[ug]id in gpop.

`become_user` is what a session does, `become_user_of_store` one whose process is reused,
`become_service` what a front does. Each is one
straight line of steps, each fatal on failure: they raise, and the process ends. Executed
as root, in the last moments of being root.

no_new_privs is already on: the launcher sets it before it becomes the broker
(`commands.launch`), and every process inherits it.
"""

from __future__ import annotations

import os
import resource
import stat

from gpop.events import printable
from gpop.privsep import libc

# A session needs 0-2, the stream, the channel, the Maildir, the cache, a message, a temporary
# file and a directory being listed; the rest is room for the interpreter.
SESSION_DESCRIPTORS = 32
# Of a path in what an error says: users choose names.
MAX_SHOWN_OCTETS = 300
MAX_PATH_OCTETS = 4095  # PATH_MAX with its NUL
_setuid = libc.function("setuid")


class CredentialsRefused(Exception):
    """The account or its Maildir must not be served as it is; the text is one word, and more for the log."""


class MaildirAbsent(Exception):
    """There is no Maildir in a home that belongs to the user: an empty maildrop, and nothing to open."""


def become_user(
    uid: int,
    gid: int,
    groups: list[int],
    home: bytes,
    maildir: bytes,
    jail: str,
    first_valid: tuple[int, int],
) -> int:
    """
    Become the mail user for good, jailed, and return a descriptor of the Maildir.

    `jail` is "maildir", "home" or "none"; `first_valid` are the lowest uid and gid served.
    The directories are opened with the user's rights: root would follow the user's
    symbolic link into another user's 0700 home.

    Raises:
        CredentialsRefused: ids below the first valid ones, a Maildir of another owner, or a home that
            can't be the jail: see `_check_jail`, `_check_within`.
        MaildirAbsent: see there; the process *is* the user by then, jailed in the home.
        OSError: a step failed; nothing of it may be ignored.
    """
    _check_ids(uid, gid, first_valid)
    directory, absent = _become(uid, gid, groups, home, maildir, jail)
    _verify_dropped(uid, gid)
    _limit((0, 0), (SESSION_DESCRIPTORS, SESSION_DESCRIPTORS))
    if absent:
        os.close(directory)
        raise MaildirAbsent
    return directory


def _become(
    uid: int, gid: int, groups: list[int], home: bytes, maildir: bytes, jail: str
) -> tuple[int, bool]:
    """Do it; returns a descriptor of the Maildir, or of the home and True where there is no Maildir."""
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        directory = _open_maildir(maildir, uid)
        absent = False
    except FileNotFoundError:
        _check_wholly_absent(maildir)
        directory = _open_directory(home)
        absent = True
        # If not: the home is not mounted, and mail may well be elsewhere.
        _check_owner("home_not_owned", home, os.fstat(directory).st_uid, uid)
    jail_directory = directory
    if jail == "home":
        if not absent:
            jail_directory = _open_directory(home)
        _check_jail(jail_directory, uid, gid, "home", home)
        _check_within(directory, jail_directory)
    _lock_in(uid, gid, jail_directory, jail)
    if jail_directory != directory:
        os.close(jail_directory)
    return directory, absent


def _lock_in(uid: int, gid: int, directory: int, jail: str) -> None:
    """Take root once more for the jail, then give it up."""
    os.seteuid(0)
    os.fchdir(directory)
    if jail != "none":
        os.chroot(".")
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def become_user_of_store(
    uid: int, gid: int, groups: list[int], store: bytes, jail: str, first_valid: tuple[int, int]
) -> None:
    """
    Become a mail user for good, jailed in the directory below which there is all mail of theirs.

    As `become_user`, but no Maildir is opened; `store` may be root's own as well.

    Raises:
        CredentialsRefused: ids below the first valid ones, or a directory that can't be the jail.
        OSError: a step failed; nothing of it may be ignored.
    """
    _check_ids(uid, gid, first_valid)
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    directory = _open_directory(store)
    _check_jail(directory, uid, gid, "store", store)
    _lock_in(uid, gid, directory, jail)
    os.close(directory)
    _verify_dropped(uid, gid)
    _limit((0, 0), (SESSION_DESCRIPTORS, SESSION_DESCRIPTORS))


def _check_jail(directory: int, uid: int, gid: int, name: str, path: bytes) -> None:
    """
    Refuse a directory as jail that somebody else has a say in, or in which nobody is locked in.

    Who may write there puts what they like under names that libraries know (/etc, /lib), and exchanges
    the directories between it and the Maildir. The user's own group is as good as the user.
    """
    status = os.fstat(directory)
    if status.st_uid:
        _check_owner(f"{name}_not_owned", path, status.st_uid, uid)
    of_group = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, gid)
    if of_group or status.st_mode & stat.S_IWOTH:
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}, group {status.st_gid}"
        raise CredentialsRefused(f"{name}_writable_by_others ({_shown(path)} has {mode})")
    if _is_same(status, os.stat(b"..", dir_fd=directory)):
        raise CredentialsRefused(f"{name}_is_no_jail ({_shown(path)} is the root directory)")


def _check_within(directory: int, jail: int) -> None:
    """
    Refuse a Maildir that is not below the jail: a way out of it for whoever holds its descriptor.

    The user's link may lead anywhere, and so may an absolute path of the config.
    """
    wanted, found = os.fstat(jail), os.fstat(directory)
    path = b"."
    while not _is_same(found, wanted):
        path += b"/.."
        above = os.stat(path, dir_fd=directory)
        if _is_same(above, found) or len(path) > MAX_PATH_OCTETS:
            raise CredentialsRefused("maildir_outside_home")
        found = above


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return one.st_ino == other.st_ino and one.st_dev == other.st_dev


def _check_ids(uid: int, gid: int, first_valid: tuple[int, int]) -> None:
    if uid < first_valid[0] or gid < first_valid[1] or not uid or not gid:
        raise CredentialsRefused("id_too_low")


def _limit(processes: tuple[int, int], descriptors: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, processes)
    resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)


def rehearse_becoming_user(
    uid: int,
    gid: int,
    groups: list[int],
    home: bytes,
    maildir: bytes,
    jail: str,
    first_valid: tuple[int, int],
) -> int:
    """
    Go the way of `become_user` as root who stays root, and come back out of the jail.

    For `rehearsal`: nothing that is done here takes anything away from this process.
    """
    root = _open_directory(b"/")
    try:
        directory, _ = _become(0, 0, os.getgroups(), home, maildir, jail)
    finally:
        os.fchdir(root)
        if jail != "none":
            os.chroot(".")
        os.close(root)
    try:
        _verify_dropped(0, 0)
    except CredentialsRefused:  # of course
        _limit(resource.getrlimit(resource.RLIMIT_NPROC), resource.getrlimit(resource.RLIMIT_NOFILE))
    return directory


def open_own_maildir(uid: int, home: bytes, maildir: bytes) -> int:
    """
    Return a descriptor of the Maildir where there is no root to give up (any more).

    Raises:
        CredentialsRefused: the account is not the running user's, or the Maildir is not.
        MaildirAbsent: as `become_user`.
    """
    if uid != os.geteuid():
        raise CredentialsRefused("other_user_without_root")
    try:
        return _open_maildir(maildir, uid)
    except FileNotFoundError:
        _check_wholly_absent(maildir)
        _check_owner("home_not_owned", home, os.stat(home).st_uid, uid)
        raise MaildirAbsent from None


def become_service(uid: int, gid: int, jail: str) -> None:
    """
    Become the service user for good, jailed in the empty directory `jail`.

    Raises:
        CredentialsRefused: uid or gid is 0, or the jail is not root's own and unwritable.
        OSError: a step failed.
    """
    if uid == 0 or gid == 0:
        raise CredentialsRefused("service_user_is_root")
    directory = _open_directory(os.fsencode(jail))
    status = os.fstat(directory)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        raise CredentialsRefused("jail_not_roots_own")
    os.setgroups([])
    os.fchdir(directory)
    os.chroot(".")
    os.close(directory)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _verify_dropped(uid, gid)


def _open_directory(path: bytes) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)


def _open_maildir(maildir: bytes, uid: int) -> int:
    """Open a Maildir that has to be the user's, with the rights that this process has."""
    try:
        directory = _open_directory(maildir)
    except PermissionError:
        # Another user's, as a rule; then that is what has to be mended, and not the mode.
        _check_owner("maildir_not_owned", maildir, os.stat(maildir).st_uid, uid)
        raise
    _check_owner("maildir_not_owned", maildir, os.fstat(directory).st_uid, uid)
    return directory


def _check_owner(word: str, path: bytes, owner: int, uid: int) -> None:
    if owner != uid:
        text = f"{_shown(path)} belongs to uid {owner}, and the account has uid {uid}"
        raise CredentialsRefused(f"{word} ({text})")


def _check_wholly_absent(maildir: bytes) -> None:
    """A symbolic link that leads nowhere (a file system not mounted?) is a fault, not an empty maildrop."""
    try:
        os.lstat(maildir)
    except FileNotFoundError:
        return
    raise CredentialsRefused(f"maildir_dangling ({_shown(maildir)} is a symbolic link that leads nowhere)")


def _shown(path: bytes) -> str:
    return printable(path, MAX_SHOWN_OCTETS)


def _verify_dropped(uid: int, gid: int) -> None:
    """Check all six ids, and that getting root back fails."""
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise CredentialsRefused("ids_not_dropped")
    # One attempt says it for all: with CAP_SETUID any of the calls would work, without it none. Python's own
    # makes an error of the answer, translated and all: 14 pages of each session.
    if _setuid(0, 0, 0, 0, 0) == 0:
        raise CredentialsRefused("root_regained")
