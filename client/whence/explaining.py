"""Requests for explanations, and the stream of the answer."""

from collections.abc import Sequence
from typing import Any, TypedDict

from whence.arguments import convert_token_ids, require_text
from whence.backoff import RetryPolicy
from whence.once import OneCallStream
from whence.options import Prompt
from whence.requests import refuse_unknown
from whence.v1 import explain_pb2, explanation_pb2


class ExplainOptions(TypedDict, total=False):
    """Options of `explain`; None and missing options are the server's defaults."""

    step: int | None
    """Index of the step to explain; or give `steps`."""
    steps: range | None
    """Indexes of the steps to explain as one unit, without gaps."""
    sequence: int | None
    """Index of the sequence; the first is 0."""
    prompt: Prompt | None
    """Context of a text that is no generation's; `text` follows it."""
    text: Prompt | None
    """Continuation of `prompt` to explain, as text or token ids."""
    against: str | int | None
    """Contrast: a text, or a token id, in the place of what is explained."""
    method: str | None
    """Method, such as "leave-one-out"."""
    segments: str | Sequence[range] | None
    """Unit of the context's segments, such as "sentences"; or ranges of token positions."""
    trust: bool | None
    """False omits the measurement of trust."""
    num_ablations: int | None
    """Number of random ablations."""
    seed: int | None
    """Seed of random ablations."""
    operator: str | None
    """Way in which segments are taken out: "remove" or "hide"."""
    max_gap: float | None
    """Largest gap of integrated gradients, as a share."""
    corrupted_segment: int | None
    """Index of the segment that patching corrupts."""


_METHOD_OPTIONS = ("num_ablations", "seed", "max_gap", "corrupted_segment")


def make_explain_request(
    generation_id: str | None, options: ExplainOptions
) -> explain_pb2.ExplainRequest:
    """Return the request of an explanation.

    Args:
        generation_id: id of a generation; None for a text.
        options: options of `explain`.

    Raises:
        TypeError: an unknown option, a value of the wrong type, or options that contradict.
        ValueError: a value that the wire cannot carry, or an unknown name.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    refuse_unknown(given, ExplainOptions.__annotations__)
    request = explain_pb2.ExplainRequest(omit_trust=not given.get("trust", True))
    if generation_id is None:
        _set_given(request.given, given)
    else:
        _set_recorded(request.recorded, generation_id, given)
    if isinstance(against := given.get("against"), str):
        request.against_text = require_text("against", against)
    elif against is not None:
        [request.against_token_id] = convert_token_ids("against", [against]).token_ids
    if "method" in given:
        request.method = explanation_pb2.ExplainMethod.Value(
            _find_name(explanation_pb2.ExplainMethod, "EXPLAIN_METHOD_", "method", given["method"])
        )
    _set_segments(request.segmentation, given.get("segments"))
    for name in _METHOD_OPTIONS:
        if name in given:
            setattr(request.options, name, given[name])
    if "operator" in given:
        request.options.operator = explanation_pb2.AblationOperator.Value(
            _find_name(
                explanation_pb2.AblationOperator,
                "ABLATION_OPERATOR_",
                "operator",
                given["operator"],
            )
        )
    return request


def make_explain_stream(
    generation_id: str | None, options: ExplainOptions, policy: RetryPolicy
) -> OneCallStream[explain_pb2.ExplainResponse]:
    """Return the stream of an explanation; raises as `make_explain_request`.

    A response without an event only keeps the stream open.
    """
    return OneCallStream(
        make_explain_request(generation_id, options),
        explain_pb2.ExplainResponse,
        lambda response: response if response.WhichOneof("event") else None,
        policy,
    )


def list_names(kind: Any, prefix: str) -> list[str]:
    """Return the names of an enum's values as options have them: "leave-one-out"."""
    return [
        name.removeprefix(prefix).lower().replace("_", "-")
        for name, number in kind.items()
        if number
    ]


def _find_name(kind: Any, prefix: str, option: str, name: object) -> str:
    names = list_names(kind, prefix)
    if name not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, not {name!r}")
    return prefix + str(name).upper().replace("-", "_")


def _set_recorded(
    recorded: explain_pb2.RecordedSpan, generation_id: str, given: dict[str, Any]
) -> None:
    if "prompt" in given or "text" in given:
        raise TypeError("a generation and `prompt` or `text` contradict: give one of them")
    if ("step" in given) == ("steps" in given):
        raise TypeError("give `step`, or `steps` for several as one unit")
    steps = range(given["step"], given["step"] + 1) if "step" in given else given["steps"]
    _check_range("steps", steps)
    recorded.generation_id = require_text("generation_id", generation_id)
    recorded.sequence_index = given.get("sequence", 0)
    recorded.begin_step, recorded.end_step = steps.start, steps.stop


def _set_given(target: explain_pb2.GivenSpan, given: dict[str, Any]) -> None:
    for name in ("step", "steps", "sequence"):
        if name in given:
            raise TypeError(f"`{name}` is for a generation: give its id")
    if "prompt" not in given or "text" not in given:
        raise TypeError("give a generation's id, or `prompt` and `text`")
    prompt, text = given["prompt"], given["text"]
    if isinstance(prompt, str):
        target.prompt = require_text("prompt", prompt)
    else:
        target.prompt_tokens.CopyFrom(convert_token_ids("prompt", prompt))
    if isinstance(text, str):
        target.text = require_text("text", text)
    else:
        target.tokens.CopyFrom(convert_token_ids("text", text))


def _set_segments(
    segmentation: explain_pb2.Segmentation, given: str | Sequence[range] | None
) -> None:
    if isinstance(given, str):
        name = _find_name(explain_pb2.SegmentUnit, "SEGMENT_UNIT_", "segments", given)
        segmentation.unit = explain_pb2.SegmentUnit.Value(name)
    elif given is not None:
        segmentation.segments.SetInParent()
        for positions in given:
            _check_range("segments", positions)
            segmentation.segments.segments.add(begin=positions.start, end=positions.stop)


def _check_range(name: str, positions: object) -> None:
    if not isinstance(positions, range):
        raise TypeError(f"{name} must be of type range, not {type(positions).__name__}")
    if positions.step != 1 or not positions or positions.start < 0:
        raise ValueError(f"{name}: {positions} is no range of indexes without gaps")
