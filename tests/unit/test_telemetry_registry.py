"""Everything that is sent is in the registry of docs/telemetry, and everything there is sent."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from eventful import STEP_SPANS, Vocabularies, make_eventful_journal, make_eventful_training
from metrics_parts import bring_to_life, busy, live_server, measuring
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from span_reading import spans_of
from telemetry_journal import MemoryJournal
from telemetry_registry import (
    FOLDER,
    OFFICIAL,
    Held,
    read_attributes,
    read_groups,
    read_signals,
)
from telemetry_tables import PAGE, render_page

from whence.summary import list_grades
from whence.v1.generation_pb2 import Decoding, FinishReason
from whence.v1.observation_pb2 import Observation
from whence.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_FAILED,
    TRAINING_STATE_INTERRUPTED,
)
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.telemetry import ContentCapture, PushOptions, StepForm
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.spans import explanation_names, genai, names
from whence_server.telemetry.spans.audit import AuditEncoder
from whence_server.telemetry.spans.events import EventEncoder
from whence_server.telemetry.spans.finish_reasons import get_reason_name
from whence_server.telemetry.training import metrics as training_metrics
from whence_server.telemetry.training import names as training_names
from whence_server.telemetry.training.metrics import TrainingMetrics
from whence_server.telemetry.training.spans import KILLED, get_state_name
from whence_server.telemetry.training.trace import TrainingTrace

PUSH = PushOptions(OtlpSettings(endpoint="http://127.0.0.1:1"), 3600.0)
ATTRIBUTES = read_attributes()
TEMPLATES = {it.key for it in ATTRIBUTES.values() if it.is_template}


class Collecting(MetricExporter):
    """Exporter that keeps metrics as OTLP sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[Metric] = []

    def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
        self.metrics += [
            metric
            for resource in encode_metrics(metrics_data).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        pass


async def collect_metrics() -> list[Metric]:
    """Return every metric of a busy server and of a training."""
    journal, live, exporter = MemoryJournal(), live_server(), Collecting()
    async with measuring(journal, push=PUSH, exporter=exporter, live=live) as metrics:
        bring_to_life(live, metrics)
        busy(journal)
        assert await metrics.flush(30)
    training = Collecting()
    recorder = TrainingMetrics(make_service_resource("0"), "0", training, PUSH)
    for event in make_eventful_training():
        recorder.record(event)
    assert recorder.close(5.0)
    return exporter.metrics + training.metrics


async def hold_everything() -> Held:
    """Hold what an eventful journal and an eventful training send against the registry."""
    held, journal = Held(), make_eventful_journal()
    for form in StepForm:
        options = {"step_form": form, "step_spans": STEP_SPANS, "token_arrays": 2}
        content = {"content": ContentCapture.SPAN_ONLY, "vocabularies": Vocabularies()}
        held.add_spans(await spans_of(journal, **options, **content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genai, "MAX_SPAN_BYTES", 4_000)  # as if it had a long prompt
        held.add_spans(await spans_of(journal, **content))
    for encoder in (EventEncoder(journal, ContentCapture.EVENT_ONLY), AuditEncoder()):
        for entry in journal.entries:
            for piece in await encoder.encode(entry):
                held.add_records(ScopeLogs.FromString(piece).log_records)
    trace = TrainingTrace()
    held.add_spans(span for event in make_eventful_training() for span in trace.make_spans(event))
    held.add_metrics(await collect_metrics())
    return held


async def test_everything_that_is_sent_is_declared_and_everything_declared_is_sent() -> None:
    held = await hold_everything()
    assert sorted(held.complaints) == []
    assert held.list_unsent() == []


def attribute(key: str, value: AnyValue) -> KeyValue:
    return KeyValue(key=key, value=value)


INTS = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))
NOTHING = AnyValue(array_value=ArrayValue())


@pytest.mark.parametrize(
    ("span", "complaint"),
    [
        (Span(name="stage"), "span stage: not declared"),
        (Span(name="queue"), "span queue: kind 0 is not internal"),
        (
            Span(name="queue", kind=Span.SPAN_KIND_INTERNAL),
            "span queue: whence.generation.id is missing",
        ),
        (
            Span(name="queue", attributes=[attribute("whence.step.index", AnyValue(int_value=1))]),
            "span queue: whence.step.index is not declared there",
        ),
        (
            Span(name="queue", attributes=[attribute("whence.generation.id", INTS)]),
            "span queue: whence.generation.id is int[] and not string",
        ),
        (
            Span(name="queue", attributes=[attribute("whence.generation.id", NOTHING)]),
            "span queue: whence.generation.id is [] and not string",
        ),
        (
            Span(
                name="training_run",
                attributes=[attribute("whence.training.state", AnyValue(string_value="odd"))],
            ),
            "span training_run: whence.training.state is 'odd', which is not among its values",
        ),
        (
            Span(name="queue", events=[Span.Event(name="whence.surprise")]),
            "event whence.surprise on a span: not declared",
        ),
    ],
)
def test_what_is_not_as_declared_is_named(span: Span, complaint: str) -> None:
    held = Held()
    held.add_spans([span])
    assert complaint in held.complaints


