"""Everything under conf/, and what the documentation says about settings, against the code."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from gpop.accounts.passwdfile import PasswdFile
from gpop.cli import COMMANDS
from gpop.commands import check_config as config_command
from gpop.config import reading
from gpop.config.settings import SETTINGS, SOURCES

HERE = Path(__file__).parent.parent
CONF = HERE / "conf"
EXAMPLES = sorted((CONF / "examples").iterdir())

# Prose has a blank after its "#", a setting that is commented out has none.
COMMENTED_OUT = re.compile(r"^#(?=\[|\w)", re.MULTILINE)

BOTH_SOURCES = """\
[[accounts.sources]]
type = "pam"
[[accounts.sources]]
type = "passwd-file"
path = "/etc/gpop/passwd"
"""


def uncommented() -> str:
    return COMMENTED_OUT.sub("", (CONF / "gpop.toml").read_text("utf-8"))


def test_the_documented_defaults_are_the_codes(tmp_path: Path) -> None:
    """Whoever removes a "#" in conf/gpop.toml changes nothing."""
    as_documented = tmp_path / "documented.toml"
    as_documented.write_text(uncommented(), "utf-8")
    nothing_said = tmp_path / "gpop.toml"
    nothing_said.write_text(BOTH_SOURCES, "utf-8")
    documented, default = reading.read(str(as_documented)), reading.read(str(nothing_said))
    assert not documented.errors + documented.warnings
    assert documented.config().as_plain() == default.config().as_plain()


def test_every_setting_stands_in_the_documented_file() -> None:
    """A setting that is not in conf/gpop.toml would be known to nobody."""
    document = tomllib.loads(uncommented())
    for setting in SETTINGS:
        table = document
        for word in setting.section.split("."):
            table = table[word]
        assert table[setting.name] == setting.default, setting.key
    named = {name for source in document["accounts"]["sources"] for name in source}
    assert named == {"type"} | {setting.name for each in SOURCES.values() for setting in each}


def test_the_documented_file_is_what_check_config_prints() -> None:
    """One text, in the code; after a change: ./dev gpop check-config --print-settings > conf/gpop.toml"""
    printed = "\n".join(config_command.annotated_file()) + "\n"
    assert (CONF / "gpop.toml").read_text("utf-8") == printed


def test_every_setting_says_what_it_is_for_and_what_goes_wrong() -> None:
    """Purpose and consequence are sentences, and a number says of what it is."""
    for setting in (*SETTINGS, *(each for source in SOURCES.values() for each in source)):
        assert setting.purpose.endswith("."), setting.key
        assert setting.if_wrong.endswith("."), setting.key
        assert (setting.unit == "seconds") == setting.name.endswith("_s"), setting.key


def test_the_reference_in_docs_has_every_setting_with_its_default() -> None:
    """docs/configuration.md has one row per setting: key, default, what is accepted."""
    text = (HERE / "docs" / "configuration.md").read_text("utf-8")
    _, _, reference = text.partition("## Every setting\n")
    assert reference.splitlines()[-len(SETTINGS) :] == list(config_command.reference_rows())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_right(example: Path) -> None:
    """An example has no error and no warning, and says who it is for."""
    checked = reading.read(str(example / "gpop.toml"))
    assert not checked.errors + checked.warnings
    assert len((example / "README.md").read_text("utf-8")) > 500


def test_the_example_passwd_file_is_right() -> None:
    """Each of its lines can be used, for uids that its config lets in, and nobody knows a password."""
    example = CONF / "examples" / "virtual-users"
    accounts = PasswdFile(str(example / "passwd"))
    accounts.refresh()
    assert not accounts.fault
    assert [problem for problem in accounts.problems if problem[0]] == []
    settings = reading.read(str(example / "gpop.toml")).config()
    for name in (b"anna@example.org", b"bert@example.org", b"carla@example.com"):
        entry = accounts.lookup(name)
        assert entry is not None
        assert entry.uid >= settings.auth.first_valid_uid
        assert entry.gid >= settings.auth.first_valid_gid


def documents() -> list[Path]:
    return [*CONF.rglob("*.md"), *HERE.glob("*.md"), *HERE.glob("docs/*.md")]


def documented_commands() -> set[str]:
    """Lines in code blocks that call gpop."""
    found = set()
    for path in documents():
        for block in re.findall(r"^```\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            # A drawing of processes begins with their names too, and has strokes that ASCII has not.
            found |= set(filter(str.isascii, re.findall(r"^gpop .*$", block, re.MULTILINE)))
    return found


def test_commands_that_the_documents_tell_to_type_exist() -> None:
    """A README tells nobody to type what gpop does not understand."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, (module, _) in COMMANDS.items():
        importlib.import_module(module).add_arguments(commands.add_parser(name))
    documented = documented_commands()
    assert {"gpop serve", "gpop check-config"} <= documented
    for line in documented:
        parser.parse_args(shlex.split(line, comments=True)[1:])


def test_links_between_documents_lead_somewhere() -> None:
    """A file that was renamed is renamed in what refers to it."""
    for path in documents():
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            assert "://" in target or (path.parent / target).exists(), f"{path}: {target}"
