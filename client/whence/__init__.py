"""Client of whence: streams a language model's tokens with the provenance of each.

    from whence import Client

    with Client("127.0.0.1:50051") as client:
        with client.generate("The capital of France is", max_new_tokens=32) as generation:
            for token in generation:
                print(token.text, end="")

Names are imported at their first use, so that importing `whence.v1` alone is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whence.aio import AsyncClient, AsyncGeneration
    from whence.client import Client, Generation
    from whence.errors import (
        AlreadyExistsError,
        CallCancelledError,
        Code,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        GenerationFailedError,
        InternalError,
        InvalidRequestError,
        NotFoundError,
        Origin,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        WhenceError,
    )
    from whence.forks import ForkOptions, PromptEdit
    from whence.generation import FinishReason, GeneratedSequence
    from whence.internals import Internals, Layer, Source
    from whence.merkle import verify_inclusion
    from whence.options import ChatMessage, GenerateOptions
    from whence.outputs import ToolCall
    from whence.tokens import Candidate, Draw, ProcessorEffect, Timing, Token
    from whence.vocabulary import Vocabulary

    __version__: str

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGeneration",
    "CallCancelledError",
    "Candidate",
    "ChatMessage",
    "Client",
    "Code",
    "DeadlineExceededError",
    "Draw",
    "FailedPreconditionError",
    "FieldViolation",
    "FinishReason",
    "ForkOptions",
    "GenerateOptions",
    "GeneratedSequence",
    "Generation",
    "GenerationFailedError",
    "InternalError",
    "Internals",
    "InvalidRequestError",
    "Layer",
    "NotFoundError",
    "Origin",
    "PermissionDeniedError",
    "ProcessorEffect",
    "PromptEdit",
    "ResourceExhaustedError",
    "Source",
    "Timing",
    "Token",
    "ToolCall",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Vocabulary",
    "WhenceError",
    "__version__",
    "verify_inclusion",
]

_MODULES = {
    "AsyncClient": "whence.aio",
    "AsyncGeneration": "whence.aio",
    "Candidate": "whence.tokens",
    "ChatMessage": "whence.options",
    "Client": "whence.client",
    "Draw": "whence.tokens",
    "FinishReason": "whence.generation",
    "ForkOptions": "whence.forks",
    "GenerateOptions": "whence.options",
    "GeneratedSequence": "whence.generation",
    "Generation": "whence.client",
    "Internals": "whence.internals",
    "Layer": "whence.internals",
    "ProcessorEffect": "whence.tokens",
    "PromptEdit": "whence.forks",
    "Source": "whence.internals",
    "Timing": "whence.tokens",
    "Token": "whence.tokens",
    "ToolCall": "whence.outputs",
    "Vocabulary": "whence.vocabulary",
    "verify_inclusion": "whence.merkle",
}
"""Module of each public name; names not listed are in `whence.errors`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object
    if name == "__version__":
        from importlib.metadata import version

        value = version("whence")
    else:
        value = getattr(import_module(_MODULES.get(name, "whence.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
