"""Methods of the streams that are followed, by the type of their request."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from whence.v1.explain_pb2 import ExplainRequest
from whence.v1.explain_pb2_grpc import ExplainServiceStub
from whence.v1.generation_pb2 import (
    ForkGenerationRequest,
    GenerateRequest,
    ResumeGenerationRequest,
)
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.model_pb2 import GetVocabularyRequest
from whence.v1.model_pb2_grpc import ModelServiceStub
from whence.v1.proof_pb2 import ExportBundleRequest
from whence.v1.proof_pb2_grpc import ProofServiceStub
from whence.v1.trace_pb2 import WatchGenerationsRequest
from whence.v1.trace_pb2_grpc import TraceServiceStub
from whence.v1.training_pb2 import (
    ReadDocumentRequest,
    TraceEmergenceRequest,
    WatchTrainingRunRequest,
)
from whence.v1.training_pb2_grpc import TrainingServiceStub
from whence.v1.verification_pb2 import VerifyGenerationRequest
from whence.v1.verification_pb2_grpc import VerificationServiceStub


def make_stream_methods(followed: Any, others: Any) -> dict[type[Message], Callable[..., Any]]:
    """Return the methods of two channels, of the synchronous or the asyncio API.

    Args:
        followed: channel of streams that last as long as what they tell of.
        others: channel of all other calls.
    """
    generation, training = GenerationServiceStub(followed), TrainingServiceStub(followed)
    return {
        GenerateRequest: generation.Generate,
        ForkGenerationRequest: generation.ForkGeneration,
        ResumeGenerationRequest: generation.ResumeGeneration,
        WatchGenerationsRequest: TraceServiceStub(followed).WatchGenerations,
        WatchTrainingRunRequest: training.WatchTrainingRun,
        ReadDocumentRequest: training.ReadDocument,
        TraceEmergenceRequest: training.TraceEmergence,
        ExportBundleRequest: ProofServiceStub(others).ExportBundle,
        ExplainRequest: ExplainServiceStub(followed).Explain,
        VerifyGenerationRequest: VerificationServiceStub(followed).VerifyGeneration,
        GetVocabularyRequest: ModelServiceStub(others).GetVocabulary,
    }
