"""
`gpop demo`: a maildrop, an account and a config made on the spot, and gpop serving them on loopback.

It needs no root and wants none: started by root it first becomes an ordinary user. From then on it
does what `gpop serve --config FILE` does. Executed by whoever is curious.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"
FIRST_PORT = 1110
PORTS_TRIED = 50
MAX_PORT = 65535
# Both well known: nothing but invented mail is behind them, and only this machine can connect.
NAME = PASSWORD = "demo"

# What root, who has no business here, becomes: whoever called sudo, else this user.
FALLBACK_USER = "nobody"
# Root's own: what root copies for others must not lie where they could exchange it.
ROOTS_DIRECTORY = Path("/var/cache/gpop-demo")
RUNTIME = "runtime"
# What the demo imports from outside the standard library, to be copied for a user who cannot reach it.
PACKAGES = ("gpop", "gevent", "greenlet", "zope", "structlog", "pam", "pysasl", "typing_extensions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port",
        type=int,
        help=f"the port to listen on (default: {FIRST_PORT}, or the next one that is free)",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="where to make the demo's folder, named after the port (default: ~/.cache)",
    )


def run(args: argparse.Namespace) -> int:
    """Make the demo and become its server; returns only if that cannot be, with the exit status."""
    try:
        if os.geteuid() == 0:
            _continue_without_root(args.port, args.directory)
        port = _own_port(args.port) if args.port else _free_port()
        place = make_place(Path(args.directory) if args.directory else _default_directory(), port)
    except DemoFailed as error:
        print(f"gpop demo: {error}", file=sys.stderr)
        return 1
    print(introduction(place, port), flush=True)
    from gpop.commands.launch import serve

    return serve(str(place / "gpop.toml"))


class DemoFailed(Exception):
    """The demo cannot be made here; the text says why, and what would help."""


# The folder


def make_place(directory: Path, port: int) -> Path:
    """
    Make the folder of the demo on `port` below `directory` anew, and return it.

    It is the home of the account: Maildir, passwd-file and config are in it. An earlier demo's
    folder for the same port is removed, so that folders do not pile up.
    """
    from gpop.accounts import hashes
    from gpop.commands.demo_messages import messages

    place = directory.absolute() / f"gpop-demo-{port}"
    try:
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(mode=0o700, parents=True)
        for folder in ("Maildir", "Maildir/new", "Maildir/cur", "Maildir/tmp"):
            (place / folder).mkdir(mode=0o700)
        for message in messages():
            (place / "Maildir" / message.folder / message.name).write_bytes(message.octets)
        _write_private(place / "passwd", passwd_line(place, hashes.make(PASSWORD.encode()).decode()))
        (place / "run").mkdir(mode=0o700)
        _write_private(place / "gpop.toml", config_text(place, port))
    except OSError as error:
        raise DemoFailed(f"{error.filename}: {error.strerror}; --directory names another place") from error
    return place


def passwd_line(home: Path, hashed: str) -> str:
    """The line of the demo's account, which is the user who runs the demo."""
    return f"{NAME}:{hashed}:{os.geteuid()}:{os.getegid()}::{home}:\n"


def config_text(place: Path, port: int) -> str:
    # Accounts of system users are refused as a rule, and this one may be one.
    return f"""\
# Made by `gpop demo`. conf/gpop.toml explains every setting.

[server]
listen = ["{HOST}:{port}"]
run_dir = {json.dumps(str(place / "run"))}

[accounts]
first_valid_uid = {max(1, min(1000, os.geteuid()))}
first_valid_gid = {max(1, min(100, os.getegid()))}

[[accounts.sources]]
type = "passwd-file"
path = "passwd"
"""


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, "utf-8")


def _default_directory() -> Path:
    """The user's cache directory; without a home a new folder, which nobody else can write to."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return cache
    except (OSError, RuntimeError):  # RuntimeError: pathlib knows of no home
        pass
    return Path(tempfile.mkdtemp(prefix="gpop-demo-"))


def _own_port(port: int) -> int:
    """The port that was asked for; its folder, which may be a running demo's, is not made anew before."""
    if not 0 < port <= MAX_PORT:
        raise DemoFailed(f"--port {port}: expected a number from 1 to {MAX_PORT}")
    if not _is_free(port):
        raise DemoFailed(f"{HOST}:{port} is taken, maybe by another demo; --port names another one")
    return port


