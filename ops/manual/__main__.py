"""
`python -m ops.manual`: write the manual pages and the completions beside this file.

They are kept in the repository, so that installing needs nothing to make them; a test holds that
they are what the code says.
"""

from __future__ import annotations

from pathlib import Path

import shtab

from gpop import cli
from ops.manual import commands, config

HERE = Path(__file__).resolve().parent


def texts() -> dict[str, str]:
    """Return the files by name."""
    parser = cli.parser(cli.COMMANDS)
    return {
        "gpop.1": "\n".join(commands.page()) + "\n",
        "gpop.toml.5": "\n".join(config.page()) + "\n",
        "gpop": shtab.complete(parser, "bash"),
        "_gpop": shtab.complete(parser, "zsh"),
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (HERE / name).write_text(text, "utf-8")
