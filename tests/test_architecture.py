"""
Who may import, load and call what. Prose about this rots, so it is read from the code.

Imports point one way: commands -> processes -> edges -> pure. The pure parts take octets and
return octets or decisions; the lean parts are loaded by the broker and paid for by every session.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gpop"

COMMANDS = {"cli", "__main__", "commands.*"}
PROCESSES = {"broker.broker", "front.front", "auth.auth", "metrics.metrics", "log.log", "session.session"}
# Parts of the broker that load another process: the session, which is forked from it.
RUN_SESSIONS = {"broker.sessions", "broker.reuse", "broker.rehearsal"}
PURE = {
    "accounts.addresses",
    "accounts.maps.errors",
    "accounts.maps.grammar",
    "accounts.maps.mapname",
    "accounts.maps.postfix",
    "accounts.maps.resolving",
    "accounts.maps.sendmail",
    "accounts.names",
    "accounts.queue",
    "front.limits",
    "front.offers",
    "front.proxy_header",
    "front.xclient",
    "json_text",
    "metrics.http",
    "pop3.*",
    "maildrop.alarm",
    "maildrop.errors",
    "maildrop.imported",
    "maildrop.listing",
    "maildrop.model",
    "maildrop.names",
    "maildrop.reconcile",
    "maildrop.statcache",
    "maildrop.table",
    "migration.comparing",
    "migration.courier",
    "migration.fake_uids",
    "migration.fingerprint",
    "migration.header_ids",
    "migration.matching",
    "migration.plan",
    "migration.state",
    "migration.uidl_format",
    "migration.uidlist",
    "privsep.messages",
    "report.charts",
    "report.saved",
}
LEAN = {
    "broker.*", "session.*", "programs", "signals", "events", "log_target", "tally", "json_text", "pop3.*",
    "maildrop.*", "languages", "privsep.*",
}  # fmt: skip

# Data tools; nothing here opens, waits, or asks the machine (sys says how `os` decodes file names).
PURE_MAY_IMPORT = {"_blake2", "binascii", "enum", "struct", "sys", "zlib"}
# Nothing of it is known to the broker.
FRONT_MAY_IMPORT = PURE_MAY_IMPORT | {"dataclasses", "ipaddress", "typing"}
# Loaded by commands alone, so these may be as comfortable as they like.
MIGRATION_MAY_IMPORT = PURE_MAY_IMPORT | {"collections", "dataclasses", "hashlib", "re", "typing"}
AUTH_MAY_IMPORT = FRONT_MAY_IMPORT | {"collections", "dataclasses", "hashlib", "socket", "typing"}
REPORT_MAY_IMPORT = PURE_MAY_IMPORT | {"collections", "dataclasses", "html", "itertools", "math"}
LEAN_MAY_IMPORT = PURE_MAY_IMPORT | {
    "_signal", "_socket", "errno", "fcntl", "gc", "marshal", "mmap", "os", "resource", "select", "stat",
    "time",
}  # fmt: skip
LEAN_MAY_IMPORT_AS_WELL = {"events": {"structlog"}, "privsep.libc": {"_ctypes"}}
# Dear at run time, or not to be trusted beside a password or with root: one home each.
ONLY_IN = {
    "pam": {"accounts.pam"},
    "pysasl": {"front.preparation"},
    "gevent": {
        *("front.front", "front.connection", "front.outcome", "front.relay", "front.turns"),
        "metrics.metrics",
    },
    "prometheus_client": {"metrics.metrics", "metrics.exposition"},
    "duckdb": {"report.store"},
    "rich": {"commands.report", "migration.progress", "report.terminal", "report.live"},
    "structlog": {"events"},
    "lmdb": {"accounts.maps.lmdbfile"},
    "_ctypes": {"privsep.libc"},
    "tomllib": {"config.reading", "config.toml_lines"},
}
CHANGES_OF_IDENTITY = {
    "chroot", "initgroups", "setegid", "seteuid", "setgid", "setgroups", "setregid", "setresgid",
    "setresuid", "setreuid", "setuid",
}  # fmt: skip
# The demo, started by root, becomes an ordinary user before there is any broker.
MAY_CHANGE_IDENTITY = {"privsep.credentials", "commands.demo"}

# What one of these costs is paid in every session, by copying its pages.
NEVER_LOADED = {
    "asyncio", "collections", "ctypes", "dataclasses", "email", "enum", "functools", "gevent", "hashlib",
    "inspect", "json", "logging", "pam", "pathlib", "re", "signal", "ssl", "structlog", "subprocess",
    "tempfile", "threading", "tomllib", "types", "typing",
}  # fmt: skip
# Beside those of an interpreter that has done nothing. More is no crime, but somebody should notice.
# (Five of them are code that moved, to be read by itself: `succession` was part of `broker`, `log_pipes` one
# of `supervision`, `opened` one of `opening`, `libc` one of `confinement`, `table` one of `statcache`; two,
# `_ctypes` and `confinement`, take system calls away from every session; `shortage` is what several processes
# execute when they have no descriptor left.)
MOST_MODULES_LOADED = 87


class Module:
    """One module of gpop: its name without the package, its syntax tree, what it imports at run time."""

    def __init__(self, path: Path) -> None:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.tree = ast.parse(path.read_text("utf-8"))
        self.imports = set(_imports(self.tree))

    def is_in(self, group: set[str]) -> bool:
        return is_in(self.name, group)

    def __repr__(self) -> str:
        return self.name


def is_in(name: str, group: set[str]) -> bool:
    folder = name.rpartition(".")[0]
    by_ending = any(each.startswith("*_") and name.endswith(each[1:]) for each in group)
    return name in group or f"{folder}.*" in group or f"{name}.*" in group or by_ending


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported; imports for the type checker alone are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "a relative import"
            # `from gpop.pop3 import wire` is about a module, `from enum import Enum` is not.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imports(node)


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}


def own_imports(module: Module) -> set[str]:
    """The modules of gpop that `module` imports, named as here."""
    found = set()
    for name in module.imports:
        if name == "gpop" or name.startswith("gpop."):
            words = name.split(".")[1:]
            while words and ".".join(words) not in NAMES:
                words.pop()
            found.add(".".join(words))
    return found - {""}


def foreign_imports(module: Module) -> set[str]:
    """The top-level packages from elsewhere that `module` imports."""
    return {name.partition(".")[0] for name in module.imports} - {"gpop", "__future__"}


def rank(name: str) -> int:
    if is_in(name, PURE):
        return 0
    # These run the session for the broker.
    if is_in(name, PROCESSES | RUN_SESSIONS):
        return 2
    return 3 if is_in(name, COMMANDS) else 1


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_imports_point_one_way(module: Module) -> None:
    """Commands import processes, these edges, these the pure parts; never the other way round."""
    for imported in own_imports(module):
        assert rank(imported) <= rank(module.name), f"{module} imports {imported}"


def test_a_process_does_not_know_the_others() -> None:
    """A process's folder is its own; only RUN_SESSIONS reach into another one, the session's."""
    folders = {name.partition(".")[0] for name in PROCESSES}
    found = {
        (module.name, imported)
        for module in MODULES
        for imported in own_imports(module)
        if imported.partition(".")[0] in folders - {module.name.partition(".")[0]}
    }
    starting = {("__main__", name) for name in PROCESSES}
    assert {each for each in found - starting if each[0] not in RUN_SESSIONS} == set()
    assert {imported for name, imported in found - starting if name in RUN_SESSIONS} == {"session.session"}


@pytest.mark.parametrize("module", [each for each in MODULES if each.is_in(PURE)], ids=repr)
def test_pure_modules_touch_nothing(module: Module) -> None:
    """No file, socket or clock: what they do follows from what they are given."""
    allowed = PURE_MAY_IMPORT if module.is_in(LEAN) else FRONT_MAY_IMPORT
    if module.is_in({"migration.*"}):
        allowed = MIGRATION_MAY_IMPORT
    elif module.is_in({"report.*"}):
        allowed = REPORT_MAY_IMPORT
    elif module.is_in({"accounts.*", "accounts.maps.*"}):
        allowed = AUTH_MAY_IMPORT
    assert foreign_imports(module) <= allowed
    names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "__import__", "eval", "exec"}


@pytest.mark.parametrize("module", [each for each in MODULES if each.is_in(LEAN)], ids=repr)
def test_lean_modules_import_little(module: Module) -> None:
    """Each import of the broker's is paid for by every session; events loads structlog only if asked to."""
    allowed = LEAN_MAY_IMPORT | LEAN_MAY_IMPORT_AS_WELL.get(module.name, set())
    assert foreign_imports(module) <= allowed


