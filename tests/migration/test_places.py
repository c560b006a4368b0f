"""Where the Maildir of a login name is, as gpop's own config has it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from gpop.config import reading
from gpop.migration.places import NoPlace, by_accounts


def config_of(folder: Path, virtual: str = "") -> Path:
    """A config with one account, joe, whose Maildir is in his home."""
    accounts = folder / "passwd"
    accounts.write_text(f"joe:!:{os.getuid() or 1000}:{os.getgid() or 1000}::{folder}/joe::\n")
    accounts.chmod(0o600)
    path = folder / "gpop.toml"
    path.write_text(
        f'[server]\nuser = "{pwd.getpwuid(os.getuid() or 65534).pw_name}"\n'
        "[accounts]\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
        f'sources = [{{type = "passwd-file", path = "{accounts}"}}]\n{virtual}'
    )
    return path


def test_an_account_is_found_by_its_name(tmp_path: Path) -> None:
    """And nobody else's is."""
    place = by_accounts(reading.load(str(config_of(tmp_path))))
    assert place(b"joe") == (os.fsencode(tmp_path / "joe/Maildir"), os.getuid() or 1000)
    with pytest.raises(NoPlace, match="unknown_user"):
        place(b"ann")


def test_allow_nets_is_no_matter_of_an_import(tmp_path: Path) -> None:
    """Whom gpop serves for clients of one network only, it would not "serve" here, where no client is."""
    config = config_of(tmp_path)
    accounts = tmp_path / "passwd"
    accounts.write_text(accounts.read_text().strip() + "allow_nets=192.0.2.0/24\n")
    place = by_accounts(reading.load(str(config)))
    assert place(b"joe")[0] == os.fsencode(tmp_path / "joe/Maildir")


def test_a_login_name_is_followed_through_rules_and_maps(tmp_path: Path) -> None:
    """An address in a map, another way to write it, a name without its domain: all are joe's Maildir."""
    table = tmp_path / "virtual"
    table.write_text("boss@x.example joe\nnobody@x.example ann\n")
    virtual = (
        f'[accounts.virtual]\npostfix_maps = ["text:{table}"]\ndomain_separators = "%"\n'
        'local_domains = ["local.example"]\ndefault_domains = {"*" = "local.example"}\n'
    )
    config = reading.load(str(config_of(tmp_path, virtual)))
    place = by_accounts(config)
    for name in (b"boss@x.example", b"BOSS%x.example", b"joe@local.example", b"joe"):
        assert place(name)[0] == os.fsencode(tmp_path / "joe/Maildir")
    with pytest.raises(NoPlace, match="unknown_user"):
        place(b"nobody@x.example")
    table.unlink()
    with pytest.raises(NoPlace, match="map_unavailable"):
        by_accounts(config)(b"boss@x.example")
