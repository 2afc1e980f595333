"""Explanations as the contract's messages."""

from collections.abc import Sequence
from itertools import chain

from whence.v1 import explanation_pb2 as pb
from whence_server.domain.explanations import ExplainQuestion
from whence_server.explain.scores import RecoveredShares, Scores, Terms
from whence_server.explain.segments import PromptTokenizer, Segment
from whence_server.explain.target import Target
from whence_server.explain.trust import VERSION, Trust


class TargetTexts:
    """Texts of a target's tokens.

    Args:
        tokenizer: tokenizer of the model.
        target: the target.
    """

    def __init__(self, tokenizer: PromptTokenizer, target: Target) -> None:
        pieces = tokenizer.split_prompt(target.ids)
        self._texts = [piece.text for piece in pieces]
        self.against = "".join(piece.text for piece in tokenizer.split_prompt(target.against))

    def read(self, begin: int, end: int) -> str:
        """Return the text of the tokens at the positions [begin, end)."""
        return "".join(self._texts[begin:end])


def make_explanation(
    question: ExplainQuestion,
    target: Target,
    segments: Sequence[Segment],
    texts: TargetTexts,
    scores: Scores,
) -> pb.Explanation:
    """Return scores as a message, without method, trust and time."""
    made = pb.Explanation(
        parameters=dict(scores.parameters),
        span=_make_span(question, target, texts, scores.value),
        segments=[
            pb.ContextSegment(begin=begin, end=end, text=texts.read(begin, end))
            for begin, end in segments
        ],
        scores=scores.values,
        gap=scores.gap,
        num_passes=scores.num_passes,
    )
    if scores.terms is not None:
        made.decomposition.CopyFrom(make_decomposition(scores.terms))
    if scores.recovered is not None:
        made.patching.CopyFrom(_make_map(scores.recovered))
    return made


def make_trust(trust: Trust) -> pb.ExplanationTrust:
    """Return measured trust as a message."""
    return pb.ExplanationTrust(
        verdict=pb.TrustVerdict.Value(f"TRUST_VERDICT_{trust.verdict.name}"),
        correlation=trust.correlation.value,
        correlation_low=trust.correlation.low,
        correlation_high=trust.correlation.high,
        num_ablations=trust.num_ablations,
        operator=pb.AblationOperator.Value(f"ABLATION_OPERATOR_{trust.operator.name}"),
        deletion_values=trust.deletion,
        deletion_shares=trust.deleted_shares,
        random_deletion_values=trust.random_deletion,
        version=VERSION,
    )


def _make_span(
    question: ExplainQuestion, target: Target, texts: TargetTexts, value: float
) -> pb.ExplainedSpan:
    begin = target.start - target.num_prompt
    return pb.ExplainedSpan(
        sequence_index=question.sequence_index,
        begin_step=begin,
        end_step=begin + len(target.span),
        token_ids=target.span,
        text=texts.read(target.start, len(target.ids)),
        against_token_ids=target.against,
        against_text=texts.against,
        value=value,
        num_prompt_tokens=target.num_prompt,
    )


def make_decomposition(terms: Terms) -> pb.ValueDecomposition:
    """Return the terms of a logit as a message."""
    return pb.ValueDecomposition(
        embedding=terms.embedding,
        num_layers=len(terms.mlps),
        num_heads=len(terms.heads[0]) if terms.heads else 0,
        heads=chain.from_iterable(terms.heads),
        attention_rests=terms.attention_rests,
        mlps=terms.mlps,
        norm_bias=terms.norm_bias,
        head_bias=terms.head_bias,
        residual=terms.residual,
    )


def _make_map(recovered: RecoveredShares) -> pb.PatchingMap:
    return pb.PatchingMap(
        num_layers=len(recovered.shares),
        positions=recovered.positions,
        shares=chain.from_iterable(recovered.shares),
        corrupted_value=recovered.corrupted_value,
    )
