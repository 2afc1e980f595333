"""Loading of transformers' config, tokenizer and model from a directory, with strict checks.

transformers initialises tensors that a checkpoint lacks at random, and ignores superfluous ones,
with a log line only. Here both are errors.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.gguf_file import forget_quantizer
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.quantized_files import check_quantization, is_quantized
from whence_server.engines.transformers.tokenizer_check import check_tokenizer

NAMES_SHOWN = 10
_NO_ADAPTER = ".no-adapter"
"""Subfolder without an adapter, as transformers silently applies an adapter that it finds."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensor types that can be copied; quantized models have tensor types of their own."""


def read_config(directory: Path, options: EngineOptions, gguf: str = "") -> Any:
    """Read the config of a decoder model.

    Args:
        directory: the model's directory.
        options: whether the model's own code may run.
        gguf: name of the GGUF file that holds the config; "" for config.json.

    Raises:
        ConfigurationError: there is no config, or it is of another kind of model.
    """
    if not gguf and not (directory / "config.json").is_file():
        raise ConfigurationError(f"{directory} is not a model's directory: it has no config.json")
    with translate_errors(f"{directory / (gguf or 'config.json')} cannot be used"):
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=options.trust_remote_code, **_name_gguf(gguf)
        )
    if not gguf:
        _check_sources(directory, config, options)
    kind = f"{directory / gguf} holds a {config.model_type!r} model"
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigurationError(f"{kind}, which is an encoder-decoder; a decoder is needed")
    # Only families that can be either are checked: others (GPT-NeoX) may have the attribute too.
    can_be_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if can_be_encoder and getattr(config, "is_decoder", True) is False:
        raise ConfigurationError(f"{kind}, which is an encoder; a decoder is needed")
    _find_auto_class(config, kind)
    if not gguf:
        check_quantization(directory, config)
    return config


def _find_auto_class(config: Any, kind: str = "") -> Any:
    """Return transformers' class that loads a config's model for text.

    A model for text and images, whose text transformers does not load alone, is loaded whole.

    Args:
        config: the model's config.
        kind: description of the model, for the error.

    Raises:
        ConfigurationError: transformers has no class that generates text.
    """
    is_remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING or is_remote:
        return AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ConfigurationError(
        f"{kind}, for which neither AutoModelForCausalLM nor AutoModelForImageTextToText of "
        f"transformers {transformers.__version__} has a class"
    )


def _check_sources(directory: Path, config: Any, options: EngineOptions) -> None:
    """Refuse weights and code that digests would not cover.

    Raises:
        ConfigurationError: the config names other weight files, or code of another repository, or
            there is a custom generation loop.
    """
    if getattr(config, "transformers_weights", None):
        raise ConfigurationError(
            f"{directory / 'config.json'} names its weights, {config.transformers_weights}, in "
            "transformers_weights: call them model.safetensors, and remove that field"
        )
    if not options.trust_remote_code:
        return
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        with translate_errors(f"{path} cannot be used"):
            code = json.loads(path.read_bytes()).get("auto_map") if path.is_file() else None
        if "--" in json.dumps(code):
            raise ConfigurationError(
                f"{path} takes its code from another repository ({json.dumps(code)}): put the code "
                "beside the model, where its digest covers it, and name it without '--'"
            )
    if (directory / "custom_generate").is_dir():
        raise ConfigurationError(
            f"{directory / 'custom_generate'} holds a custom generation loop, which is not "
            "supported: remove it"
        )


def _name_gguf(gguf: str) -> dict[str, str]:
    """Return the argument with which transformers reads a GGUF file."""
    return {"gguf_file": gguf} if gguf else {}


def load_tokenizer(directory: Path, options: EngineOptions, gguf: str = "") -> Any:
    """Load a fast tokenizer, and check that its serialised form gives the same results.

    Args:
        directory: the tokenizer's directory.
        options: whether the model's own code may run.
        gguf: name of the GGUF file that holds the tokenizer; "" for files of its own.

    Raises:
        ConfigurationError: the tokenizer cannot be loaded, is a slow one, or fails the check.
    """
    if not gguf:
        weights.list_tokenizer_files(directory)
    with translate_errors(f"the tokenizer in {directory / gguf} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=options.trust_remote_code, **_name_gguf(gguf)
        )
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{directory} has only a slow tokenizer ({type(tokenizer).__name__}); "
            "a tokenizer.json, as a fast one saves it, is needed"
        )
    check_tokenizer(tokenizer)
    return tokenizer


