"""Dashboards and alerts ask for metrics and labels that the server has, and for no others."""

import re

import pytest
import yaml
from deploy_queries import (
    DEPLOY,
    ROOT,
    Query,
    dashboard_queries,
    read_query,
    rule_queries,
    rules,
)

from whence.v1.generation_pb2 import FinishReason
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.metrics import attribute_values, catalogue
from whence_server.telemetry.metrics.catalogue import Kind
from whence_server.telemetry.metrics.prometheus import get_family_name, get_label_name
from whence_server.telemetry.training import metrics as training

RULE_TESTS = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8"))

# Put on every series by the scrape, whatever the page says.
TARGET_LABELS = frozenset({"instance", "job"})
# Of a server's resource, those that the dashboards rely on: `make_service_resource` sets them.
RESOURCE_LABELS = frozenset({"service_name", "telemetry_sdk_name"})


def known_metrics() -> dict[str, frozenset[str]]:
    """Every series of servers and trainings, and what the rules record of them; with labels."""
    known: dict[str, frozenset[str]] = {}
    for definition in (*catalogue.ALL, training.NON_FINITE):
        name = get_family_name(definition.name, definition.unit)
        labels = frozenset(map(get_label_name, definition.attributes)) | TARGET_LABELS
        if definition.kind is Kind.COUNTER:
            known[name + "_total"] = labels
        elif definition.kind is Kind.GAUGE:
            known[name] = labels
        else:
            known |= {name + "_sum": labels, name + "_count": labels}
            known[name + "_bucket"] = labels | {"le"}
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(process_\w+)`", document):
        known |= dict.fromkeys((name, "whence_engine_" + name), TARGET_LABELS)
    known |= {"target_info": TARGET_LABELS | RESOURCE_LABELS, "up": TARGET_LABELS}
    for rule in rules("record"):
        known[rule["record"]] = frozenset.intersection(*read_query(rule["expr"]).groupings)
    return known


KNOWN = known_metrics()
QUERIES = [*dashboard_queries(), *rule_queries()]


def test_queries_are_read_as_they_are_meant() -> None:
    use = read_query(
        'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{b=~"$model", c!=""}[5m] offset 1d)))'
        " > 2.5 and on (a) w:x:mean1h unless y * 1e3"
    )
    assert use.metrics == {"x_bucket": {"b", "c"}, "w:x:mean1h": frozenset(), "y": frozenset()}
    assert use.groupings == (frozenset({"le", "a"}), frozenset({"a"}))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_the_server_has_what_is_asked_for(query: Query) -> None:
    use = read_query(query.text)
    assert use.metrics
    assert use.metrics.keys() <= KNOWN.keys()
    for metric, labels in use.metrics.items():
        assert labels <= KNOWN[metric], metric
    everything = frozenset().union(*(KNOWN[metric] for metric in use.metrics))
    for grouping in use.groupings:
        assert grouping <= everything


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_what_is_shown_of_a_series_is_on_it(query: Query) -> None:
    use = read_query(query.text)
    sums = [labels for labels in use.groupings if re.search(r"\bby\b", query.text)]
    left = (
        frozenset.intersection(*sums)
        if sums
        else frozenset.union(*(KNOWN[metric] for metric in use.metrics))
    )
    assert query.shown_labels <= left


def test_the_series_of_the_rules_tests_are_the_servers() -> None:
    series = [it["series"] for test in RULE_TESTS["tests"] for it in test["input_series"]]
    assert series
    for text in series:
        ((metric, labels),) = read_query(text).metrics.items()
        assert labels <= KNOWN[metric], text


def test_every_alert_tells_what_to_do_and_is_tested() -> None:
    tested = (DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in rules("alert")]
    assert len(set(names)) == len(names) > 10
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 100
        assert rule["alert"] in tested or rule["alert"].endswith("Drift")


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {metric for query in dashboard_queries() for metric in read_query(query.text).metrics}
    families = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in shown}
    for definition in catalogue.ALL:
        name = get_family_name(definition.name, definition.unit)
        name += "_total" if definition.kind is Kind.COUNTER else ""
        assert name in families


def test_rules_compare_labels_with_values_that_the_server_exports() -> None:
    said = {
        "whence_generation_finish_reason": {
            attribute_values.get_finish_reason(reason) for reason in FinishReason.values()
        },
        "whence_export_outcome": {"exported", "rejected", "set_aside"},
        "telemetry_sdk_name": {str(make_service_resource("1").attributes["telemetry.sdk.name"])},
    }
    compared = [
        (label, value)
        for query in QUERIES
        for label, values in re.findall(r'(\w+)=~?"([a-z_|]+)"', query.text)
        for value in values.split("|")
    ]
    assert {label for label, _ in compared} == said.keys()
    for label, value in compared:
        assert value in said[label]
