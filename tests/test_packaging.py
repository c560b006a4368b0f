"""What is built of this repository: a wheel and an sdist that install, and serve when they are."""

from __future__ import annotations

import json
import os
import poplib
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpop import __version__
from tests.serving import PASSWORD, Site, wait_until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds: building writes beside setup.py."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: nothing says which files belong to the repository")
    copy = tmp_path_factory.mktemp("source") / "gpop"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git repository: nothing says which files belong to it")
    for name in filter(None, done.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def build(source: Path, into: Path, kind: str) -> Path:
    """Build a "wheel" or an "sdist" with the setuptools that is here, without the network."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(into)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, timeout=120, check=True
    )
    return into / done.stdout.split()[-1]


def output_of(*command: str | Path, **environment: str) -> str:
    """Run a command; its standard output, or a failure that shows what it said."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


def test_a_wheel_holds_gpop_and_nothing_else(wheel: Path) -> None:
    """Languages, manual pages and completions among it; no tests, no load test."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"gpop", f"gpop-{__version__}.data", f"gpop-{__version__}.dist-info"}
    for wanted in ("gpop/languages/de.txt", "share/man/man1/gpop.1", "share/man/man5/gpop.toml.5"):
        assert any(name.endswith(wanted) for name in names), wanted


def test_an_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    """Somebody who has only that can build, and has docs, tests and configs besides."""
    with tarfile.open(build(source, tmp_path, "sdist")) as archive:
        # Since Python 3.11.4 one has to say it.
        how = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **how)
    unpacked = tmp_path / f"gpop-{__version__}"
    for name in ("docs/protocol.md", "tests/serving.py", "conf/gpop.toml", "dev", "ops/manual/gpop.1"):
        assert (unpacked / name).exists(), name
    again = build(unpacked, tmp_path, "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_an_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """In a virtual environment of its own: the version, the manual page, a maildrop that is served."""
    venv = tmp_path / "venv"
    output_of(sys.executable, "-m", "venv", venv)
    output_of(venv / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    # What gpop needs is here already; a .pth file shows it, behind what is installed there.
    (found,) = (venv / "lib").glob("python*/site-packages")
    dependencies = [path for path in site.getsitepackages() if Path(path).exists()]
    (found / "zz-dependencies.pth").write_text("\n".join(dependencies) + "\n")
    assert output_of(venv / "bin" / "gpop", "--version") == f"gpop {__version__}\n"
    assert (venv / "share" / "man" / "man1" / "gpop.1").exists()
    account = Site()
    account.deliver(b"Subject: x\n\nhello\n")
    log = tmp_path / "log"
    with open(log, "wb") as output:
        command = [venv / "bin" / "gpop", "serve", "--config", str(account.config)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "broker_started" in log.read_text() or process.poll() is not None, 60)
        (started,) = (json.loads(line) for line in log.read_text().splitlines() if "broker_started" in line)
        client = poplib.POP3("127.0.0.1", int(started["listen"][0].rpartition(":")[2]), timeout=20)
        client.user("user0")
        client.pass_(PASSWORD)
        assert client.stat() == (1, 21)
        client.quit()
    finally:
        process.terminate()
        process.wait(60)
        account.remove()


@pytest.mark.skipif(shutil.which("pipx") is None, reason="pipx is not installed")
def test_pipx_installs_it(wheel: Path, tmp_path: Path) -> None:
    """With what it needs from the registry: the command, and its manual pages where pipx has them."""
    places = {f"PIPX_{name}": str(tmp_path / name) for name in ("HOME", "BIN_DIR", "MAN_DIR")}
    output_of("pipx", "install", wheel, **places)
    assert output_of(tmp_path / "BIN_DIR" / "gpop", "--version") == f"gpop {__version__}\n"
    assert "passwd-file" in output_of(tmp_path / "BIN_DIR" / "gpop", "passwd", "--help")


def test_the_debian_package_finds_what_it_takes() -> None:
    """
    ops/debian/build is run by who wants a package, not here; but each file that it copies is there, and each
    line that it changes.
    """
    script = (ROOT / "ops" / "debian" / "build").read_text("utf-8")
    named = set(re.findall(r"\$top/((?:conf|ops|gpop)/[\w./-]+\w)", script))
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).exists()]
    changed = re.findall(r'^replace "\$\w+/(\S+)" (?:"(.+?[^\\])"|(\S+)) ', script, re.MULTILINE)
    assert len(changed) == 4
    for path, quoted, plain in changed:
        folder = "ops/fail2ban/jail.d" if "jail.d" in path else "conf"
        source = ROOT / folder / Path(path).name
        assert (quoted.replace("\\`", "`") or plain) in source.read_text("utf-8"), path
