"""Results of verifications that need no computation."""

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Unverifiable


def make_refusal(reason: Unverifiable, message: str) -> bytes:
    """Return the serialised response for a generation of which nothing can be said."""
    result = pb.VerificationResult(
        verdict=pb.VERDICT_NOT_VERIFIABLE, reason=reason.value, message=message
    )
    return pb.VerifyGenerationResponse(result=result).SerializeToString()


def refuse_long_verification(longest_s: float) -> bytes:
    """Return the serialised response for a generation that takes too long to verify."""
    what = f"it would take more than {longest_s:.0f} s: use verify-generation"
    return make_refusal(Unverifiable.TOO_LONG, what)
