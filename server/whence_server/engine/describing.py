"""What the front needs to know of a loaded model, read off the transformers objects."""

import importlib.metadata
from collections.abc import Collection, Sequence
from typing import Any

import torch
import transformers

from whence_server.domain.model import (
    Environment,
    FileDigest,
    InternalsInfo,
    ModelInfo,
    TextFiles,
)
from whence_server.engine.context import max_context_length
from whence_server.engine.digests import model_signing_digest
from whence_server.engine.generation_config import read_defaults
from whence_server.engine.internals.attention import original_implementation
from whence_server.engine.tokenizer_check import cleans_up_spaces, fill_token


def describe(
    name: str,
    model: Any,
    text: TextFiles,
    *,
    files: Sequence[FileDigest],
    tokenizer_files: Collection[str],
    loaded_files: Collection[str],
    weights_digest: str,
    batched: bool,
    internals: InternalsInfo,
    directory: str,
) -> ModelInfo:
    """Puts together what is said of a model."""
    config = model.config.get_text_config(decoder=True)
    vocabulary_size = _vocabulary_size(model, config)
    return ModelInfo(
        name=name,
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_layers=config.num_hidden_layers,
        vocabulary_size=vocabulary_size,
        max_context_length=max_context_length(config),
        model_digest=model_signing_digest(files),
        tokenizer_digest=model_signing_digest(
            [file for file in files if file.path in tokenizer_files]
        ),
        weights_digest=weights_digest,
        files=tuple(files),
        loaded_files=tuple(loaded_files),
        batched=batched,
        environment=_environment(model),
        defaults=read_defaults(model.generation_config, vocabulary_size, directory),
        text=text,
        internals=internals,
        directory=directory,
    )


def text_files(tokenizer: Any) -> TextFiles:
    """The fast tokenizer as text, for a process without transformers."""
    return TextFiles(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        chat_template=tokenizer.chat_template,
        special_tokens={
            name: str(token)
            for name, token in tokenizer.special_tokens_map.items()
            if not isinstance(token, list | tuple)
        },
        split_special_tokens=bool(tokenizer.split_special_tokens),
        cleans_up_spaces=cleans_up_spaces(tokenizer),
        fill_token=fill_token(tokenizer),
    )


def _vocabulary_size(model: Any, config: Any) -> int:
    head = model.get_output_embeddings()
    return config.vocab_size if head is None else head.weight.shape[0]


def _environment(model: Any) -> Environment:
    return Environment(
        whence_version=importlib.metadata.version("whence"),
        torch_version=str(torch.__version__),
        transformers_version=transformers.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        num_threads=torch.get_num_threads(),
        attention_implementation=original_implementation(model),
    )
