"""Official names, types, units, instruments and buckets are those of the conventions."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry.semconv import schemas
from telemetry_registry import OFFICIAL, read_signals

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition
from whence_server.telemetry.spans import names

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