def load_model(
    directory: Path, config: Any, files: Collection[str], options: EngineOptions, gguf: str = ""
) -> Any:
    """Load a model onto its device, in eval mode, with its tensors copied into memory or mapped.

    Args:
        directory: the model's directory.
        config: from `read_config`.
        files: the weight files.
        options: dtype, device, and whether the model's own code may run.
        gguf: name of the GGUF file that holds the weights; they are dequantized, to float32 if
            the dtype is auto.

    Raises:
        ConfigurationError: the model cannot be loaded exactly.
    """
    automatic = torch.float32 if gguf else "auto"
    dtype = automatic if options.dtype == "auto" else getattr(torch, options.dtype)
    with translate_errors(f"the weights in {directory / gguf} cannot be loaded"):
        model, loading = _find_auto_class(config).from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=all(name.endswith(".safetensors") for name in files),
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            # Mismatches are then reported with the other faults, and refused below.
            ignore_mismatched_sizes=True,
            # Keeps transformers from applying an adapter beside the model; we apply it later.
            adapter_kwargs={"subfolder": _NO_ADAPTER},
            # Quantized tensors cannot be copied out of a file that is mapped into memory.
            disable_mmap=True if is_quantized(config) else None,
            **_name_gguf(gguf),
        )
    if gguf:
        forget_quantizer(model)
    _check_tensors(directory, type(model).__name__, loading)
    with translate_errors(f"the model cannot be moved to {options.device}"):
        model.to(options.device)
        if not options.maps_weights:
            copy_into_memory(model)
    return model.eval().requires_grad_(False)


def load_trainable(directory: Path, dtype: str) -> Any:
    """Load a local model for training, on the CPU, with the checks for served models.

    Args:
        directory: the model's directory.
        dtype: "float32" or "bfloat16".

    Raises:
        ConfigurationError: the model cannot be loaded exactly.
    """
    options = make_offline_options(directory, dtype)
    config = read_config(directory, options)
    model = load_model(directory, config, weights.list_weight_files(directory), options)
    return model.train().requires_grad_(True)


def make_offline_options(directory: Path, dtype: str) -> EngineOptions:
    """Return options for loading a local model that is not served, on the CPU.

    Args:
        directory: the model's directory.
        dtype: "auto", "float32", "bfloat16" or "float16".
    """
    return EngineOptions(
        model=str(directory),
        model_name="",
        dtype=dtype,
        device="cpu",
        num_threads=0,
        max_batch_size=1,
        max_cache_tokens=0,
        prefill_chunk_tokens=0,
        trust_remote_code=False,
        log_level="",
        digest_cache="",
    )


def copy_into_memory(model: torch.nn.Module, shared_with: torch.nn.Module | None = None) -> None:
    """Copy the model's tensors into memory of their own.

    transformers maps weight files that need no cast into memory, so that a write to the file
    would change the running model.

    Args:
        model: changed in place.
        shared_with: another model, whose tensors are left in place.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    shared = () if shared_with is None else (*shared_with.parameters(), *shared_with.buffers())
    kept = {id(tensor) for tensor in shared}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in kept and tensor.device.type == "cpu" and type(tensor) in _PLAIN:
            place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            # Tied tensors stay tied.
            tensor.data = copies.setdefault(place, tensor.detach().clone())


def _check_tensors(directory: Path, architecture: str, loading: dict[str, Any]) -> None:
    """Refuse weights that do not match the architecture exactly.

    transformers' report leaves out tensors that may be absent or left over (tied weights, the
    class's ignore lists).
    """
    mismatched = [
        f"{name} ({tuple(stored)} instead of {tuple(expected)})"
        for name, stored, expected in loading["mismatched_keys"]
    ]
    faults = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:NAMES_SHOWN])}"
        + (", ..." if len(names) > NAMES_SHOWN else "")
        for kind, names in (
            ("missing", loading["missing_keys"]),
            ("unexpected", loading["unexpected_keys"]),
            ("of another shape", mismatched),
            ("unreadable", loading["error_msgs"]),
        )
        if names
    ]
    if faults:
        raise ConfigurationError(
            f"the tensors in {directory} do not match {architecture}: {'; '.join(faults)}"
        )


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate any error into a ConfigurationError of one line that begins with `what`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigurationError(f"{what}: not enough memory") from error
    except ConfigurationError:
        raise
    except SafetensorError as error:
        raise ConfigurationError(f"{what}: damaged safetensors file ({error})") from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if any("can't allocate memory" in line for line in lines):
            raise ConfigurationError(f"{what}: not enough memory") from error
        reason = lines[0] if lines else "no reason given"
        raise ConfigurationError(f"{what}: {type(error).__name__}: {reason}") from error
