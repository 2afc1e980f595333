"""Lines in words about the verification of a generation."""

from collections.abc import Iterable, Iterator

from whence.summary.numbers import count
from whence.summary.quoting import escape
from whence.v1 import verification_pb2 as pb

_OUTCOMES = {
    pb.VERIFICATION_OUTCOME_SAME: "as recorded",
    pb.VERIFICATION_OUTCOME_DIFFERENT: "DIFFERENT",
    pb.VERIFICATION_OUTCOME_NOT_CHECKED: "not checked",
}
_VERDICTS = {
    pb.STEP_VERDICT_EXACT: "exact",
    pb.STEP_VERDICT_WITHIN_MARGIN: "within margin",
    pb.STEP_VERDICT_DIVERGENT: "DIVERGENT",
}
VERDICTS = {
    pb.VERDICT_VERIFIED: "verified",
    pb.VERDICT_VERIFIED_WITHIN_MARGIN: "verified within margin",
    pb.VERDICT_DIVERGENT: "divergent",
    pb.VERDICT_NOT_VERIFIABLE: "not verifiable",
}
"""Words for verdicts."""
_SHOWN_DIGEST = 16


def describe_event(event: pb.VerifyGenerationResponse) -> Iterator[str]:
    """Yield the lines about one finding, or about the result."""
    match event.WhichOneof("event"):
        case "check":
            yield _describe_check(event.check)
        case "noise":
            noise = event.noise
            yield (
                f"{'noise':<20}{noise.largest:.2e} nats at most over {noise.num_logprobs:,} "
                f"logprobs, margin {noise.margin:.2e} ({escape(noise.conditions)})"
            )
        case "step":
            step = event.step
            where = f"step {step.sequence_index}.{step.index}"
            yield from _describe_compared(where, step.verdict, step.differences)
        case "beam_round":
            compared = event.beam_round
            yield from _describe_compared(
                f"round {compared.index}", compared.verdict, compared.differences
            )
        case "result":
            yield from _describe_result(event.result)


def _describe_check(check: pb.VerificationCheck) -> str:
    name = pb.VerificationSubject.Name(check.subject).removeprefix("VERIFICATION_SUBJECT_")
    told = f"{name.lower().replace('_', ' '):<20}{_OUTCOMES.get(check.outcome, '?')}"
    if check.outcome == pb.VERIFICATION_OUTCOME_DIFFERENT and check.recorded != check.found:
        told += f": {_shorten(check.recorded)} on record, {_shorten(check.found)} here"
    if check.message:
        told += f": {escape(check.message)}"
    return told


def _describe_compared(
    where: str, verdict: pb.StepVerdict.ValueType, differences: Iterable[pb.StepDifference]
) -> Iterator[str]:
    yield f"{where:<20}{_VERDICTS.get(verdict, '?')}"
    for difference in differences:
        part = pb.StepPart.Name(difference.part).removeprefix("STEP_PART_").lower()
        nats = f" ({difference.nats:.3g} nats)" if difference.nats else ""
        yield f"{'':<20}{part.replace('_', ' ')}: {escape(difference.message)}{nats}"


def _describe_result(result: pb.VerificationResult) -> Iterator[str]:
    yield f"{'verdict':<20}{VERDICTS.get(result.verdict, '?')}"
    if result.verdict == pb.VERDICT_NOT_VERIFIABLE:
        yield f"{'':<20}{escape(result.message)} ({escape(result.reason)})"
        return
    if result.basis == pb.VERIFICATION_BASIS_LOGPROBS:
        yield (
            f"{'':<20}of the logprobs alone: the text was given, or another program drew the "
            "tokens, and its draws cannot be computed here"
        )
    if result.num_given_steps:
        yield (
            f"{'':<20}the first {count(result.num_given_steps, 'token')} of each sequence were "
            "given: the record says so, and nothing shows that a model chose them"
        )
    if result.message:
        yield f"{'':<20}{escape(result.message)}"
    if result.HasField("first_divergent"):
        first = result.first_divergent
        yield f"{'':<20}first at step {first.index} of sequence {first.sequence_index}"
    if result.HasField("first_divergent_round"):
        yield f"{'':<20}first in round {result.first_divergent_round.index}"
    num_exact = result.num_steps - result.num_within_margin - result.num_divergent
    yield (
        f"{'':<20}{count(result.num_steps, 'step')}: {num_exact} exact, "
        f"{result.num_within_margin} within the margin, {result.num_divergent} divergent; "
        f"{result.num_logprobs:,} logprobs differ by "
        f"{result.largest_logprob_difference:.2e} nats at most"
    )
    yield f"{'':<20}computed in {result.elapsed.ToMilliseconds() / 1000:.2f} s"


def _shorten(value: str) -> str:
    return escape(value if len(value) <= _SHOWN_DIGEST else f"{value[:_SHOWN_DIGEST]}...")
