"""The manual pages and completions in ops/manual: up to date, and what their readers accept."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpop import cli
from gpop.config.settings import SETTINGS
from ops.manual.__main__ import texts

MANUAL = Path(__file__).resolve().parent.parent / "ops" / "manual"


def test_they_are_what_the_code_says() -> None:
    """After a change of a command or a setting: .venv/bin/python -m ops.manual"""
    made = texts()
    assert {name: (MANUAL / name).read_text("utf-8") for name in made} == made


def test_every_command_and_every_setting_has_its_place() -> None:
    """gpop(1) has all commands, gpop.toml(5) all settings."""
    page = (MANUAL / "gpop.1").read_text("utf-8").replace("\\-", "-")
    assert set(re.findall(r'^\.SS "gpop (\S+)"$', page, re.M)) == set(cli.COMMANDS)
    page = (MANUAL / "gpop.toml.5").read_text("utf-8").replace("\\-", "-")
    for setting in SETTINGS:
        assert f"\\fB{setting.name}\\fR (" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("name", ["gpop.1", "gpop.toml.5"])
def test_roff_has_nothing_to_warn_of(name: str) -> None:
    """Every macro is known, no line is lost: the formatter's warnings are all on, and there are none."""
    command = ["groff", "-man", "-Tutf8", "-ww", str(MANUAL / name)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) > 80


def test_bash_completes_commands_and_options() -> None:
    """As a shell has it: the words that may follow."""
    script = f"""
        source {MANUAL / "gpop"}
        COMP_WORDS=(gpop ch); COMP_CWORD=1; COMP_LINE="gpop ch"; COMP_POINT=7
        $(complete -p gpop | sed 's/.*-F \\([^ ]*\\).*/\\1/') gpop ch gpop
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["check-config"]
