"""
`gpop check-config`: say everything that is wrong with a config file, or show what could stand in one.

`--print-settings` writes conf/gpop.toml, so the documented defaults are the code's own.
Executed by an administrator, best as the user who is to start gpop.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import textwrap
from collections.abc import Iterator

from gpop.config import DEFAULT_PATH, ConfigErrors, Problem, reading
from gpop.config.settings import SECTIONS, SETTINGS, SOURCES, Setting
from gpop.events import printable_text

WIDTH = 98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=DEFAULT_PATH,
        help="the config file (default: %(default)s)",
    )
    parser.add_argument(
        "--print-settings",
        action="store_true",
        help="instead print a config file in which every setting is explained and has its default",
    )


def run(args: argparse.Namespace) -> int:
    """Print every problem; 1 if there are errors, for which `gpop serve` would not start."""
    if args.print_settings:
        print("\n".join(annotated_file()))
        return 0
    errors: list[Problem] = []
    try:
        warnings = reading.load(args.config).warnings
    except ConfigErrors as found:
        errors, warnings = found.problems, found.warnings
    for line in report(errors, warnings):
        print(printable_text(line))
    print(
        f"{printable_text(args.config)}: {_count(len(errors), 'error')}, {_count(len(warnings), 'warning')}"
    )
    if os.geteuid() != 0:
        name = _own_name()
        print(f"Checked for a gpop started by {name}, without root. If root is to start it, check as root.")
    return 1 if errors else 0


def report(errors: list[Problem], warnings: list[Problem]) -> Iterator[str]:
    """Return a line for each problem, as `gpop check-config` and `gpop serve` print them."""
    for error in errors:
        yield f"error: {error}"
    for warning in warnings:
        yield f"warning: {warning}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


HEAD = """\
gpop's config file, in TOML. Every setting is here, commented out, with its default.

`gpop check-config --config FILE` says everything that is wrong with a file, with line numbers;
`gpop serve` refuses to start on the same. SIGHUP makes a running gpop read it again: a file
with errors changes nothing, and no reload ends a session.
"""

SOURCES_HEAD = """\
Where accounts come from. There is no default: at least one source is needed. Several are
asked in the order in which they stand here, until one knows the name.
"""


def annotated_file() -> Iterator[str]:
    """Return the lines of conf/gpop.toml."""
    yield from _comment(HEAD)
    for section, purpose in SECTIONS.items():
        if section == "accounts.cache":
            # TOML wants it after the plain settings of [accounts]; it reads well before the cache.
            yield from _sources()
        yield ""
        yield ""
        yield from _comment(purpose)
        yield f"[{section}]"
        for setting in SETTINGS:
            if setting.section == section:
                yield from _setting(setting, setting.default)


def _sources() -> Iterator[str]:
    yield ""
    yield ""
    yield from _comment(SOURCES_HEAD)
    yield "[[accounts.sources]]"
    yield 'type = "pam"'
    for setting in SOURCES["pam"]:
        yield from _setting(setting, setting.default)
    yield ""
    yield "#[[accounts.sources]]"
    yield '#type = "passwd-file"'
    for setting in SOURCES["passwd-file"]:
        yield from _setting(setting, setting.default or "/etc/gpop/passwd")


def _setting(setting: Setting, value: object) -> Iterator[str]:
    yield ""
    yield from _comment(setting.purpose)
    unit = f"Unit: {setting.unit}. " if setting.unit else ""
    yield from _comment(f"{unit}Accepted: {setting.kind.words}.")
    yield from _comment(f"If wrong: {setting.if_wrong}")
    yield f"#{setting.name} = {json.dumps(value)}"


def _comment(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        if number:
            yield "#"
        for line in textwrap.wrap(paragraph, WIDTH - 2, break_long_words=False, break_on_hyphens=False):
            yield f"# {line}"


def reference_rows() -> Iterator[str]:
    """Return the rows of the table in docs/configuration.md."""
    for setting in SETTINGS:
        yield f"| `{setting.key}` | `{json.dumps(setting.default)}` | {setting.kind.words} |"
