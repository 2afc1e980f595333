"""Checks and conversion of requests for explanations, with the field of every fault."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from whence.v1 import explain_pb2
from whence.v1.generation_pb2 import TokenInput
from whence_server.domain.errors import FieldViolation, InvalidRequestError, NotOfferedError
from whence_server.domain.explanations import (
    DEFAULT_METHOD,
    METHOD_OPTIONS,
    ExplainMethod,
    Operator,
    SegmentUnit,
)

MAX_SEGMENTS = 4_096
"""Segments of a caller in one request."""
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "num_ablations": (8, 4_096),
    "max_gap": (1e-6, 1),
}


@dataclass(frozen=True, slots=True)
class Way:
    """Way of an explanation: the part of a request that is not about its source."""

    method: ExplainMethod
    against: int | str | None
    unit: SegmentUnit | None
    segments: tuple[tuple[int, int], ...] | None
    options: Mapping[str, object]
    measures_trust: bool


def read_way(request: explain_pb2.ExplainRequest) -> Way:
    """Return the way in which a request wants its explanation.

    Raises:
        NotOfferedError: the method is unknown, or not there yet.
        InvalidRequestError: fields break rules; the error names all of them.
    """
    method = _read_method(request.method)
    violations = list(_find_violations(request, method))
    if violations:
        raise InvalidRequestError(*violations)
    contrast = request.WhichOneof("contrast")
    division = request.segmentation.WhichOneof("division")
    return Way(
        method=method,
        against=None if contrast is None else getattr(request, contrast),
        unit=SegmentUnit(request.segmentation.unit) if request.segmentation.unit else None,
        segments=tuple(
            (segment.begin, segment.end) for segment in request.segmentation.segments.segments
        )
        if division == "segments"
        else None,
        options=_read_options(request.options),
        measures_trust=not request.omit_trust,
    )


def read_given(given: explain_pb2.GivenSpan) -> tuple[str | tuple[int, ...], str | tuple[int, ...]]:
    """Return a given text and its continuation, each as text or token ids.

    Raises:
        InvalidRequestError: one is missing or empty.
    """
    violations = []
    for oneof in ("context", "continuation"):
        kind = given.WhichOneof(oneof)
        if kind is None:
            names = [f"`{field.name}`" for field in given.DESCRIPTOR.oneofs_by_name[oneof].fields]
            violations.append(
                FieldViolation(f"given.{oneof}", f"one of {' or '.join(names)} must be set")
            )
        elif not _read_text(getattr(given, kind)) and oneof == "continuation":
            violations.append(FieldViolation(f"given.{kind}", "must not be empty"))
    if violations:
        raise InvalidRequestError(*violations)
    return (
        _read_text(getattr(given, given.WhichOneof("context") or "")),
        _read_text(getattr(given, given.WhichOneof("continuation") or "")),
    )


def _read_text(value: str | TokenInput) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(value.token_ids)


def _read_method(number: int) -> ExplainMethod:
    if not number:
        return DEFAULT_METHOD
    for method in METHOD_OPTIONS:
        if method.value == number:
            return method
    known = {each.value: each.spelling for each in ExplainMethod}
    working = ", ".join(method.spelling for method in METHOD_OPTIONS)
    raise NotOfferedError(
        f"this server has no method {known.get(number, f'number {number}')}; it has {working}"
    )


def _find_violations(
    request: explain_pb2.ExplainRequest, method: ExplainMethod
) -> Iterator[FieldViolation]:
    if request.WhichOneof("contrast") == "against_text" and not request.against_text:
        yield FieldViolation("against_text", "must not be empty")
    if request.segmentation.unit:
        units = {unit.value for unit in SegmentUnit}
        if request.segmentation.unit not in units:
            yield FieldViolation(
                "segmentation.unit", f"is {request.segmentation.unit}, which is no unit"
            )
    yield from _find_segment_violations(request.segmentation)
    given = _read_options(request.options)
    for name, value in given.items():
        field = f"options.{name}"
        if name not in METHOD_OPTIONS[method] | {"seed"}:
            having = [each.spelling for each, names in METHOD_OPTIONS.items() if name in names]
            yield FieldViolation(
                field,
                f"is no option of {method.spelling}"
                + (f", but of {', '.join(having)}" if having else ""),
            )
        elif name in _BOUNDS and isinstance(value, int | float):
            low, high = _BOUNDS[name]
            # A comparison with NaN is false.
            if not low <= value <= high:
                yield FieldViolation(field, f"must be from {low:g} to {high:g}, not {value:g}")
    if isinstance(given.get("operator"), int):
        yield FieldViolation("options.operator", f"is {request.options.operator}, which is none")


def _find_segment_violations(segmentation: explain_pb2.Segmentation) -> Iterator[FieldViolation]:
    if segmentation.WhichOneof("division") != "segments":
        return
    field = "segmentation.segments"
    num_segments = len(segmentation.segments.segments)
    if not 0 < num_segments <= MAX_SEGMENTS:
        yield FieldViolation(
            field, f"has {num_segments} segments; from 1 to {MAX_SEGMENTS} are allowed"
        )


def _read_options(options: explain_pb2.ExplainOptions) -> dict[str, object]:
    """Return the options that are set, by name; an unknown operator is its number."""
    found: dict[str, object] = {field.name: value for field, value in options.ListFields()}
    if options.operator:
        try:
            found["operator"] = Operator(options.operator).name.lower()
        except ValueError:
            found["operator"] = int(options.operator)
    return found
