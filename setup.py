"""Packaging of gpop. Settings of the tools (ruff, mypy, pytest) are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """The version as the package has it, read without importing the package."""
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "gpop" / "__init__.py").read_text("utf-8"), re.M)
    if not found:
        raise SystemExit("setup.py: gpop/__init__.py has no __version__")
    return found[1]


setup(
    name="gpop",
    version=version(),
    description="A POP3 server for Maildir stores whose polls that find no new mail cost next to nothing",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="gpop contributors",
    license="MIT",
    packages=find_packages(include=["gpop", "gpop.*"]),
    package_data={"gpop.languages": ["*.txt"], "gpop.report": ["*.css"]},
    # Made by `python -m ops.manual`.
    data_files=[
        ("share/man/man1", ["ops/manual/gpop.1"]),
        ("share/man/man5", ["ops/manual/gpop.toml.5"]),
        ("share/bash-completion/completions", ["ops/manual/gpop"]),
        ("share/zsh/site-functions", ["ops/manual/_gpop"]),
    ],
    python_requires=">=3.11",
    # The exact versions that are tested stand in requirements.txt.
    install_requires=[
        "gevent>=24.2",
        "pysasl>=1.2",
        "python-pam>=2.1",
        "structlog>=23.1",
    ],
    extras_require={
        "maps": ["lmdb>=1.4"],  # virtual user maps as `postmap lmdb:` writes them
        "metrics": ["prometheus-client>=0.20"],  # the Prometheus endpoint
        "migration": ["rich>=13.5"],  # the progress bar of gpop uidl
        "report": ["duckdb>=2.0", "rich>=13.5"],  # gpop report
        "loadtest": ["locust>=2.24"],
        "fuzz": ["atheris>=2.3"],  # ./dev fuzz, guided by what is reached; without it hypothesis does it
        "bench": ["matplotlib>=3.6"],  # for the plot of loadtest.bench, and nothing else
        "dev": [
            *("duckdb>=2.0", "lmdb>=1.4", "locust>=2.24", "prometheus-client>=0.20", "rich>=13.5"),
            *("hypothesis>=6.100", "mypy>=1.10", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.5"),
            *("setuptools>=68", "shtab>=1.7"),
        ],
    },
    entry_points={"console_scripts": ["gpop = gpop.cli:main"]},
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Communications :: Email :: Post-Office :: POP3",
    ],
)
