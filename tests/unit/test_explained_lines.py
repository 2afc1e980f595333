"""An explanation on a terminal and as a page: the trust first, weights as colours or signs."""

import re

from whence.cli.explained import format_explanation, format_signs
from whence.cli.explained_page import make_explanation_page
from whence.v1 import explanation_pb2 as pb
from whence_server.explain.messages import make_decomposition
from whence_server.explain.scores import Terms

PARTS = ((3, 5, "What is", 0.02), (5, 6, " France", 3.0), (6, 8, "?<b>\x1b[2J", -1.5))


def make(**changes: object) -> pb.Explanation:
    explanation = pb.Explanation(
        method=pb.EXPLAIN_METHOD_LEAVE_ONE_OUT,
        method_version=1,
        parameters={"operator": "remove"},
        span=pb.ExplainedSpan(
            begin_step=5, end_step=6, token_ids=[7042], text=" Paris", value=-0.05
        ),
        segments=[pb.ContextSegment(begin=a, end=b, text=text) for a, b, text, _ in PARTS],
        scores=[score for *_, score in PARTS],
        num_passes=4,
        elapsed_seconds=1.25,
        trust=pb.ExplanationTrust(
            verdict=pb.TRUST_VERDICT_LOW,
            correlation=0.12,
            correlation_low=0.01,
            correlation_high=0.31,
            num_ablations=64,
        ),
    )
    explanation.MergeFrom(pb.Explanation(**changes))  # type: ignore[arg-type]  # its fields
    return explanation


def test_the_trust_comes_first_and_a_low_one_is_said_to_be_low() -> None:
    first, second, third, *_ = format_explanation(make(), color=False)
    assert first.startswith("trust       LOW, correlation 0.12 (0.01 to 0.31) over 64 ablations")
    assert second == 'explained   " Paris" (step 5), p = 95.1%'
    assert third == "method      leave-one-out 1, operator remove, 3 segments, 4 passes, 1.25 s"


def test_an_undetermined_and_a_missing_trust_are_said() -> None:
    undetermined = pb.ExplanationTrust(verdict=pb.TRUST_VERDICT_UNDETERMINED)
    assert "includes 0" in next(format_explanation(make(trust=undetermined), color=False))
    few = make(trust=undetermined)
    few.trust.num_ablations = 0
    assert next(format_explanation(few, color=False)) == (
        "trust       undetermined: too few segments to measure it; ask for smaller ones"
    )
    same = pb.ExplanationTrust(operator=pb.ABLATION_OPERATOR_REMOVE)
    told = "over 64 ablations with the method's own operator: "
    assert told in next(format_explanation(make(trust=same), color=False))
    explanation = make()
    explanation.ClearField("trust")
    assert next(format_explanation(explanation, color=False)) == "trust       not measured"


def test_weights_are_signs_without_colour_and_colours_with_it() -> None:
    plain = "\n".join(format_explanation(make(), color=False))
    assert "What is {+++ France}{-- ?<b>\\x1b[2J}" in plain
    colored = "\n".join(format_explanation(make(), color=True))
    assert re.search("What is\x1b\\[38;5;231;48;5;19m France\x1b\\[39;49m", colored)
    # What the model said is never a terminal's command.
    assert "\x1b[2J" not in colored


def test_signs_grow_with_the_strength() -> None:
    strengths = (0.0, 0.04, 0.1, 0.5, 1.0, -0.1, -0.5, -1.0)
    assert [format_signs(it) for it in strengths] == ["", "", "+", "++", "+++", "-", "--", "---"]


def test_a_contrast_says_how_many_times_as_likely() -> None:
    span = pb.ExplainedSpan(against_token_ids=[9], against_text=" London", value=2.35)
    told = list(format_explanation(make(span=span), color=False))[1]
    assert told == (
        'explained   " Paris" (step 5) rather than " London", +2.300 nats: 9.97 times as likely'
    ).replace("+2.300", "+2.350").replace("9.97", "10.5")


def test_terms_and_maps_are_small_tables() -> None:
    terms = pb.ValueDecomposition(
        num_layers=2, num_heads=2, heads=[0.1, -2.0, 0.3, 0.4], mlps=[1.5, 0.2], embedding=0.5
    )
    lines = list(format_explanation(make(decomposition=terms), color=False))
    assert "        0     -1.900     +1.500  1: -2.000" in lines
    patching = pb.PatchingMap(num_layers=2, positions=[3, 5], shares=[0.1, 0.2, 0.3, 0.9])
    lines = list(format_explanation(make(patching=patching), color=False))
    row = next(line for line in lines if line.startswith("    90.0%"))
    assert row.split() == ["90.0%", "1", "5", '"', 'France"']


def test_the_page_is_text_alone() -> None:
    page = make_explanation_page(make())
    assert "<b>" not in page
    assert "<script" not in page
    assert 'class="for8" title="+3.000"> France</span>' in page
    assert page.index("LOW") < page.index(" France")


def test_layers_without_separate_heads_have_a_line_each() -> None:
    terms = Terms(0.5, (), (-0.5, 0.25, 0.125), (1.5, 0.2, 0.0), 0.0, 0.0, 0.0)
    made = make_decomposition(terms)
    assert (made.num_layers, made.num_heads) == (3, 0)
    lines = list(format_explanation(make(decomposition=made), color=False))
    assert "        0     -0.500     +1.500" in lines
    assert "        1     +0.250     +0.200" in lines
    assert "        2     +0.125     +0.000" in lines
