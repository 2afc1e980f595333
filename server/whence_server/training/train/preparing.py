"""Preparation of a training from its settings: texts in blocks, tokenizer and model."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from whence.v1.training_pb2 import TrainingRunStarted
from whence_server.config.environment import copy_environment
from whence_server.config.training import TrainConfig, refuse_variables
from whence_server.domain.errors import LineageError
from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.texts import read_texts
from whence_server.training.recording.setup import compute_tokenizer_digest
from whence_server.training.train import resuming
from whence_server.training.train.blocks import BlockDataset, cut_into_blocks
from whence_server.training.train.models import create_initial_model
from whence_server.training.train.tokenizer import load_block_tokenizer, train_tokenizer

_log = logging.getLogger(__name__)


class TrainerInputs(NamedTuple):
    """Inputs of a trainer."""

    model: Any
    tokenizer: Any
    training_set: BlockDataset
    evaluation_set: BlockDataset | None


def prepare(
    settings: TrainConfig, recorded: TrainingRun | None, checkpoint: Path | None
) -> TrainerInputs:
    """Read the texts, and create or load tokenizer and model.

    Args:
        settings: settings of the training; seed and threads are applied.
        recorded: the run to resume, which has an attempt; None begins a new run.
        checkpoint: the checkpoint to resume from; None for the run's beginning.

    Raises:
        ConfigurationError: a setting, a text or an environment variable is invalid.
        LineageError: a text, the tokenizer or the initial weights differ from the record.
    """
    refuse_variables(copy_environment())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.resume and recorded is not None:
        _warn_of_other_threads(recorded)
    reading = read_texts([Path(text) for text in settings.texts], settings.unusable)
    for line in reading.skipped:
        _log.warning("left out: %s", line)
    if recorded is not None:
        resuming.require_same_documents(recorded, reading.documents)
    existing = checkpoint or settings.from_model or settings.tokenizer
    tokenizer = (
        load_block_tokenizer(Path(existing))
        if existing
        else train_tokenizer(reading.documents, settings.vocab_size)
    )
    training_set = cut_into_blocks(reading.documents, tokenizer, settings.block_size)
    evaluation_set = None
    if settings.eval:
        texts = read_texts([Path(text) for text in settings.eval], settings.unusable)
        evaluation_set = cut_into_blocks(texts.documents, tokenizer, settings.block_size)
    set_seed(settings.seed)
    model = create_initial_model(settings, tokenizer)
    if recorded is not None and checkpoint is None:
        _require_same_beginning(settings, recorded.started, tokenizer, model)
    return TrainerInputs(model, tokenizer, training_set, evaluation_set)


def _warn_of_other_threads(recorded: TrainingRun) -> None:
    before = recorded.attempts[-1].determinism.get("num_threads", "")
    if before not in {"", str(torch.get_num_threads())}:
        _log.warning(
            "resumed with %d torch threads instead of %s: the weights may differ in their last "
            "bits from those of an uninterrupted run",
            torch.get_num_threads(),
            before,
        )


def _require_same_beginning(
    settings: TrainConfig, recorded: TrainingRunStarted, tokenizer: Any, model: Any
) -> None:
    """Refuse to begin a run again with a different tokenizer or different initial weights."""
    found = compute_tokenizer_digest(tokenizer)
    if recorded.tokenizer_digest and found != recorded.tokenizer_digest:
        where = settings.from_model or settings.tokenizer or "the one that is trained on the texts"
        raise LineageError(
            f"the tokenizer has changed since the run began: {where} has the digest {found}, and "
            f"{recorded.tokenizer_digest} is on record"
        )
    found = digest_weights(model.state_dict())
    if recorded.initial_weights_digest and found != recorded.initial_weights_digest:
        where = settings.from_model or f"what seed {settings.seed} gives"
        raise LineageError(
            f"the run's initial weights cannot be reproduced: {where} has the digest "
            f"{found}, and {recorded.initial_weights_digest} is on record"
        )
