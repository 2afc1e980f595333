"""Conversion of keyword arguments to requests about training runs.

Only values that protobuf cannot represent are refused here; the server checks everything else.
"""

from typing import Any

from whence.arguments import name_errors, require_text
from whence.errors import InvalidRequestError
from whence.v1 import training_pb2 as pb


def make_steps_request(
    training_run_id: str,
    *,
    first_step: int,
    last_step: int,
    stride: int,
    include_superseded: bool,
    omit_examples: bool,
    page_size: int,
) -> pb.ListTrainingStepsRequest:
    """Return the request of `steps`.

    Raises:
        ValueError: a number that the wire cannot carry.
    """
    request = pb.ListTrainingStepsRequest(
        training_run_id=require_text("training_run_id", training_run_id),
        include_superseded=include_superseded,
        omit_examples=omit_examples,
    )
    for name, value in (
        ("first_step", first_step),
        ("last_step", last_step),
        ("stride", stride),
        ("page_size", page_size),
    ):
        with name_errors(name):
            setattr(request, name, value)
    return request


def watch_request(training_run_id: str, after_position: int | None) -> pb.WatchTrainingRunRequest:
    """Return the request of `watch`.

    Raises:
        ValueError: a number that the wire cannot carry.
    """
    request = pb.WatchTrainingRunRequest(
        training_run_id=require_text("training_run_id", training_run_id)
    )
    if after_position is not None:
        with name_errors("after_position"):
            request.after_position = after_position
    return request


def make_document_request(
    training_run_id: str,
    *,
    index: int | None,
    sha256: str | None,
    example_id: int | None,
    omit_text: bool,
) -> pb.GetDocumentRequest:
    """Return the request of `document`.

    Raises:
        TypeError: not exactly one document was named.
        ValueError: a number that the wire cannot carry.
    """
    _require_one(index=index, sha256=sha256, example_id=example_id)
    request = pb.GetDocumentRequest(
        training_run_id=require_text("training_run_id", training_run_id), omit_text=omit_text
    )
    if sha256 is not None:
        request.sha256 = require_text("sha256", sha256)
    elif index is not None:
        with name_errors("index"):
            request.index = index
    elif example_id is not None:
        with name_errors("example_id"):
            request.example_id = example_id
    return request


def read_document_request(
    training_run_id: str,
    *,
    index: int | None,
    sha256: str | None,
    example_id: int | None,
    begin_byte: int,
    end_byte: int,
) -> pb.ReadDocumentRequest:
    """Return the request of `read_document`.

    Raises:
        TypeError: not exactly one document was named.
        ValueError: a number that the wire cannot carry.
    """
    named = make_document_request(
        training_run_id, index=index, sha256=sha256, example_id=example_id, omit_text=True
    )
    request = pb.ReadDocumentRequest(training_run_id=named.training_run_id)
    kind: Any = named.WhichOneof("document")
    setattr(request, kind, getattr(named, kind))
    for name, value in (("begin_byte", begin_byte), ("end_byte", end_byte)):
        with name_errors(name):
            setattr(request, name, value)
    return request


def is_too_large(error: InvalidRequestError) -> bool:
    """Return whether a document was refused because its text is too large for one message."""
    return any(violation.field == "omit_text" for violation in error.violations)


def make_inclusion_proof_request(
    training_run_id: str, *, index: int | None, sha256: str | None
) -> pb.GetInclusionProofRequest:
    """Return the request of `inclusion_proof`.

    Raises:
        TypeError: not exactly one document was named.
        ValueError: a number that the wire cannot carry.
    """
    _require_one(index=index, sha256=sha256)
    request = pb.GetInclusionProofRequest(
        training_run_id=require_text("training_run_id", training_run_id)
    )
    if sha256 is not None:
        request.sha256 = require_text("sha256", sha256)
    elif index is not None:
        with name_errors("index"):
            request.index = index
    return request


def make_emergence_request(
    training_run_id: str, prompt: str, continuation: str, *, omit_groups: bool
) -> pb.TraceEmergenceRequest:
    """Return the request of `trace_emergence`.

    Raises:
        ValueError: text that the wire cannot carry.
    """
    return pb.TraceEmergenceRequest(
        training_run_id=require_text("training_run_id", training_run_id),
        prompt=require_text("prompt", prompt),
        continuation=require_text("continuation", continuation),
        omit_groups=omit_groups,
    )


def _require_one(**named: object) -> None:
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(f"`{name}`" for name in named)
        raise TypeError(f"give exactly one of {names} to name a document; {len(given)} were given")
