"""
An installed gpop that can be replaced by another version while it runs: a copy of this one.

Knows files, no processes. Executed by the load test's command, and by tests.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gpop

# What Python has compiled of an older version; it makes it anew.
COMPILED = shutil.ignore_patterns("__pycache__")


class Installed:
    """A gpop that is installed in a folder. `program`: what Python is to execute."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "gpop"
        self.program = self.package / "__main__.py"


class Installation(Installed):
    """
    A copy of the package in a folder of its own.

    Attributes:
        package: where it is.
        program: what Python is to execute.
        version: the one that is installed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shutil.copytree(Path(gpop.__file__).parent, self.package, ignore=COMPILED)
        self.version = gpop.__version__

    def update(self, version: str) -> None:
        """Install another version, which is known by its number: a whole package, and the old one is gone."""
        fresh = self.package.with_name("gpop-fresh")
        shutil.copytree(self.package, fresh, ignore=COMPILED)
        replace(fresh / "__init__.py", f'"{self.version}"', f'"{version}"')
        old = self.package.rename(self.package.with_name("gpop-old"))
        fresh.rename(self.package)
        shutil.rmtree(old)
        self.version = version

    def change(self, module: str, old: str, new: str) -> None:
        """Change one line of a module, as an update does."""
        path = self.package / module
        replace(path, old, new)
        # Whole seconds and the size are what tells Python that its compiled file is old.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)


def replace(path: Path, old: str, new: str) -> None:
    """Write a file anew, in place of the old one, with `new` where `old` was."""
    text = path.read_text()
    if old not in text:
        raise ValueError(f"{path} does not have {old!r}")
    path.unlink()
    path.write_text(text.replace(old, new))
