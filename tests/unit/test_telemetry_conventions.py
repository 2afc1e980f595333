"""Official names, types, units, instruments and buckets are those of the conventions."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from opentelemetry.semconv import schemas
from telemetry_registry import OFFICIAL, ROOT, read_signals

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition
from whence_server.telemetry.spans import names

EXTRACT = yaml.safe_load((ROOT / "tests/conventions/extract.yaml").read_text(encoding="utf-8"))
"""The conventions' own files, as `tests/conventions/extract.py` read them."""

PROPOSED = "gen_ai.iteration.", "gen_ai.response.candidate.", "gen_ai.response.per_token_"


class Meter:
    """Meter that returns what an instrument is made with."""

    def create_histogram(self, **made: str) -> dict[str, str]:
        return {"instrument": "histogram", **made}

    def create_counter(self, **made: str) -> dict[str, str]:
        return {"instrument": "counter", **made}


def read_package() -> Iterator[ModuleType]:
    """Import every module of OpenTelemetry's own package."""
    root = Path(schemas.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        yield importlib.import_module(f"opentelemetry.semconv.{name}")


def make_instrument(name: str) -> dict[str, str]:
    """Return the unit and the kind with which the package makes a metric."""
    function = "create_" + name.replace(".", "_")
    (make, *_) = (getattr(it, function) for it in read_package() if hasattr(it, function))
    made: dict[str, str] = make(Meter())
    return made


def test_the_table_has_the_names_of_the_package() -> None:
    told = {
        value for module in read_package() for value in vars(module).values() if type(value) is str
    }
    assert OFFICIAL["attributes"].keys() - told == set()
    assert OFFICIAL["version"] in {it.value.rpartition("/")[2] for it in schemas.Schemas}


@pytest.mark.parametrize("name", sorted(OFFICIAL["metrics"]))
def test_the_table_has_the_units_and_instruments_of_the_package(name: str) -> None:
    made = make_instrument(name)
    told = OFFICIAL["metrics"][name]
    assert (made["name"], made["unit"]) == (name, told["unit"])
    assert made["instrument"] == told["instrument"]


def test_the_table_and_the_extract_are_of_the_same_release() -> None:
    assert EXTRACT["source"] == OFFICIAL["source"]
    assert OFFICIAL["source"].endswith(f"/v{OFFICIAL['version']}")


def test_the_table_has_the_types_of_the_conventions_files() -> None:
    told = {key: it["type"] for key, it in EXTRACT["attributes"].items()}
    assert {key: "string" if kind == "enum" else kind for key, kind in told.items()} == OFFICIAL[
        "attributes"
    ]


def test_the_table_has_values_and_events_of_the_conventions_files() -> None:
    for key, values in OFFICIAL["values"].items():
        assert set(values) <= set(EXTRACT["attributes"][key]["values"])
    assert EXTRACT["events"].keys() == OFFICIAL["events"].keys()


@pytest.mark.parametrize("name", sorted(OFFICIAL["metrics"]))
def test_the_table_has_the_metrics_of_the_conventions_files(name: str) -> None:
    table, told = OFFICIAL["metrics"][name], EXTRACT["metrics"][name]
    assert (table["instrument"], table["unit"]) == (told["instrument"], told["unit"])
    assert set(table["attributes"]) <= set(told["attributes"])
    numbers = re.findall(r"\[([\d ,.]+)\]", EXTRACT["buckets"][name]["sentence"])
    assert [list(map(float, found.split(","))) for found in numbers] == [table["buckets"]]


def official_metrics() -> list[Definition]:
    return [it for it in catalogue.ALL if not it.name.startswith("whence.")]


def test_every_official_metric_is_in_the_table_and_no_other() -> None:
    assert {it.name for it in official_metrics()} == OFFICIAL["metrics"].keys()


@pytest.mark.parametrize("definition", official_metrics(), ids=lambda it: it.name)
def test_an_official_metric_is_as_the_conventions_have_it(definition: Definition) -> None:
    told = OFFICIAL["metrics"][definition.name]
    assert definition.kind.value == told["instrument"]
    assert definition.unit == told["unit"]
    assert sorted(definition.attributes) == told["attributes"]
    assert definition.boundaries == tuple(map(float, told["buckets"]))


def test_every_name_outside_whence_is_in_the_table_or_proposed() -> None:
    foreign = {
        value
        for key, value in vars(names).items()
        if key.isupper() and "." in value and not value.startswith("whence.")
    } - (OFFICIAL["events"] | read_signals("event")).keys()
    assert len(foreign) > 20
    unknown = foreign - OFFICIAL["attributes"].keys()
    assert {name for name in unknown if not name.startswith(PROPOSED)} == set()


def test_the_kinds_of_spans_are_the_conventions() -> None:
    spans = read_signals("span")
    assert spans["server"].kind == OFFICIAL["spans"]["rpc"]
    assert spans["generation"].kind == OFFICIAL["spans"]["gen_ai"]
