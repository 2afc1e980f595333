"""The catalogue, the conventions, the instruments and the documentation say the same."""

import re
from pathlib import Path

from metrics_parts import bring_to_life, busy, families_of, live_server, measuring
from telemetry_journal import MemoryJournal

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.prometheus import get_family_name

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


async def test_the_page_has_every_metric_of_the_catalogue_and_its_buckets() -> None:
    journal = MemoryJournal()
    live = live_server()
    async with measuring(journal, live=live) as metrics:
        bring_to_life(live, metrics)
        busy(journal)
        assert await metrics.flush(30)
        families = families_of(metrics)
    expected = {get_family_name(it.name, it.unit): it for it in catalogue.ALL}
    foreign = {"target"} | {name for name in families if "process_" in name}
    assert families.keys() - foreign == expected.keys()
    for name, definition in expected.items():
        assert families[name].type == definition.kind.value
        assert families[name].documentation == definition.description
        if definition.kind is Kind.HISTOGRAM:
            bounds = {float(s.labels["le"]) for s in families[name].samples if "le" in s.labels}
            assert bounds == {*definition.boundaries, float("inf")}


def test_every_metric_is_in_one_list() -> None:
    assert len(set(catalogue.ALL)) == len({it.name for it in catalogue.ALL}) == len(catalogue.ALL)
    assert all(list(it.boundaries) == sorted(set(it.boundaries)) for it in catalogue.ALL)


def row(definition: Definition) -> str:
    page = get_family_name(definition.name, definition.unit)
    page += "_total" if definition.kind is Kind.COUNTER else ""
    attributes = ", ".join(f"`{name}`" for name in definition.attributes)
    return (
        f"| `{definition.name}` | `{page}` | {definition.kind.value} | `{definition.unit}` "
        f"| {attributes} | {definition.description} |"
    )


def test_every_metric_is_documented_and_no_other() -> None:
    documented = [line for line in DOCUMENT.splitlines() if re.match(r"\| `[a-z_]+\.", line)]
    assert documented == [row(definition) for definition in catalogue.ALL]
