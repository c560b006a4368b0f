"""
What ops/ and docs/monitoring.md say of metrics, against the code; the alerts, by Prometheus's own tool.

Grafana itself is not run here: of the dashboard it is tested that it is JSON, and asks for what there is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpop import tally
from gpop.config.settings import SOURCES
from gpop.events import EVENTS
from gpop.metrics.exposition import HISTOGRAM, LAYOUTS, METRICS, PLACES

HERE = Path(__file__).parent.parent
OPS = HERE / "ops"
RULES = OPS / "gpop.rules.yml"
DASHBOARD = OPS / "grafana-dashboard.json"

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def series() -> dict[str, set[str]]:
    """Every name that Prometheus stores for us, and the labels that it may have."""
    found = {}
    for each in METRICS:
        names = [each.name]
        if each.kind == HISTOGRAM:
            names = [each.name + ending for ending in ("_bucket", "_sum", "_count")]
        for name in names:
            found[name] = {*each.labels, *(["le"] if name.endswith("_bucket") else [])}
    return found


def expressions() -> list[str]:
    """What the dashboard asks for, and the rules."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return asked + re.findall(
        r"^ +expr:(?: >-\n)?((?:.+\n)+?) +(?:for|labels):", RULES.read_text(), re.MULTILINE
    )


def test_dashboard_and_rules_ask_for_what_there_is() -> None:
    """Each metric, each label, and each event and value that is named exists in the code."""
    known, asked = series(), expressions()
    assert len(asked) > 40
    values = {word for each in tally.COUNTS.values() for key in each for word in key[1:]} | {*tally.KINDS}
    for expression in asked:
        names = re.findall(r"gpop_[a-z_]+", expression)
        assert set(names) <= known.keys(), expression
        labels = set().union(*(known[name] for name in names), {"instance", "process", "job"})
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert set(by.replace(" ", "").split(",")) <= labels, expression
        for label, _, value in re.findall(r"(\w+)(=~|!~|=)\"([^\"]*)\"", expression):
            assert label in labels, expression
            if label not in ("instance", "job"):
                assert set(value.split("|")) <= values, expression


def test_the_dashboard_shows_every_metric() -> None:
    """What is counted can be seen; only the start's time is for those who ask."""
    text = DASHBOARD.read_text("utf-8")
    unseen = {each.name for each in METRICS if each.name not in text}
    assert unseen == {"gpop_start_time_seconds"}


def test_the_document_describes_every_metric() -> None:
    """docs/monitoring.md has a row per metric with the words of the code, and a section per alert."""
    text = (HERE / "docs" / "monitoring.md").read_text("utf-8")
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        assert f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |" in text
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert f"`{alert}`" in text


def test_label_values_are_those_of_the_code() -> None:
    """A new kind of account source is counted by its name, and what a tally holds fits into one."""
    assert set(SOURCES) <= set(tally.LOGIN_SOURCES)
    assert set(SOURCES) <= set(tally.ASKED_SOURCES)
    for kind, places in PLACES.items():
        assert len(set(places.values())) == len(places)
        assert max(places.values()) < tally.COUNT
        assert LAYOUTS[kind] < 2**64
        assert {key[1] for key in places if key[0] == "events"} == set(EVENTS)


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    """And each alert comes when it should, by the rules' own tests."""
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", "tests/ops/gpop.rules.test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    """A rule without a test is one that nobody has seen coming."""
    tested = (HERE / "tests" / "ops" / "gpop.rules.test.yml").read_text()
    for alert in re.findall(r"alert: (\w+)", RULES.read_text()):
        assert f"alertname: {alert}\n" in tested, alert


@needs_promtool
def test_what_the_dashboard_asks_for_is_promql(tmp_path: Path) -> None:
    """Prometheus understands each of its questions, with times in place of Grafana's variables."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__\w+", "5m", expression)}
        for number, expression in enumerate(asked)
    ]
    as_rules = tmp_path / "panels.yml"
    as_rules.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "check", "rules", str(as_rules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
