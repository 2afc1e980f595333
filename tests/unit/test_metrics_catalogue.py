"""The catalogue, the conventions, the instruments and the documentation say the same."""

import re
from pathlib import Path

import pytest
from metrics_parts import bring_to_life, busy, families_of, live_server, measuring
from telemetry_journal import MemoryJournal

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.prometheus import get_family_name

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

GEN_AI = {
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
}
RPC = {"rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"}


# Written out as the conventions print them: the catalogue computes some of them.
@pytest.mark.parametrize(
    ("definition", "name", "unit", "attributes", "boundaries"),
    [
        (
            catalogue.REQUEST_DURATION,
            "gen_ai.server.request.duration",
            "s",
            GEN_AI | {"error.type"},
            (
                "0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, "
                "81.92"
            ),
        ),
        (
            catalogue.TIME_TO_FIRST_TOKEN,
            "gen_ai.server.time_to_first_token",
            "s",
            GEN_AI,
            (
                "0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, "
                "7.5, 10.0"
            ),
        ),
        (
            catalogue.TIME_PER_OUTPUT_TOKEN,
            "gen_ai.server.time_per_output_token",
            "s",
            GEN_AI,
            "0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5",
        ),
        (
            catalogue.TOKEN_USAGE,
            "gen_ai.client.token.usage",
            "{token}",
            GEN_AI | {"gen_ai.token.type"},
            (
                "1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, "
                "67108864"
            ),
        ),
        (
            catalogue.CALL_DURATION,
            "rpc.server.call.duration",
            "s",
            RPC,
            "0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10",
        ),
    ],
)
def test_the_conventions_are_followed_to_the_letter(
    definition: Definition, name: str, unit: str, attributes: set[str], boundaries: str
) -> None:
    assert (definition.name, definition.unit, definition.kind) == (name, unit, Kind.HISTOGRAM)
    assert set(definition.attributes) == attributes
    assert definition.boundaries == tuple(map(float, boundaries.split(", ")))


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
