"""PURE: gpop.toml(5), from the settings that `gpop.config.settings` describes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gpop import __version__
from gpop.commands.check_config import HEAD, SOURCES_HEAD
from gpop.config import DEFAULT_PATH
from gpop.config.settings import SECTIONS, SETTINGS, SOURCES, Setting
from ops.manual import roff


def page() -> Iterator[str]:
    """Return the lines of gpop.toml.5."""
    yield from roff.head("gpop.toml", 5, __version__, "the config file of gpop")
    yield from roff.heading("SYNOPSIS")
    yield roff.italic(DEFAULT_PATH)
    yield from roff.heading("DESCRIPTION")
    for part in HEAD.strip().split("\n\n"):
        yield from roff.paragraph(roff.text(part))
    for section, purpose in SECTIONS.items():
        yield from roff.heading(f"[{section}]")
        yield roff.text(purpose)
        for setting in SETTINGS:
            if setting.section == section:
                yield from _setting(setting)
    yield from roff.heading("[[accounts.sources]]")
    yield roff.text(SOURCES_HEAD)
    for kind, settings in SOURCES.items():
        yield from roff.subheading(f'type = "{kind}"')
        for setting in settings:
            yield from _setting(setting)
    yield from roff.heading("SEE ALSO")
    yield "gpop(1)"


def _setting(setting: Setting) -> Iterator[str]:
    default = "has to be set" if setting.default is None else f"default: {json.dumps(setting.default)}"
    unit = f", in {setting.unit}" if setting.unit else ""
    tag = f"{roff.bold(setting.name)} ({roff.text(default + unit)})"
    yield from roff.tagged(tag, roff.text(setting.purpose))
    yield from roff.further(roff.text(f"Accepted: {setting.kind.words}. If wrong: {setting.if_wrong}"))