def test_what_nothing_sends_is_named() -> None:
    unsent = Held().list_unsent()
    assert "span queue whence.generation.id" in unsent
    assert "metric whence.batch.size" in unsent
    assert "attribute whence.generation.id" in unsent


# ---- the constants ----

SPAN_NAMES = {"QUEUE", "PREFILL", "BEAM_ROUND", "DECODE", "DECODE_STEP", "DECODE_BLOCK"}
TRAINING_SPAN_NAMES = {
    *("TRAINING_RUN", "TRAINING_ATTEMPT", "EPOCH"),
    *("OPTIMIZER_STEP", "EVALUATION", "CHECKPOINT"),
}
EVENT_NAMES = {
    *("AUDIT", "EXCEPTION", "OPERATION_DETAILS", "TOKEN_SCHEDULED", "TOKEN_GENERATED"),
    *("FIRST_TOKEN", "READER_LEFT", "READER_JOINED", "ENGINE_ENDED", "ENGINE_RESUMED"),
    *("CANCELLED", "MAX_DURATION_PASSED", "SEQUENCE_STOPPED"),
}


def list_constants(module: object, without: Iterable[str] = ()) -> dict[str, str]:
    return {
        key: value.rstrip(".")
        for key, value in vars(module).items()
        if key.isupper() and isinstance(value, str) and key not in without
    }


def test_the_constants_of_spans_are_the_registrys_and_the_conventions() -> None:
    serving = list_constants(names, {*SPAN_NAMES, *EVENT_NAMES, "PROVIDER"})
    serving |= list_constants(explanation_names, {"EXPLAIN"})
    training = list_constants(training_names, TRAINING_SPAN_NAMES)
    metrics = list_constants(catalogue)
    known = {*serving.values(), *training.values(), *metrics.values()}
    own = {key for key in known if key in ATTRIBUTES}
    assert own == set(ATTRIBUTES)
    assert known - own <= OFFICIAL["attributes"].keys()


def test_the_names_of_spans_and_events_are_the_registrys() -> None:
    spans = {getattr(names, key) for key in SPAN_NAMES} | {explanation_names.EXPLAIN}
    spans |= {getattr(training_names, key) for key in TRAINING_SPAN_NAMES}
    assert read_signals("span").keys() == spans | {"server", "http", "generation"}
    events = {getattr(names, key) for key in EVENT_NAMES}
    assert read_signals("event").keys() == events - OFFICIAL["events"].keys()


def test_the_metrics_are_the_registrys() -> None:
    declared = read_signals("metric")
    own = [it for it in (*catalogue.ALL, *training_metrics.ALL) if it.name.startswith("whence.")]
    assert declared.keys() == {it.name for it in own}
    for it in own:
        signal = declared[it.name]
        assert (signal.unit, signal.kind, signal.brief) == (it.unit, it.kind.value, it.description)
        assert set(signal.attributes) == set(it.attributes), it.name


def test_the_values_of_enumerations_are_those_that_the_contract_can_have() -> None:
    reasons = {get_reason_name(it) for it in FinishReason.values() if it}
    assert ATTRIBUTES["whence.generation.finish_reason"].members == reasons
    # The other states are those of a run without an end on record.
    ends = (TRAINING_STATE_COMPLETED, TRAINING_STATE_INTERRUPTED, TRAINING_STATE_FAILED)
    states = {*map(get_state_name, ends), KILLED}
    assert ATTRIBUTES["whence.training.state"].members == states
    strategies = {it.name for it in Decoding.DESCRIPTOR.oneofs_by_name["strategy"].fields}
    assert ATTRIBUTES["whence.decoding.strategy"].members == strategies
    for field in Observation.DESCRIPTOR.fields:
        grades = {
            list_grades(Observation(**{field.name: number}))[field.name]
            for number in field.enum_type.values_by_number
            if number
        }
        assert ATTRIBUTES[f"whence.observation.{field.name}"].members == grades


# ---- the form of the registry: what weaver reads, as far as it can be checked without weaver ----

KEYS = {
    "attribute_group": {"id", "type", "brief", "stability", "attributes"},
    "span": {"id", "type", "span_kind", "brief", "stability", "attributes"},
    "event": {"id", "type", "name", "brief", "stability", "attributes"},
    "metric": {
        *("id", "type", "metric_name", "instrument", "unit"),
        *("brief", "stability", "attributes"),
    },
}
TYPE = re.compile(r"(string|int|double|boolean)(\[\])?|template\[(string|double)\]")
LEVELS = {"required", "recommended", "opt_in"}


