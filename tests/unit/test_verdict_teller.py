"""Words of the audit about a verification: what diverged first, and no content."""

import pytest

from whence.v1 import verification_pb2 as pb
from whence.v1.generation_pb2 import Fork, GenerationStarted
from whence_server.rpc.verification_record import list_contradictions
from whence_server.rpc.verification_servicer import VerdictTeller

DIFFERENT = pb.VERIFICATION_OUTCOME_DIFFERENT


def tell(result: pb.VerificationResult, *checks: pb.VerificationCheck) -> str:
    teller = VerdictTeller()
    for check in checks:
        assert teller.describe(pb.VerifyGenerationResponse(check=check).SerializeToString()) == ""
    return teller.describe(pb.VerifyGenerationResponse(result=result).SerializeToString())


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (pb.VerificationResult(verdict=pb.VERDICT_VERIFIED), "verified"),
        (
            pb.VerificationResult(verdict=pb.VERDICT_VERIFIED, num_given_steps=3),
            "verified, 3 tokens given",
        ),
        (
            pb.VerificationResult(
                verdict=pb.VERDICT_VERIFIED,
                num_given_steps=3,
                basis=pb.VERIFICATION_BASIS_LOGPROBS,
            ),
            "verified, logprobs alone",
        ),
        (
            pb.VerificationResult(
                verdict=pb.VERDICT_DIVERGENT,
                first_divergent=pb.StepVerification(sequence_index=1, index=4),
            ),
            "divergent: step 1.4 first",
        ),
        (
            pb.VerificationResult(
                verdict=pb.VERDICT_DIVERGENT,
                first_divergent_round=pb.BeamRoundVerification(index=7),
            ),
            "divergent: round 7 first",
        ),
    ],
)
def test_verdict_is_told_with_what_it_rests_on(result: pb.VerificationResult, words: str) -> None:
    assert tell(result) == words


def test_first_fault_is_named_without_its_content() -> None:
    checks = [
        pb.VerificationCheck(subject=pb.VERIFICATION_SUBJECT_ENVIRONMENT, outcome=DIFFERENT),
        pb.VerificationCheck(
            subject=pb.VERIFICATION_SUBJECT_END, outcome=DIFFERENT, message="a secret"
        ),
        pb.VerificationCheck(subject=pb.VERIFICATION_SUBJECT_TEXT, outcome=DIFFERENT),
    ]
    result = pb.VerificationResult(verdict=pb.VERDICT_DIVERGENT, message="a secret")
    assert tell(result, *checks) == "divergent: end"


def test_branch_that_no_engine_makes_contradicts_itself() -> None:
    started = GenerationStarted(fork=Fork(step=2, num_forced_steps=3))
    started.effective_decoding.sample.SetInParent()
    started.effective_decoding.max_new_tokens = 3
    assert not list(list_contradictions(started))
    started.fork.step = 4
    assert list(list_contradictions(started)) == [
        "the branch begins at step 4, and 3 steps were given"
    ]
    started.fork.num_forced_steps = 2**32 - 1
    assert "max_new_tokens is 3" in "".join(list_contradictions(started))
    started.effective_decoding.beam_search.num_beams = 2
    assert any("a beam search has no given" in it for it in list_contradictions(started))
