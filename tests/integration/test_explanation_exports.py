"""Explanations handed to InterpretML, Captum and Inseq, which `make test-explainers` installs."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from whence.explanation_exports import to_captum, to_inseq, to_interpret
from whence.v1 import explanation_pb2

SCORES = [0.5, -0.25, 2.0]
TEXTS = ["The capital", " of", " France is"]


def make_explanation() -> explanation_pb2.Explanation:
    return explanation_pb2.Explanation(
        method=explanation_pb2.EXPLAIN_METHOD_GRADIENT,
        span=explanation_pb2.ExplainedSpan(text=" Paris", token_ids=[7042], value=-0.2),
        segments=[
            explanation_pb2.ContextSegment(begin=i, end=i + 1, text=text)
            for i, text in enumerate(TEXTS)
        ],
        scores=SCORES,
        parameters={"outside_segments": "0.1"},
    )


def needs(package: str) -> Any:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: `make test-explainers`",
    )


@needs("interpret")
def test_interpretml_draws_a_bar_for_each_segment() -> None:
    shown = to_interpret(make_explanation())
    assert shown.name == " Paris"
    figure = shown.visualize(0)
    bars = figure.data[0]
    assert sorted(zip(bars.y, bars.x, strict=True)) == sorted(zip(TEXTS, SCORES, strict=True))


@needs("captum")
def test_captum_has_the_scores_by_segment() -> None:
    result = to_captum(make_explanation())
    assert result.seq_attr_dict == dict(zip(TEXTS, SCORES, strict=True))
    assert result.token_attr.tolist() == [SCORES]
    assert result.output_tokens == [" Paris"]


@needs("inseq")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_inseq_keeps_the_scores_in_a_file(tmp_path: Path) -> None:
    from inseq.data.attribution import FeatureAttributionOutput

    output = to_inseq(make_explanation())
    path = tmp_path / "attributions.json"
    output.save(path)
    loaded = FeatureAttributionOutput.load(path)
    (sequence,) = loaded.sequence_attributions
    assert [token.token for token in sequence.target] == [*TEXTS, " Paris"]
    assert sequence.target_attributions[:-1, 0].tolist() == pytest.approx(SCORES)
    assert loaded.info["attribution_method"] == "gradient"


def test_without_text_segments_are_named_by_position() -> None:
    from whence.explanation_exports import _name_segments

    explanation = make_explanation()
    for segment in explanation.segments:
        segment.text = ""
    assert _name_segments(explanation) == ["[0:1]", "[1:2]", "[2:3]"]


@pytest.mark.parametrize("export", [to_interpret, to_captum, to_inseq])
def test_an_explanation_without_scores_is_refused(export: Any) -> None:
    explanation = make_explanation()
    del explanation.scores[:]
    with pytest.raises(ValueError, match="GRADIENT has no scores of segments"):
        export(explanation)
