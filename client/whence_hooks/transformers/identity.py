"""Description of a model and its tokenizer, with the digests that identify them."""

import hashlib
import importlib.metadata
import logging
import threading
from pathlib import Path
from typing import Any

import torch
import transformers

from whence.v1.generation_pb2 import Environment
from whence.v1.record_pb2 import RecordedModel
from whence_hooks.connection import SentModel
from whence_hooks.recorder import Recorder
from whence_hooks.transformers.refusals import NotRecordableError
from whence_hooks.weights import digest_weights

_log = logging.getLogger("whence_hooks")

_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


class IdentifiedModel:
    """A model of the service, which is described again when its weights have changed.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        name: name in the record.
        digests_weights: True if the record has the digest of the weights.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, digests_weights: bool) -> None:
        self._model = model
        self._name = name or _find_name(model)
        self._digests_weights = digests_weights
        self._tokenizer = serialise_tokenizer(tokenizer)
        self._cleans_up = _cleans_up_spaces(tokenizer)
        self._lock = threading.Lock()
        self._numbers: dict[int, int] = {}
        self.vocabulary_size = _read_vocabulary_size(model)

    def read_version(self) -> int:
        """Return a number that changes when tensors are replaced or written to."""
        return hash(
            tuple(
                # torch counts the writes to a tensor, except to those made in inference mode.
                (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)  # noqa: SLF001
                for tensor in self._model.parameters()
            )
        )

    def find_number(self, recorder: Recorder, version: int) -> int:
        """Return the recorder's number of the model with these weights; add it if it is new.

        The digest of the weights is computed here, in the recorder's thread.
        """
        with self._lock:
            if version not in self._numbers:
                sent = SentModel(self._describe(version), self._tokenizer)
                self._numbers[version] = recorder.add_model(sent)
            return self._numbers[version]

    def _describe(self, version: int) -> RecordedModel:
        model = self._model
        config = model.config.get_text_config(decoder=True)
        lengths = (getattr(config, field, None) for field in _LENGTH_FIELDS)
        return RecordedModel(
            name=self._name,
            architecture=type(model).__name__,
            num_parameters=model.num_parameters(),
            num_layers=getattr(config, "num_hidden_layers", 0),
            vocabulary_size=self.vocabulary_size,
            max_context_length=next((n for n in lengths if isinstance(n, int) and n > 0), 0),
            environment=Environment(
                whence_version=importlib.metadata.version("whence"),
                torch_version=str(torch.__version__),
                transformers_version=transformers.__version__,
                dtype=str(model.dtype).removeprefix("torch."),
                device=str(model.device),
                num_threads=torch.get_num_threads(),
                attention_implementation=getattr(config, "_attn_implementation", None) or "",
                weights_digest=self._digest(version) if self._digests_weights else "",
            ),
            tokenizer_sha256=hashlib.sha256(self._tokenizer).hexdigest(),
            tokenizer_bytes=len(self._tokenizer),
            cleans_up_spaces=self._cleans_up,
        )

    def _digest(self, version: int) -> str:
        """Return the digest of the weights; "" if they are no longer those of the version."""
        try:
            digest = digest_weights(self._model.state_dict())
            return digest if self.read_version() == version else ""
        except Exception:  # noqa: BLE001 - quantized tensors of other libraries fail in their own ways
            _log.warning(
                "the weights of %s have no digest on record, as their tensors cannot be read",
                self._name,
                exc_info=True,
            )
            return ""


def serialise_tokenizer(tokenizer: Any) -> bytes:
    """Return the tokenizer's serialised form, from which the server makes the texts.

    Raises:
        NotRecordableError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotRecordableError(
            f"the tokenizer is a {type(tokenizer).__name__}, which has no tokenizer.json: load it "
            "with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    text: str = backend.to_str()
    return text.encode()


def _cleans_up_spaces(tokenizer: Any) -> bool:
    """Return whether `decode` removes spaces before punctuation; for BPE it takes a second flag."""
    return bool(
        getattr(tokenizer, "clean_up_tokenization_spaces", False)
        and (
            type(tokenizer.backend_tokenizer.model).__name__ != "BPE"
            or getattr(
                tokenizer,
                "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
                False,
            )
        )
    )


def _find_name(model: Any) -> str:
    """Return the name that the model was loaded by: a hub's id, or a folder's name."""
    path = str(getattr(model.config, "_name_or_path", "") or "")
    if path and Path(path).is_dir():
        return Path(path).resolve().name
    return path or type(model).__name__


def _read_vocabulary_size(model: Any) -> int:
    head = model.get_output_embeddings()
    size: int = (
        model.config.get_text_config(decoder=True).vocab_size
        if head is None
        else head.weight.shape[0]
    )
    return size
