"""Messages of grades and of upstreams."""

from whence.v1 import generation_pb2, model_pb2, observation_pb2, step_pb2
from whence_server.domain.model import ModelInfo
from whence_server.domain.observation import Observation, WeightsOrigin
from whence_server.domain.steps import Timing
from whence_server.domain.upstream import (
    UpstreamCandidates,
    UpstreamDecision,
    UpstreamInfo,
    UpstreamReport,
)


def convert_observation(observation: Observation) -> observation_pb2.Observation:
    """Return the grades as the contract's message."""
    grades = observation_pb2
    return grades.Observation(
        token_ids=grades.TokenIdOrigin.ValueType(observation.token_ids.value),
        distribution=grades.DistributionKind.ValueType(observation.distribution.value),
        second_distribution=grades.SecondDistribution.ValueType(
            observation.second_distribution.value
        ),
        seed=grades.SeedOrigin.ValueType(observation.seed.value),
        draw=grades.DrawOrigin.ValueType(observation.draw.value),
        tables=grades.TableCoverage.ValueType(observation.tables.value),
        weights=convert_weights_origin(observation.weights),
    )


def convert_weights_origin(origin: WeightsOrigin) -> observation_pb2.WeightsOrigin.ValueType:
    """Return the grade of the weights as the contract's number."""
    return observation_pb2.WeightsOrigin.ValueType(origin.value)


def convert_upstream(upstream: UpstreamInfo) -> model_pb2.UpstreamInfo:
    """Return an upstream's description as the contract's message."""
    return model_pb2.UpstreamInfo(
        kind=upstream.kind,
        version=upstream.version,
        url=upstream.url,
        model=upstream.model,
        claimed_files=upstream.claimed_files,
        weights_difference=upstream.weights_difference,
    )


def find_upstream(model: ModelInfo) -> model_pb2.UpstreamInfo | None:
    """Return the message of the upstream that serves a model; None for whence's own engine."""
    return None if model.upstream is None else convert_upstream(model.upstream)


def convert_report(report: UpstreamReport) -> generation_pb2.UpstreamReport:
    """Return an upstream's statements as the contract's message."""
    return generation_pb2.UpstreamReport(
        model=report.model,
        fingerprint=report.fingerprint,
        num_prompt_tokens=report.num_prompt_tokens,
        num_generated_tokens=report.num_generated_tokens,
        num_cached_prompt_tokens=report.num_cached_prompt_tokens,
        seed=report.seed,
        has_drafted_tokens=report.has_drafted_tokens,
        prompt=report.prompt,
        prompt_token_ids=report.prompt_token_ids,
    )


def encode_upstream_step(  # noqa: PLR0917 - the parts of a step, in the contract's order
    sequence_index: int,
    index: int,
    decision: UpstreamDecision,
    text: str,
    text_begin_byte: int,
    text_end_byte: int,
    timing: Timing,
) -> bytes:
    """Return a serialised whence.v1.Step of an upstream's token or piece of text."""
    proto = step_pb2.Step(
        sequence_index=sequence_index,
        index=index,
        token_id=decision.token_id,
        text=text,
        text_begin_byte=text_begin_byte,
        text_end_byte=text_end_byte,
        logprob=decision.logprob,
        sampling_logprob=decision.sampling_logprob,
        rank=decision.rank,
        token_text=decision.token_text,
        num_chunk_tokens=decision.num_chunk_tokens,
        reasoning_text=decision.reasoning_text,
    )
    proto.timing.elapsed_ns = timing.elapsed_ns
    if decision.candidates is not None:
        _fill_candidates(proto.candidates, decision.candidates)
    return proto.SerializeToString()


def _fill_candidates(proto: step_pb2.Candidates, candidates: UpstreamCandidates) -> None:
    proto.SetInParent()
    proto.texts.extend(candidates.texts)
    if candidates.token_ids:
        proto.token_ids.extend(candidates.token_ids)
        proto.logprobs.extend(candidates.logprobs)
        proto.sampling_logprobs.extend(candidates.sampling_logprobs)
    else:
        # Clients from before these fields read the others as parallel to the ids.
        proto.text_logprobs.extend(candidates.logprobs)
        proto.text_sampling_logprobs.extend(candidates.sampling_logprobs)