@pytest.mark.parametrize("group", read_groups(), ids=lambda group: group["id"])
def test_a_group_has_the_form_of_the_conventions(group: dict[str, Any]) -> None:
    assert group.keys() - {"attributes"} == KEYS[group["type"]] - {"attributes"}
    assert group["stability"] == "development"
    assert group["brief"].endswith(".")
    for entry in group.get("attributes", ()):
        if group["type"] == "attribute_group":
            check_attribute(entry)
        else:
            assert entry.keys() == {"ref", "requirement_level"}
            assert entry["ref"] in ATTRIBUTES or entry["ref"] in OFFICIAL["attributes"]
            level = entry["requirement_level"]
            assert (
                level in LEVELS
                if isinstance(level, str)
                else [*level] == ["conditionally_required"]
            )


def check_attribute(entry: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", entry["id"])
    assert entry["brief"].endswith(".")
    assert entry["stability"] == "development"
    kind = entry["type"]
    if isinstance(kind, dict):
        for member in kind["members"]:
            assert member.keys() == {"id", "value", "brief", "stability"}
        return
    assert TYPE.fullmatch(kind)
    if "string" in kind:
        assert entry["examples"]


def test_no_name_is_declared_twice_and_none_is_the_conventions() -> None:
    groups = read_groups()
    for key in ("id", "name", "metric_name"):
        found = [group[key] for group in groups if key in group]
        assert len(found) == len(set(found))
    keys = [
        entry["id"]
        for group in groups
        if group["type"] == "attribute_group"
        for entry in group["attributes"]
    ]
    assert len(keys) == len(set(keys))
    assert not set(keys) & OFFICIAL["attributes"].keys()


def test_no_attribute_is_the_namespace_of_another() -> None:
    """OpenTelemetry's checker calls each such attribute a violation when it is sent."""
    known = {it for it in (*ATTRIBUTES, *OFFICIAL["attributes"]) if it not in TEMPLATES}
    parents = {key: key.rpartition(".")[0] for key in (*ATTRIBUTES, *OFFICIAL["attributes"])}
    while parents:
        assert {key: parent for key, parent in parents.items() if parent in known} == {}
        parents = {key: it.rpartition(".")[0] for key, it in parents.items() if "." in it}


def test_the_tables_of_the_docs_are_made_from_the_registry() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run `make telemetry-tables`"


ROOT = FOLDER.parents[1]
CHART = ROOT / "deploy" / "helm" / "whence" / "templates"
"""Its templates have names of the same form; the settings that they write are checked elsewhere."""
DEPLOYED = [
    it
    for it in (ROOT / "deploy").rglob("*.*")
    if not it.is_relative_to(CHART) and it.suffix != ".pyc"
]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *DEPLOYED]
NAME = re.compile(r"(?<![\w./@:-])(?:whence|gen_ai)\.[a-z_]+(?:\.[a-z_]+)*(?![\w/(]|\.[a-z])")
OTHERS = {
    *("whence.env", "whence.explanation_exports", "whence.page", "whence.proof"),
    *("whence.security", "whence.summary"),
    *("whence.whence.svc", "whence.whence.svc.cluster.local"),
}
"""Names of a file, of packages, and of a service in a cluster."""


def test_the_names_in_docs_dashboards_and_configurations_are_declared() -> None:
    signals = (read_signals(kind).keys() for kind in ("event", "metric"))
    official = (OFFICIAL[kind].keys() for kind in ("attributes", "metrics", "events"))
    declared = set(ATTRIBUTES).union(*signals, *official)
    templates = tuple(f"{it.key}." for it in ATTRIBUTES.values() if it.is_template)
    used = {
        name
        for page in PAGES
        if page.is_file()
        for name in NAME.findall(page.read_text(encoding="utf-8"))
        if not name.startswith(templates)
    }
    prefixes = {".".join(it.split(".")[:end]) for it in declared for end in range(1, 9)}
    assert used - declared - prefixes - OTHERS == set()
    assert used & read_signals("metric").keys()


def test_the_manifest_depends_on_the_conventions_of_the_table() -> None:
    manifest = yaml.safe_load((FOLDER / "manifest.yaml").read_text(encoding="utf-8"))
    (dependency,) = manifest["dependencies"]
    assert dependency["schema_url"].endswith(OFFICIAL["version"])
    assert f"/v{OFFICIAL['version']}.zip[" in dependency["registry_path"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{manifest["schema_url"].rpartition("/")[2]}"' in project


def test_the_checker_is_run_with_the_conventions_that_no_group_refers_to() -> None:
    referred = {
        entry["ref"]
        for group in read_groups()
        if group["type"] != "attribute_group"
        for entry in group.get("attributes", ())
    }
    assert OFFICIAL["attributes"].keys() - referred
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    (command,) = (line for line in lines if line.startswith("    weaver registry live-check"))
    assert "--include-unreferenced" in command
