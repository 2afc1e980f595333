"""Explanations in the containers of other libraries: InterpretML, Captum and Inseq.

Each function imports its library when it is called; none of them is a dependency. The scores are
those of the explanation's segments, and the span is one output.
"""

from importlib import import_module
from typing import Any

from whence.v1 import explanation_pb2


def to_interpret(explanation: explanation_pb2.Explanation, name: str = "") -> Any:
    """Return an object that InterpretML's `show` displays, as bars of the segments' scores.

    Args:
        explanation: with scores of segments.
        name: title; empty for the span's text.

    Raises:
        ValueError: the explanation has no scores of segments.
        ModuleNotFoundError: `interpret` (or `interpret-core`) is not installed.
    """
    names = _name_segments(explanation)
    from interpret.api.templates import FeatureValueExplanation

    scores = list(explanation.scores)
    shown = {
        "type": "univariate",
        "names": names,
        "scores": scores,
        "values": [""] * len(scores),
        "perf": {
            "is_classification": False,
            "actual": explanation.span.value,
            "predicted": explanation.span.value,
            "actual_score": explanation.span.value,
            "predicted_score": explanation.span.value,
        },
    }
    return FeatureValueExplanation(
        "local",
        {"overall": None, "specific": [shown]},
        feature_names=names,
        feature_types=["nominal"] * len(names),
        name=name or _name_span(explanation),
    )


def to_captum(explanation: explanation_pb2.Explanation) -> Any:
    """Return Captum's `LLMAttributionResult`, with one input for each segment.

    Raises:
        ValueError: the explanation has no scores of segments.
        ModuleNotFoundError: `captum` is not installed.
    """
    names = _name_segments(explanation)
    from captum.attr import LLMAttributionResult

    scores = list(explanation.scores)
    return LLMAttributionResult(
        input_tokens=names,
        output_tokens=[_name_span(explanation)],
        seq_attr=scores,
        token_attr=[scores],
    )


def to_inseq(explanation: explanation_pb2.Explanation) -> Any:
    """Return Inseq's `FeatureAttributionOutput` of a decoder-only model.

    The target is the segments followed by the span, which is the part that is attributed.

    Raises:
        ValueError: the explanation has no scores of segments.
        ModuleNotFoundError: `inseq` is not installed.
    """
    names = _name_segments(explanation)
    torch = import_module("torch")  # Inseq brings it; the client itself does without.
    from inseq.data.attribution import (
        FeatureAttributionOutput,
        FeatureAttributionSequenceOutput,
    )
    from inseq.utils.typing import TokenWithId

    prefix = [TokenWithId(name, -1) for name in names]
    target = [*prefix, TokenWithId(_name_span(explanation), -1)]
    scores = torch.full((len(target), 1), torch.nan, dtype=torch.float64)
    scores[:-1, 0] = torch.tensor(list(explanation.scores), dtype=torch.float64)
    method = explanation_pb2.ExplainMethod.Name(explanation.method)
    return FeatureAttributionOutput(
        [
            FeatureAttributionSequenceOutput(
                source=prefix,
                target=target,
                target_attributions=scores,
                attr_pos_start=len(prefix),
            )
        ],
        info={
            "attribution_method": method.removeprefix("EXPLAIN_METHOD_").lower(),
            "input_texts": ["".join(names)],
            "generated_texts": ["".join(names) + _name_span(explanation)],
            **dict(explanation.parameters),
        },
    )


def _name_segments(explanation: explanation_pb2.Explanation) -> list[str]:
    """Return the text of each segment, or its positions where the record keeps no text.

    Raises:
        ValueError: there are no scores.
    """
    if not explanation.scores or len(explanation.scores) != len(explanation.segments):
        method = explanation_pb2.ExplainMethod.Name(explanation.method)
        raise ValueError(
            f"an explanation by {method} has no scores of segments; decomposition and patching "
            "have terms and shares of their own"
        )
    return [segment.text or f"[{segment.begin}:{segment.end}]" for segment in explanation.segments]


def _name_span(explanation: explanation_pb2.Explanation) -> str:
    return explanation.span.text or " ".join(map(str, explanation.span.token_ids))
