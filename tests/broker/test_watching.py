"""The broker's look at files that are renewed while it runs."""

from __future__ import annotations

from pathlib import Path

from gpop.broker.watching import LOOK_S, FileWatch


def test_a_change_that_came_to_nothing_is_said_again(tmp_path: Path) -> None:
    """No process could be started for a renewed certificate: it was forgotten until the next renewal."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("old")
    watch = FileWatch([str(certificate)], 0.0)
    assert watch.changed(LOOK_S) == ""
    certificate.write_text("a new one")
    assert watch.changed(2 * LOOK_S) == ""  # it may change still
    assert watch.changed(3 * LOOK_S) == str(certificate)
    assert watch.changed(4 * LOOK_S) == ""
    watch.not_acted_upon()
    assert watch.changed(5 * LOOK_S) == str(certificate)
    assert watch.changed(6 * LOOK_S) == ""
