"""Description of a loaded model for the front, from the transformers objects."""

import dataclasses
import importlib.metadata
from collections.abc import Collection, Sequence
from typing import Any

import torch
import transformers

from whence_server.domain.model import (
    AdapterInfo,
    Environment,
    FileDigest,
    InternalsInfo,
    ModelInfo,
    SourceInfo,
    TextFiles,
)
from whence_server.engines.transformers.context import read_max_context_length
from whence_server.engines.transformers.digests import digest_file, digest_model_files
from whence_server.engines.transformers.generation_config import read_defaults
from whence_server.engines.transformers.gguf_file import read_quantization
from whence_server.engines.transformers.internals.attention import get_original_implementation
from whence_server.engines.transformers.quantized_files import read_method
from whence_server.engines.transformers.tokenizer_check import cleans_up_spaces, find_fill_token
from whence_server.engines.transformers.weights import ModelPlaces, list_adapter_files


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
    step_kernels: str,
    internals: InternalsInfo,
    places: ModelPlaces,
    adapter: AdapterInfo | None,
    prefix_cache_tokens: int,
) -> ModelInfo:
    """Return the description of a model."""
    config = model.config.get_text_config(decoder=True)
    vocabulary_size = _read_vocabulary_size(model, config)
    return ModelInfo(
        name=name,
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_layers=config.num_hidden_layers,
        vocabulary_size=vocabulary_size,
        max_context_length=read_max_context_length(config),
        model_digest=digest_model_files(files),
        tokenizer_digest=digest_model_files(
            [file for file in files if file.path in tokenizer_files]
        ),
        weights_digest=weights_digest,
        files=tuple(files),
        loaded_files=tuple(loaded_files),
        batched=batched,
        environment=_describe_environment(model, step_kernels),
        defaults=read_defaults(model.generation_config, vocabulary_size, places.base),
        text=text,
        internals=internals,
        directory=str(places.directory.resolve()),
        source=read_source(places, model),
        adapter=adapter,
        prefix_cache_tokens=prefix_cache_tokens,
    )


def read_source(places: ModelPlaces, model: Any) -> SourceInfo:
    """Return the format of the files, and the quantization of the weights in them.

    Args:
        places: the files.
        model: the loaded model.

    Raises:
        ConfigurationError: the GGUF file cannot be read.
    """
    if places.gguf:
        return SourceInfo("gguf", read_quantization(places.source), dequantized=True)
    first = places.list_base_weights()[0]
    method = read_method(places.base)
    return SourceInfo(
        "safetensors" if first.endswith(".safetensors") else "pytorch",
        method,
        # transformers dequantizes some methods where the hardware does not compute with them.
        dequantized=bool(method) and not getattr(model, "is_quantized", False),
    )


def describe_adapter(
    peft_type: str, places: ModelPlaces, files: Sequence[FileDigest], base_files: Collection[str]
) -> AdapterInfo:
    """Return the description of an adapter.

    Args:
        peft_type: PEFT's name of the type.
        places: directories of the adapter and its base.
        files: digests of the files of both.
        base_files: the files of the base if it is served alone; empty if it cannot be.
    """
    known = {file.path: file for file in files}
    alone = [
        dataclasses.replace(known[recorded], path=name)
        if (recorded := places.get_recorded_name(places.base, name)) in known
        else digest_file(name, places.base / name)
        for name in base_files
    ]
    return AdapterInfo(
        peft_type=peft_type,
        digest=digest_model_files([known[name] for name in list_adapter_files(places.directory)]),
        base=places.base_name,
        base_model_digest=digest_model_files(alone) if alone else "",
    )


def read_text_files(tokenizer: Any) -> TextFiles:
    """Return the fast tokenizer in serialised form, for processes without transformers."""
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
        fill_token=find_fill_token(tokenizer),
    )


def _read_vocabulary_size(model: Any, config: Any) -> int:
    head = model.get_output_embeddings()
    return config.vocab_size if head is None else head.weight.shape[0]


def _describe_environment(model: Any, step_kernels: str) -> Environment:
    return Environment(
        whence_version=importlib.metadata.version("whence"),
        torch_version=str(torch.__version__),
        transformers_version=transformers.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        num_threads=torch.get_num_threads(),
        attention_implementation=get_original_implementation(model),
        step_kernels=step_kernels,
    )
