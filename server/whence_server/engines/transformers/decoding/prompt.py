"""Decisions for a prompt's own tokens."""

import math
from typing import Any

import torch

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Candidates, Decision, RequestedLogprobs
from whence_server.engines.transformers.decoding import statistics
from whence_server.engines.transformers.decoding.decisions import NonFiniteLogits
from whence_server.engines.transformers.decoding.kernels import Kernels

MAX_TEMPORARY_BYTES = 16 * 2**20
_NUM_TEMPORARIES = 4
"""Number of float32 temporaries on a GPU: scores, logprobs, probabilities and their product."""


def score_prompt(
    logits: torch.Tensor, next_token_ids: torch.Tensor, trace: TraceOptions, kernels: Kernels
) -> list[Decision]:
    """See `Chooser.score_prompt`; works in slices, so that memory does not grow with the prompt."""
    num_rows = max(1, MAX_TEMPORARY_BYTES // (4 * _NUM_TEMPORARIES * logits.shape[1]))
    decisions: list[Decision] = []
    for begin in range(0, len(logits), num_rows):
        end = begin + num_rows
        scores = logits[begin:end].to(torch.float32)
        decisions += _score(scores, next_token_ids[begin:end], trace, kernels)
    if any(math.isnan(decision.logprob or 0.0) for decision in decisions):
        failure = NonFiniteLogits()
        raise GenerationFailedError(failure.reason, failure.message)
    return decisions


def _score(
    scores: torch.Tensor, token_ids: torch.Tensor, trace: TraceOptions, kernels: Kernels
) -> list[Decision]:
    logprobs = torch.log_softmax(scores, -1)
    measured = [token_ids, statistics.gather_logprobs(logprobs, token_ids)]
    detailed = trace.detail is not TraceDetail.TOKENS
    if detailed:
        measured += [
            statistics.compute_ranks(scores, token_ids, kernels),
            kernels.compute_entropies(logprobs),
        ]
        if trace.num_candidates:
            measured += statistics.find_top_candidates(
                scores, logprobs, trace.num_candidates, kernels
            )
        if trace.logprob_token_ids:
            ids = torch.tensor(trace.logprob_token_ids, device=logprobs.device)
            measured.append(logprobs.index_select(-1, ids))
    columns = [tensor.tolist() for tensor in statistics.copy_to_host(measured)]
    requested = columns.pop() if detailed and trace.logprob_token_ids else None
    decisions = [_make_decision(*values) for values in zip(*columns, strict=True)]
    if requested is None:
        return decisions
    return [
        # Nothing is drawn here: no second list.
        decision._replace(requested_logprobs=RequestedLogprobs(listed, []))
        for decision, listed in zip(decisions, requested, strict=True)
    ]


def _make_decision(
    token_id: int,
    logprob: float,
    rank: int | None = None,
    entropy: float | None = None,
    *candidates: Any,
) -> Decision:
    return Decision(
        token_id,
        logprob,
        rank=rank,
        entropy=entropy,
        # Nothing is drawn, so that there are no sampling logprobs.
        candidates=Candidates(candidates[0], candidates[1], []) if candidates else None,
    )
