"""Registry of whence's telemetry, docs/telemetry, and telemetry that is held against it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "telemetry"


def _load(path: Path) -> Any:
    # libyaml takes a tenth of the time, and every worker that collects tests comes here.
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


OFFICIAL: dict[str, Any] = _load(ROOT / "tests" / "conventions" / "opentelemetry.yaml")
_TYPES = {
    "string_value": "string",
    "int_value": "int",
    "double_value": "double",
    "bool_value": "boolean",
}


@dataclass(frozen=True)
class Attribute:
    """Declaration of an attribute; `members` are the values of an enumeration."""

    key: str
    type: str
    brief: str
    members: frozenset[str] = frozenset()

    @property
    def is_template(self) -> bool:
        return self.type.startswith("template[")


@dataclass(frozen=True)
class Signal:
    """Declaration of a span, an event or a metric, with the level of each attribute."""

    name: str
    brief: str
    attributes: Mapping[str, str]
    kind: str = ""
    """Kind of a span, instrument of a metric."""
    unit: str = ""


@cache
def read_groups() -> list[dict[str, Any]]:
    """Read the groups of all files of the registry, in the order of the files' names."""
    return [
        group for path in sorted(FOLDER.glob("*.yaml")) for group in _load(path).get("groups", ())
    ]


def read_attributes() -> dict[str, Attribute]:
    """Read the attributes that the registry declares, by key."""
    return {
        entry["id"]: _make_attribute(entry)
        for group in read_groups()
        if group["type"] == "attribute_group"
        for entry in group["attributes"]
    }


def read_signals(kind: str) -> dict[str, Signal]:
    """Read the registry's spans, events or metrics, by name.

    Args:
        kind: "span", "event" or "metric".
    """
    signals = [_make_signal(group) for group in read_groups() if group["type"] == kind]
    return {signal.name: signal for signal in signals}


def _make_attribute(entry: Mapping[str, Any]) -> Attribute:
    kind = entry["type"]
    if isinstance(kind, dict):
        members = frozenset(member["value"] for member in kind["members"])
        return Attribute(entry["id"], "string", entry["brief"], members)
    return Attribute(entry["id"], kind, entry["brief"])


def _make_signal(group: Mapping[str, Any]) -> Signal:
    name = group.get("metric_name") or group.get("name") or group["id"].removeprefix("span.whence.")
    levels = {entry["ref"]: entry["requirement_level"] for entry in group.get("attributes", ())}
    return Signal(
        name,
        group["brief"],
        {
            key: level if isinstance(level, str) else level["conditionally_required"]
            for key, level in levels.items()
        },
        group.get("span_kind") or group.get("instrument", ""),
        group.get("unit", ""),
    )