def test_dear_and_dangerous_packages_have_one_home() -> None:
    """PAM, SASLprep, event loop, logging library and the parser of the config are imported in one place."""
    for package, homes in ONLY_IN.items():
        assert {module.name for module in MODULES if package in foreign_imports(module)} <= homes, package


def test_identity_is_changed_in_one_place() -> None:
    """Whoever reviews how root is given up reads one module."""
    found = {
        module.name
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in CHANGES_OF_IDENTITY
    }
    assert found <= MAY_CHANGE_IDENTITY


def test_the_broker_is_lean_when_it_runs() -> None:
    """What the interpreter has really loaded for broker and session, imports of imports included."""
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); "
        "import gpop.broker.broker, gpop.session.session; print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(PACKAGE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    loaded = done.stdout.split()
    assert not NEVER_LOADED & set(loaded)
    assert len(loaded) <= MOST_MODULES_LOADED, loaded


def test_no_module_is_a_drawer() -> None:
    """A module is named after its subject."""
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not {module.name.rpartition(".")[2] for module in MODULES} & drawers


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_every_module_says_what_it_is_for(module: Module) -> None:
    """The head of a file answers what it does before anybody reads how."""
    if module.tree.body:
        assert ast.get_docstring(module.tree), module


def test_every_broad_handler_is_a_last_one() -> None:
    """At most one `except Exception` in a module that does not raise again: it logs, and ends."""
    for module in MODULES:
        broad = [
            handler
            for handler in ast.walk(module.tree)
            if isinstance(handler, ast.ExceptHandler)
            and (handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException"))
            and ast.unparse(handler.body[-1]) != "raise"
        ]
        assert len(broad) <= 1, module
