"""Jaeger's files: its page, its memory, and what is laid on top of its configuration."""

import json
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from deploy_files import DEPLOY, load_compose, load_yaml

from whence_server.telemetry.spans import names as span_names
from whence_server.telemetry.training import names as training_names

SERVICES: dict[str, dict[str, Any]] = load_compose("compose.yaml")["services"]
KEEP = load_compose("compose.keep.yaml")
JAEGER = load_yaml("jaeger/config.yaml")
PAGE = json.loads((DEPLOY / "jaeger" / "ui.json").read_text(encoding="utf-8"))
ATTRIBUTES = {
    value
    for module in (span_names, training_names)
    for value in vars(module).values()
    if isinstance(value, str)
}
TRACE_MB = 5
"""Most megabytes that a trace of a thousand steps takes in memory, measured with Jaeger 2.13."""
UNITS_MB = {"g": 1_074, "MiB": 1.049}


def read_mb(size: str) -> float:
    match = re.fullmatch(r"([0-9]+)(g|MiB)", size)
    assert match
    return int(match[1]) * UNITS_MB[match[2]]


def test_the_page_is_given_to_jaeger() -> None:
    path = JAEGER["extensions"]["jaeger_query"]["ui"]["config_file"]
    assert f"./jaeger/ui.json:{path}:ro" in SERVICES["jaeger"]["volumes"]


def test_the_page_speaks_of_attributes_that_are_there() -> None:
    for prefix in PAGE["topTagPrefixes"]:
        assert any(name.startswith(prefix) for name in ATTRIBUTES), prefix
    for pattern in PAGE["linkPatterns"]:
        asked = {pattern["key"], *re.findall(r"#\{([^}]+)\}", pattern["url"] + pattern["text"])}
        assert asked <= ATTRIBUTES


def test_the_page_leads_to_what_the_stack_publishes() -> None:
    published = {
        port.rpartition(":")[0].removeprefix("127.0.0.1:")
        for service in SERVICES.values()
        for port in service.get("ports", ())
    }
    items = [item for menu in PAGE["menu"] for item in menu["items"]]
    for url in [it["url"] for it in (*items, *PAGE["linkPatterns"])]:
        assert urlsplit(url).hostname == "localhost"
        assert str(urlsplit(url).port) in published


def test_the_traces_in_memory_fit_the_limit() -> None:
    service = SERVICES["jaeger"]
    soft = read_mb(service["environment"]["GOMEMLIMIT"])
    # Go collects its garbage more often near the soft limit; the kernel kills at the hard one.
    assert 0.8 <= soft / read_mb(service["mem_limit"]) <= 0.95
    store = JAEGER["extensions"]["jaeger_storage"]["backends"]["memory"]["memory"]
    # A fifth is left for what Jaeger itself needs.
    assert store["max_traces"] * TRACE_MB <= 0.8 * soft


def test_traces_are_kept_on_a_volume_of_jaegers_user() -> None:
    jaeger, owner = KEEP["services"]["jaeger"], KEEP["services"]["jaeger-volume"]
    (volume,) = KEEP["volumes"]
    folder = "/badger"
    assert f"{volume}:{folder}" in jaeger["volumes"]
    assert owner["volumes"] == [f"{volume}:{folder}"]
    assert owner["entrypoint"] == ["chown", "10001:10001", folder]
    assert owner["image"] == SERVICES["jaeger"]["image"]
    assert jaeger["depends_on"] == {
        "jaeger-volume": {"condition": "service_completed_successfully"}
    }
    store = load_yaml("jaeger/badger.yaml")["extensions"]["jaeger_storage"]["backends"]["badger"]
    assert all(path.startswith(f"{folder}/") for path in store["badger"]["directories"].values())
    assert store["badger"]["ephemeral"] is False
    assert store["badger"]["ttl"]["spans"]


def test_the_service_that_changes_the_owner_can_do_nothing_else() -> None:
    owner = KEEP["services"]["jaeger-volume"]
    assert (owner["cap_drop"], owner["cap_add"]) == (["ALL"], ["CHOWN"])
    assert owner["network_mode"] == "none"
    assert owner["read_only"] is True
    assert owner["restart"] == "no"
    assert owner["security_opt"] == ["no-new-privileges:true"]


def test_the_configurations_of_the_overlay_are_mounted() -> None:
    jaeger = KEEP["services"]["jaeger"]
    mounts = [*SERVICES["jaeger"]["volumes"], *jaeger["volumes"]]
    for argument in jaeger["command"]:
        path = argument.removeprefix("--config=")
        assert f"./jaeger/{path.rpartition('/')[2]}:{path}:ro" in mounts
    # The base configuration comes first: later ones take precedence.
    assert jaeger["command"][: len(SERVICES["jaeger"]["command"])] == SERVICES["jaeger"]["command"]


@pytest.mark.parametrize("name", ["badger.yaml", "mcp.yaml"])
def test_what_is_laid_on_top_changes_parts_that_are_there(name: str) -> None:
    document = load_yaml(f"jaeger/{name}")
    for section, parts in document.items():
        assert parts.keys() <= JAEGER[section].keys()


def test_mcp_is_served_beside_the_page() -> None:
    assert load_yaml("jaeger/mcp.yaml") == {
        "extensions": {"jaeger_query": {"ai": {"enable_mcp": True}}}
    }
