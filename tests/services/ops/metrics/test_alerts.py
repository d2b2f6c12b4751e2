"""Alert rules and the dashboard: they hold, and name metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import pgcorpus
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SearchError
from pgcorpus.services.embedding.usage import embed_question
from pgcorpus.services.ops.metrics.app import Metrics
from pgcorpus.services.search.service import SearchService
from tests.services.ops.metrics.scraped import list_families, note_backup, note_batch, scrape
from tests.services.search.test_service import AxisEmbedder, SilentEmbedder

ROOT: Final = Path(pgcorpus.__file__).parents[1]
RULES: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
TESTS: Final = RULES.with_name("alerts.test.yml")
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "pgcorpus.json"
REFERENCE: Final = ROOT / "docs" / "reference" / "metrics.md"
RESPONSES: Final = ROOT / "docs" / "how-to" / "respond-to-alerts.md"
NAME: Final = re.compile(r"\bpgcorpus_\w+")
KINDS: Final = {"unknown": "untyped"}

SEEDS: Final = {
    "VectorSearchSlowness": "warning",
    "EmbeddingGenerationFailure": "critical",
    "DatabaseConnectionPoolExhaustion": "critical",
    "VectorIndexCorruption": "critical",
}
"""The specification's rules, with their severity."""


def list_rules() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checks, where they are installed."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: on Debian it is in the package prometheus")
    return subprocess.run(
        [promtool, *arguments], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def everything(database: Database) -> Iterator[str]:
    """A scrape of a process that searches, embeds and works, and of its database."""
    note_backup(database)
    metrics = Metrics(database, worker=True)
    SearchService(database, embedder=AxisEmbedder()).search("price", corpus="knowledge")
    service = SearchService(database, embedder=SilentEmbedder())
    service.search("price", corpus="knowledge")
    service.flush_log()
    with pytest.raises(SearchError):
        service.search("price", corpus="knowledge", language="klingon")
    embed_question(AxisEmbedder(), "price")
    note_batch(metrics, completed=1)
    yield scrape(metrics)
    metrics.close()


def list_samples(scraped: str) -> set[str]:
    """The names that a query can use: those of samples, and of histograms without any yet."""
    families = list_families(scraped)
    names = {sample.name for each in families.values() for sample in each.samples}
    for name, family in families.items():
        if family.type == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        elif family.type == "counter":
            names.add(f"{name.removesuffix('_total')}_total")
    return names


def test_the_rules_are_valid() -> None:
    """As Prometheus reads them."""
    done = run_promtool("check", "rules", str(RULES))

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_where_it_should_and_is_quiet_otherwise() -> None:
    """By Prometheus' own evaluation of invented series."""
    done = run_promtool("test", "rules", str(TESTS))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_of_either_kind() -> None:
    """One that fires and one that does not."""
    fires: dict[bool, set[str]] = {True: set(), False: set()}
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            fires[bool(expected["exp_alerts"])].add(expected["alertname"])

    assert fires[True] == fires[False] == {rule["alert"] for rule in list_rules()}


def test_the_rules_of_the_specification_are_there() -> None:
    """Under their names, as urgent as they were."""
    rules = {rule["alert"]: rule["labels"]["severity"] for rule in list_rules()}

    assert SEEDS.items() <= rules.items()


def test_every_alert_has_its_section_and_commands() -> None:
    """A person woken by one finds what it means and what to run."""
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RESPONSES.read_text(), re.MULTILINE | re.DOTALL)
    )

    assert [rule["alert"] for rule in list_rules()] == list(sections)
    assert [name for name, told in sections.items() if "```" not in told] == []


def test_rules_and_dashboard_name_metrics_that_there_are(everything: str) -> None:
    """In a real scrape: a rule on a misspelt name is quiet for ever."""
    known = list_samples(everything)
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    named = {name for rule in list_rules() for name in NAME.findall(rule["expr"])}
    drawn = {name for query in queries for name in NAME.findall(query)}

    assert len(named) > 15
    assert len(drawn) > 30
    assert named - known == set()
    assert drawn - known == set()


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    """Ids of its own, a data source that the importer chooses, panels that do not overlap."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(taken) == len(set(taken))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    sources = {json.dumps(panel.get("datasource")) for panel in panels if panel["type"] != "row"}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert dashboard["templating"]["list"][0]["name"] == "datasource"


def test_the_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    """Each as a rule, which Prometheus' own parser reads."""
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [each for panel in dashboard["panels"] for each in panel.get("targets", ())]
    rules = [
        {"record": f"drawn_{number}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, target in enumerate(targets)
    ]
    file = tmp_path / "drawn.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": rules}]}))

    done = run_promtool("check", "rules", str(file))

    assert "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_the_reference_has_every_metric_with_type_and_labels(everything: str) -> None:
    """And no other: its rows are those of a real scrape."""
    rows = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in re.findall(
            r"^\| `(pgcorpus_\w+)` \| (\w+) \|\s*([^|]*?)\s*\|", REFERENCE.read_text(), re.MULTILINE
        )
    }
    families = list_families(everything)
    there = {
        f"{name}_total" if family.type == "counter" else name: (
            family.type,
            frozenset(
                label
                for sample in family.samples
                for label in sample.labels
                if label not in {"le", "version"}
            ),
        )
        for name, family in families.items()
        if name.startswith("pgcorpus") and not name.endswith("_created")
    }

    assert {name: kind for name, (kind, _) in rows.items()} == {
        name: kind for name, (kind, _) in there.items()
    }
    assert [name for name, (_, labels) in there.items() if labels and labels != rows[name][1]] == []