@dataclass
class Held:
    """Telemetry that was held against the registry.

    Attributes:
        complaints: everything that is sent and not declared, or sent otherwise than declared.
        sent: pairs of a signal and the attribute that it carried; "" for the signal itself.
    """

    complaints: set[str] = field(default_factory=set)
    sent: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._attributes = read_attributes()
        self._spans = read_signals("span")
        self._events = read_signals("event")
        self._metrics = read_signals("metric")

    def add_spans(self, spans: Iterable[Span]) -> None:
        """Hold spans and their events against the registry."""
        for span in spans:
            name = _name_of_span(span)
            signal = self._spans.get(name)
            if signal is None:
                self.complaints.add(f"span {span.name}: not declared")
                continue
            self._check("span", signal, span.attributes)
            if Span.SpanKind.Name(span.kind) != f"SPAN_KIND_{signal.kind.upper()}":
                self.complaints.add(f"span {name}: kind {span.kind} is not {signal.kind}")
            for event in span.events:
                self._add_event(event.name, event.attributes, "span")

    def add_records(self, records: Iterable[LogRecord]) -> None:
        """Hold log records against the registry."""
        for record in records:
            self._add_event(record.event_name, record.attributes, "log")

    def add_metrics(self, metrics: Iterable[Metric]) -> None:
        """Hold metrics, as OTLP sends them, against the registry."""
        for metric in metrics:
            official = OFFICIAL["metrics"].get(metric.name)
            signal = self._metrics.get(metric.name)
            if signal is None and official is None:
                self.complaints.add(f"metric {metric.name}: not declared")
                continue
            signal = signal or _make_official_metric(metric.name)
            data = metric.WhichOneof("data") or ""
            if (metric.unit, _get_instrument(metric)) != (signal.unit, signal.kind):
                self.complaints.add(f"metric {metric.name}: {data} in {metric.unit}")
            for point in getattr(metric, data).data_points:
                self._check("metric", signal, point.attributes)

    def add_resources(self, resources: Iterable[Resource]) -> None:
        """Hold resources against the registry."""
        for resource in resources:
            for pair in resource.attributes:
                if complaint := self._check_value(pair.key, pair.value):
                    self.complaints.add(f"resource: {pair.key} {complaint}")

    def list_unsent(self) -> list[str]:
        """Return what the registry declares and nothing that was added has."""
        declared = {
            (f"{kind} {signal.name}", key)
            for kind, signals in (
                ("span", self._spans),
                ("event", self._events),
                ("metric", self._metrics),
            )
            for signal in signals.values()
            for key in ("", *signal.attributes)
        }
        sent_keys = {key for _, key in self.sent}
        unused = {("attribute", key) for key in self._attributes if key not in sent_keys}
        return sorted(f"{name} {key}".rstrip() for name, key in (declared - self.sent) | unused)

    def _add_event(self, name: str, attributes: Iterable[KeyValue], carrier: str) -> None:
        signal = self._events.get(name)
        if signal is None:
            if OFFICIAL["events"].get(name) != carrier:
                self.complaints.add(f"event {name} on a {carrier}: not declared")
            signal = Signal(name, "", self._list_official_levels(name))
        self._check("event", signal, attributes)

    def _list_official_levels(self, name: str) -> dict[str, str]:
        if name == "exception":
            return {"exception.type": "required", "exception.message": "recommended"}
        return dict(self._spans["generation"].attributes)

    def _check(self, kind: str, signal: Signal, attributes: Iterable[KeyValue]) -> None:
        where = f"{kind} {signal.name}"
        self.sent.add((where, ""))
        found = set()
        for pair in attributes:
            key = self._find_key(pair.key)
            if key in found and key == pair.key:
                self.complaints.add(f"{where}: {key} twice")
            found.add(key)
            self.sent.add((where, key))
            if key not in signal.attributes:
                self.complaints.add(f"{where}: {pair.key} is not declared there")
            elif complaint := self._check_value(key, pair.value):
                self.complaints.add(f"{where}: {pair.key} {complaint}")
        required = {key for key, level in signal.attributes.items() if level == "required"}
        self.complaints |= {f"{where}: {key} is missing" for key in required - found}

    def _find_key(self, key: str) -> str:
        """Return the declared key of an attribute: its own, or that of its template."""
        if key in self._attributes or key in OFFICIAL["attributes"]:
            return key
        templates = [
            it.key
            for it in self._attributes.values()
            if it.is_template and key.startswith(it.key + ".")
        ]
        return max(templates, key=len, default=key)

    def _check_value(self, key: str, value: AnyValue) -> str:
        own = self._attributes.get(key)
        declared = own.type if own else OFFICIAL["attributes"].get(key)
        if declared is None:
            return "is declared nowhere"
        members = own.members if own else frozenset(OFFICIAL["values"].get(key, ()))
        declared = declared.removeprefix("template[")
        declared = declared if own is None or not own.is_template else declared.removesuffix("]")
        allowed = {declared, _EMPTY} if declared.endswith("[]") else {declared}
        if declared != "any" and get_type(value) not in allowed:
            return f"is {get_type(value)} and not {declared}"
        if members and value.string_value not in members:
            return f"is {value.string_value!r}, which is not among its values"
        return ""


_EMPTY = "[]"


def get_type(value: AnyValue) -> str:
    """Return a value's type in the words of the conventions; "[]" for an empty array."""
    which = value.WhichOneof("value") or ""
    if which == "array_value":
        kinds = {get_type(item) for item in value.array_value.values}
        return "|".join(sorted(kinds)) + "[]"
    return _TYPES.get(which, which)


def _name_of_span(span: Span) -> str:
    """Return the name under which the registry has a span."""
    keys = {pair.key for pair in span.attributes}
    if span.kind == Span.SPAN_KIND_SERVER:
        return "http" if "http.request.method" in keys else "server"
    return "generation" if "gen_ai.operation.name" in keys else span.name.split(" ")[0]


def _make_official_metric(name: str) -> Signal:
    official = OFFICIAL["metrics"][name]
    optional = {"error.type"}
    levels = {key: "" if key in optional else "required" for key in official["attributes"]}
    return Signal(name, "", levels, official["instrument"], official["unit"])


def _get_instrument(metric: Metric) -> str:
    data = metric.WhichOneof("data")
    if data == "sum":
        return "counter" if metric.sum.is_monotonic else "updowncounter"
    return data or ""
