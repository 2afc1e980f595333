"""The dashboards are whole: every panel says what it shows, in which unit, and from where."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Kind
from whence_server.telemetry.metrics.prometheus import get_family_name

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
ALL_PANELS = {
    f"{name}: {panel['title']}": panel
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
}
every_panel = pytest.mark.parametrize("panel", ALL_PANELS.values(), ids=ALL_PANELS.keys())
# The journal's commits are nobody's request: their exemplars would lead nowhere.
WITH_TRACES = {
    get_family_name(it.name, it.unit) for it in catalogue.ALL if it.kind is Kind.HISTOGRAM
} - {"whence_journal_commit_duration_seconds"}


def test_there_are_three_dashboards() -> None:
    assert BOARDS.keys() == {"service", "model", "pipeline"}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_a_board_has_what_grafana_asks_for(board: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert board["title"].startswith("whence: ")
    assert board["description"]
    assert board["schemaVersion"] >= 39
    assert board["tags"] == ["whence"]
    assert board["refresh"]


def test_boards_are_told_apart() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_panels_have_ids_of_their_own_and_do_not_overlap(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["w"] > 0 < place["h"]
        assert place["x"] >= 0 <= place["y"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@every_panel
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)


@every_panel
def test_a_panel_asks_the_data_source_that_was_chosen(panel: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [
        chosen
    ] * (len(panel["targets"]) + 1)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_every_variable_is_there_and_used(board: dict[str, Any]) -> None:
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert len(set(names)) == len(names)
    text = json.dumps(board)
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == set(names)
    types = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert types["datasource"] == "datasource"
    assert types["instance"] == "query"
    queries = [v for v in board["templating"]["list"] if v["type"] == "query"]
    assert all(v["datasource"]["uid"] == "${datasource}" for v in queries)


@pytest.mark.parametrize("name", ["service", "model"])
def test_models_can_be_chosen(name: str) -> None:
    (model,) = [v for v in BOARDS[name]["templating"]["list"] if v["name"] == "model"]
    assert model["multi"] is model["includeAll"] is True
    by_model = [
        target["expr"]
        for panel in BOARDS[name]["panels"]
        for target in panel.get("targets", ())
        if re.search(r"gen_ai_|whence_(step|draw|tokens)", target["expr"])
    ]
    assert by_model
    assert all('gen_ai_request_model=~"$model"' in expr for expr in by_model)


@every_panel
def test_what_has_traces_behind_it_leads_to_them(panel: dict[str, Any]) -> None:
    text = " ".join(target["expr"] for target in panel["targets"])
    histograms = set(re.findall(r"(\w+)_bucket", text))
    leads = panel["type"] != "stat" and bool(histograms & WITH_TRACES) and "le=" not in text
    assert all(target["exemplar"] is leads for target in panel["targets"])
    links = panel["fieldConfig"]["defaults"].get("links", [])
    assert len(links) == leads
    for link in links:
        address = urlsplit(link["url"])
        assert address.path == "/explore"
        (pane,) = json.loads(parse_qs(address.query)["panes"][0]).values()
        (query,) = pane["queries"]
        assert pane["datasource"] == query["datasource"]["uid"] == "${traces}"
        assert query["datasource"]["type"] == "jaeger"
        assert (query["queryType"], query["service"]) == ("search", "${service}")


def test_latencies_are_in_seconds_and_lead_somewhere() -> None:
    latencies = [
        panel
        for panel in ALL_PANELS.values()
        if re.search(r"_seconds_bucket", panel["targets"][0]["expr"])
    ]
    assert len(latencies) > 6
    assert all(panel["fieldConfig"]["defaults"]["unit"] == "s" for panel in latencies)
    silent = [p["title"] for p in latencies if "links" not in p["fieldConfig"]["defaults"]]
    assert silent == ["Commits, how long"]


def test_confidence_is_shown_as_heatmap_and_as_quantiles() -> None:
    for metric in ("whence_step_entropy", "whence_step_surprise", "whence_draw_margin"):
        panels = [p for p in BOARDS["model"]["panels"] if metric in json.dumps(p.get("targets"))]
        kinds = {panel["type"] for panel in panels}
        assert {"heatmap", "timeseries"} <= kinds
        for panel in panels:
            if panel["type"] == "heatmap":
                assert all(target["format"] == "heatmap" for target in panel["targets"])
                assert "sum by (le)" in panel["targets"][0]["expr"]


def test_an_exemplar_opens_its_trace() -> None:
    path = GRAFANA / "provisioning" / "datasources" / "whence.yaml"
    sources = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    by_type = {source["type"]: source for source in sources}
    (destination,) = by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    # The label that the server's exemplars have.
    assert destination["name"] == "trace_id"
    assert destination["datasourceUid"] == by_type["jaeger"]["uid"]
    assert [source["isDefault"] for source in sources if "isDefault" in source] == [True]
