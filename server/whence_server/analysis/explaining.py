"""Explanations in the analysis process: weights that the record names, then the job."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from whence.v1 import explain_pb2
from whence_server.analysis.replay.models import HeldModel, Models
from whence_server.domain.errors import ConfigurationError, ExplanationRefusedError
from whence_server.domain.explanations import ExplainQuestion, WantedWeights
from whence_server.domain.model import ModelInfo
from whence_server.explain.job import find_method, run_job

ALL_CORES_S = 5.0
"""Time for which a computation has all cores, if nothing else needed them when it began."""


def explain(models: Models, question: ExplainQuestion, send: Callable[[bytes], None]) -> None:
    """Answer a question; the last message has the result.

    Args:
        models: holder of the model.
        question: the question.
        send: takes each serialised ExplainResponse.

    Raises:
        ExplanationRefusedError: the weights that the record names are not here.
        WhenceError: the errors of `explain.job.run_job`.
    """
    # Before the weights are read, which takes seconds.
    find_method(question)
    wanted = question.weights
    environment = {"dtype": wanted.dtype} if wanted is not None else {}
    if not models.has_model(environment):
        loading = explain_pb2.ExplainProgress(phase=explain_pb2.EXPLAIN_PHASE_LOADING)
        send(explain_pb2.ExplainResponse(progress=loading).SerializeToString())
    try:
        held = models.get_model(environment)
    except ConfigurationError as error:
        raise ExplanationRefusedError(
            "NO_WEIGHTS", f"the weights cannot be loaded: {error.message}"
        ) from error
    model = find_model(wanted, held)
    with _use_cores(whole=question.uses_all_cores) as give_back:

        def tell(response: explain_pb2.ExplainResponse) -> None:
            give_back()
            send(response.SerializeToString())

        run_job(question, model, held.loaded.info, held.tokenizer, tell)


@contextmanager
def _use_cores(*, whole: bool) -> Iterator[Callable[[], None]]:
    """Compute with every core for a while, if nothing needs them; the process has half of them.

    Generations may begin while a long job runs, and nobody tells this process.

    Yields:
        A function to call between passes: it gives the cores back when the time is over.
    """
    before = torch.get_num_threads()
    end_s = time.monotonic() + ALL_CORES_S

    def give_back() -> None:
        if time.monotonic() >= end_s and torch.get_num_threads() != before:
            torch.set_num_threads(before)

    if whole:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield give_back
    finally:
        torch.set_num_threads(before)


def find_model(wanted: WantedWeights | None, held: HeldModel) -> Any:
    """Return the model that a record names, with its adapter; the model here without a record.

    Raises:
        ExplanationRefusedError: the weights or the adapter here are others.
    """
    if wanted is None:
        return held.loaded.model
    check_weights(wanted, held.loaded.info)
    if not wanted.adapter:
        return held.loaded.model
    for adapted in held.loaded.adapted:
        if adapted.info.weights_digest == wanted.adapter_digest:
            return adapted.model
    raise ExplanationRefusedError(
        "OTHER_ADAPTER",
        f"the record names the adapter {wanted.adapter!r} with the digest "
        f"{wanted.adapter_digest}, which is not here: serve it with --adapter",
        adapter_weights_digest=wanted.adapter_digest,
    )


def check_weights(wanted: WantedWeights, info: ModelInfo) -> None:
    """Check that the weights and the tokenizer here are those on record.

    Raises:
        ExplanationRefusedError: they are others; the error names the digest that is wanted.
    """
    found = info.weights_digest if wanted.weights_digest else info.model_digest
    if not wanted.digest:
        raise ExplanationRefusedError(
            "OTHER_WEIGHTS", "the record names no weights: they cannot be compared with those here"
        )
    if wanted.digest == found:
        _check_tokenizer(wanted, info)
        return
    where = "its dtype" if wanted.dtype and wanted.dtype != info.environment.dtype else "--model"
    raise ExplanationRefusedError(
        "OTHER_WEIGHTS",
        f"the record names the weights {wanted.digest}, and those here are {found}: explain it "
        f"with a server that has them ({where})",
        weights_digest=wanted.digest,
        served_weights_digest=found,
    )


def _check_tokenizer(wanted: WantedWeights, info: ModelInfo) -> None:
    """Check that the tokenizer gives the tokens on record the texts that they had.

    Raises:
        ExplanationRefusedError: it is another one.
    """
    if wanted.tokenizer_digest in {"", info.tokenizer_digest}:
        return
    raise ExplanationRefusedError(
        "OTHER_WEIGHTS",
        f"the record names the tokenizer {wanted.tokenizer_digest}, and the one here is "
        f"{info.tokenizer_digest}: segments would be cut and shown otherwise than they were read; "
        "explain it with a server whose --model has that tokenizer",
        tokenizer_digest=wanted.tokenizer_digest,
        served_tokenizer_digest=info.tokenizer_digest,
    )
