"""docs/authentication.md knows every reason that the code can log."""

from __future__ import annotations

import re
from pathlib import Path

from gpop.accounts import cache, pam
from gpop.accounts.hashes import SCHEMES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/authentication.md").read_text(encoding="utf-8")


def test_every_reason_is_explained() -> None:
    """An operator who greps a reason finds it."""
    sources = [*(ROOT / "gpop/auth").rglob("*.py"), *(ROOT / "gpop/accounts").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    reasons = set(re.findall(r'Refused\(\s*[A-Z_]+, "(\w+)"', code)) | set(pam.REFUSALS.values())
    reasons |= (
        set(pam.FAULTS.values()) | set(re.findall(r'return "(\w+)"', code)) | {"broker_busy", "broker_gone"}
    )
    reasons |= set(re.findall(r'Rejected\("(\w+)"', code))
    reasons |= set(re.findall(r'"((?:uid|gid|account)_\w+)" if', code)) - {"account_too_large"}
    assert len(reasons) > 35
    assert not {reason for reason in reasons if f"`{reason}`" not in TEXT}


def test_every_watched_file_and_scheme_is_named() -> None:
    """What empties the auth cache, and what a passwd-file may hold."""
    assert not [path for path in cache.SYSTEM_FILES if path.rpartition("/")[2] not in TEXT]
    assert not [scheme for scheme in SCHEMES if f"`{scheme.decode()}`" not in TEXT]
