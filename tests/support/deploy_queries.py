"""Queries of the dashboards and the alerts in deploy/, parsed without Prometheus."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
NEVER_ON_A_SOUND_SERVER = {"whence_export_unreadable_total", "whence_metrics_unreadable_total"}
"""Metrics that exist only after an unreadable entry; test_deploy_metrics checks their names."""


@dataclass(frozen=True)
class Use:
    """Metrics and labels of a query."""

    metrics: dict[str, frozenset[str]]
    """Labels that the selectors of each metric match on."""
    groupings: tuple[frozenset[str], ...]
    """Labels of each `by`, `on`, `ignoring`."""


TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<variable>\$\w+)"""
    r"""|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<number>[0-9][0-9.a-z]*)|(?P<sign>\S)"""
)
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = GROUPINGS | {"and", "or", "unless", "offset", "bool", "sum", "count", "min", "max"}


def read_query(text: str) -> Use:
    tokens = [match for match in TOKEN.finditer(text) if match.lastgroup != "range"]
    metrics: dict[str, set[str]] = {}
    groupings: list[frozenset[str]] = []
    position = 0
    while position < len(tokens):
        word, kind = tokens[position].group(), tokens[position].lastgroup
        following = tokens[position + 1].group() if position + 1 < len(tokens) else ""
        position += 1
        if kind != "name":
            continue
        if word in GROUPINGS and following == "(":
            names, position = read_names(tokens, position, ")")
            groupings.append(frozenset(names))
        elif word not in WORDS and following == "{":
            names, position = read_names(tokens, position, "}")
            metrics.setdefault(word, set()).update(names)
        elif word not in WORDS and following != "(":
            metrics.setdefault(word, set())
    return Use({name: frozenset(labels) for name, labels in metrics.items()}, tuple(groupings))


def read_names(tokens: list[re.Match[str]], position: int, end: str) -> tuple[list[str], int]:
    """Return the names up to a closing sign, and the position after it."""
    names = []
    while tokens[position].group() != end:
        if tokens[position].lastgroup == "name":
            names.append(tokens[position].group())
        position += 1
    return names, position + 1


def rules(kind: str) -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


class Query(NamedTuple):
    where: str
    text: str
    shown_labels: frozenset[str]
    """Labels that its legend or its annotations name."""


def dashboard_queries() -> Iterator[Query]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                shown = frozenset(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                where = f"{path.stem}: {panel['title']} {target['refId']}"
                yield Query(where, target["expr"], shown)
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
                assert match, variable["definition"]
                where = f"{path.stem}: ${variable['name']}"
                yield Query(where, match[1], frozenset({match[2]}))
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                text = annotation["titleFormat"] + annotation["textFormat"]
                shown = frozenset(re.findall(r"\{\{(\w+)\}\}", text))
                yield Query(f"{path.stem}: {annotation['name']}", annotation["expr"], shown)


def rule_queries() -> Iterator[Query]:
    for rule in rules("expr"):
        text = " ".join(rule.get("annotations", {}).values())
        shown = frozenset(re.findall(r"\$labels\.(\w+)", text))
        yield Query(rule.get("alert") or rule["record"], rule["expr"], shown)