def _free_port() -> int:
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if _is_free(port):
            return port
    raise DemoFailed(f"the ports from {FIRST_PORT} on are all taken; --port names another one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise DemoFailed(f"{HOST}:{port}: {error.strerror}") from error
            return False
    return True


# What to do now


def introduction(place: Path, port: int) -> str:
    """What the demo prints before the log begins: where things are, and what to type next."""
    login = f"p = poplib.POP3('{HOST}', {port}); p.user('{NAME}'); p.pass_('{PASSWORD}')"
    return f"""\
gpop demo: a maildrop of a dozen messages on {HOST} port {port}, name {NAME}, password {PASSWORD}.
Everything it needs is in {place}

There is no root here, so there is no jail: sessions run as {_own_name()}, with all of that user's
rights. A gpop that root starts locks each session into its maildrop, as the mail user.

Type one of these in another terminal, twice:

  curl --user {NAME}:{PASSWORD} pop3://{HOST}:{port}/
  python3 -c "import poplib; {login}; print(*p.stat()); p.quit()"

and, to read message 6:

  curl --user {NAME}:{PASSWORD} pop3://{HOST}:{port}/6

In the log below, look at `cache` in each session_closed. The first poll is a "rebuild": nobody had
looked at the maildrop yet. The second is a "hit": its answers were lying there. Reading a message
moves it from new/ to cur/, so the poll after that is a "refresh".

Ctrl-C ends the demo. Nothing is left but that folder.
"""


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


# Away from root


def _continue_without_root(port: int | None, directory: str | None) -> None:
    """Start again as an ordinary user. Returns never; raises DemoFailed if there is no way."""
    uid, gid = _ordinary_ids()
    try:
        _make_roots_directory(ROOTS_DIRECTORY)
        base = Path(directory).absolute() if directory else ROOTS_DIRECTORY / str(uid)
        _make_owned_directory(base, uid, gid)
        program = _reachable_program(uid, gid)
    except OSError as error:
        raise DemoFailed(f"{error.filename}: {error.strerror}") from error
    command = [*program, "demo", "--directory", str(base)]
    command += ["--port", str(port)] if port else []
    print(
        f"gpop demo: root is not needed; going on as {pwd.getpwuid(uid).pw_name} (uid {uid}).\n"
        f"When you have seen enough: rm -r {ROOTS_DIRECTORY}\n",
        flush=True,
    )
    os.chdir("/")
    os.umask(0o077)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(base)}
    os.execve(command[0], command, environment)


def _ordinary_ids() -> tuple[int, int]:
    """The uid and gid of who called sudo, else of nobody."""
    caller = os.environ.get("SUDO_UID", "")
    try:
        entry = pwd.getpwuid(int(caller)) if caller.isdigit() and int(caller) else pwd.getpwnam(FALLBACK_USER)
    except KeyError:
        raise DemoFailed(
            f"root would become {FALLBACK_USER}, who does not exist here; start it as an ordinary user"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _make_roots_directory(directory: Path) -> None:
    """Make an empty directory that everybody can enter and only root can write to."""
    if directory.exists():
        shutil.rmtree(directory / RUNTIME, ignore_errors=True)
    else:
        directory.mkdir()
    directory.chmod(0o755)


def _make_owned_directory(directory: Path, uid: int, gid: int) -> None:
    """Make `directory` for the user, or make sure that it is the user's."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Through a descriptor: whoever owns the folder around it could exchange it for another.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        is_new = os.fstat(descriptor).st_uid == 0 and not os.listdir(descriptor)
        if is_new:
            os.fchown(descriptor, uid, gid)
        elif os.fstat(descriptor).st_uid != uid:
            raise DemoFailed(
                f"{directory} is neither empty nor uid {uid}'s, as whom the demo is to run; "
                "--directory names another place"
            )
    finally:
        os.close(descriptor)


def _reachable_program(uid: int, gid: int) -> list[str]:
    """
    Return how the user can start gpop, without root's rights to pass through directories.

    A clone in /root is reached by root alone. Then the packages are copied to where everybody can
    read them, and started by any Python of the same version that the user can execute.
    """
    here = [sys.executable, "-I", str(Path(__file__).parent.parent / "__main__.py")]
    if _works(here, uid, gid):
        return here
    runtime = ROOTS_DIRECTORY / RUNTIME
    for name, place in _package_places():
        if os.path.isdir(place):
            shutil.copytree(place, runtime / name, dirs_exist_ok=True, ignore=_not_needed)
        else:
            shutil.copy(place, runtime / name)
    for path in (runtime, *runtime.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the clone may have been made with umask 077
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        there = [python, "-I", str(runtime / "gpop" / "__main__.py")]
        if os.path.exists(python) and _works(there, uid, gid):
            return there
    raise DemoFailed(
        f"uid {uid}, as whom the demo is to run, cannot reach {sys.executable}, and there is no other "
        f"{version}. Start the demo as an ordinary user, from a clone that this user can read"
    )


def _works(program: list[str], uid: int, gid: int) -> bool:
    """Say whether the user can start `program` and import what it needs."""
    python, main = program[0], program[-1]
    parent = str(Path(main).parent.parent)
    modules = "gpop.commands.demo, gpop.config.reading, gevent, pysasl, structlog"
    test = f"import sys; sys.path.insert(0, {parent!r}); import {modules}"
    try:
        done = subprocess.run(
            [python, "-I", "-c", test],
            check=False, user=uid, group=gid, extra_groups=[], cwd="/", env={},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


def _package_places() -> Iterator[tuple[str, str]]:
    """The folders of packages, and the files of those that are but one."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and spec.submodule_search_locations is None:
            yield f"{package}.py", spec.origin
        for folder in (spec and spec.submodule_search_locations) or ():
            yield package, folder


def _not_needed(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("tests", "testing")]
