"""transformers' model, tokenizer and config of a directory, or one clear line why not.

transformers fills in whatever a checkpoint lacks with random numbers, and leaves out whatever
it has too much, with no more than a log line. Here both end the start.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from whence_server.domain.errors import ConfigurationError
from whence_server.engine import weights
from whence_server.engine.handshake import EngineOptions
from whence_server.engine.tokenizer_check import check_tokenizer

NAMES_SHOWN = 10
_NO_ADAPTER = ".no-adapter"
"""A directory without one: transformers applies what it finds, and does not say so."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensors whose storage is what they hold; those of quantized models have types of their own."""


def read_config(directory: Path, options: EngineOptions) -> Any:
    """Read the config of a model that decodes.

    Raises:
        ConfigurationError: there is none, or it is that of another kind of model.
    """
    if not (directory / "config.json").is_file():
        raise ConfigurationError(f"{directory} is not a model's directory: it has no config.json")
    with translate_errors(f"{directory / 'config.json'} cannot be used"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=options.trust_remote_code)
    _check_sources(directory, config, options)
    kind = f"{directory} holds a {config.model_type!r} model"
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigurationError(f"{kind}, which maps a text to a text; a decoder is needed")
    # Families that can be either say which; some that cannot (GPT-NeoX) carry the attribute too.
    can_be_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if can_be_encoder and getattr(config, "is_decoder", True) is False:
        raise ConfigurationError(f"{kind}, which is an encoder; a decoder is needed")
    is_remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and not is_remote:
        raise ConfigurationError(
            f"{kind}, for which AutoModelForCausalLM of transformers "
            f"{transformers.__version__} has no class"
        )
    return config


def _check_sources(directory: Path, config: Any, options: EngineOptions) -> None:
    """Refuse what would be read from elsewhere, where no digest covers it.

    Raises:
        ConfigurationError: naming it.
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
            f"{directory / 'custom_generate'} holds a way of decoding of its own, which is not "
            "run: remove it"
        )


def load_tokenizer(directory: Path, options: EngineOptions) -> Any:
    """Load a fast tokenizer, checked against the form in which the front gets it.

    Raises:
        ConfigurationError: it cannot be loaded, or there is only a slow one.
    """
    weights.list_tokenizer_files(directory)
    with translate_errors(f"the tokenizer in {directory} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=options.trust_remote_code
        )
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{directory} has only a slow tokenizer ({type(tokenizer).__name__}); "
            "a tokenizer.json, as a fast one saves it, is needed"
        )
    check_tokenizer(tokenizer)
    return tokenizer


def load_model(directory: Path, config: Any, files: Collection[str], options: EngineOptions) -> Any:
    """Load a model onto its device, in eval mode, its tensors in memory of their own.

    Args:
        directory: where it lies.
        config: from `read_config`.
        files: those of its weights.
        options: its type, its device, and whether its own code may run.

    Raises:
        ConfigurationError: it cannot be loaded exactly as it is.
    """
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    with translate_errors(f"the weights in {directory} cannot be loaded"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=all(name.endswith(".safetensors") for name in files),
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            # Mismatches then come back by name, with the others, and end the start below.
            ignore_mismatched_sizes=True,
            # An adapter beside the model is looked for here, and put on afterwards.
            adapter_kwargs={"subfolder": _NO_ADAPTER},
        )
    _check_tensors(directory, type(model).__name__, loading)
    with translate_errors(f"the model cannot be moved to {options.device}"):
        model.to(options.device)
        take_into_memory(model)
    return model.eval().requires_grad_(False)


def load_trainable(directory: Path, dtype: str) -> Any:
    """A local model whose weights may change, on the CPU; checked as one that is to be served.

    Args:
        directory: where it lies.
        dtype: "float32" or "bfloat16".

    Raises:
        ConfigurationError: it cannot be loaded exactly as it is.
    """
    options = make_offline_options(directory, dtype)
    config = read_config(directory, options)
    model = load_model(directory, config, weights.list_weight_files(directory), options)
    return model.train().requires_grad_(True)


def make_offline_options(directory: Path, dtype: str) -> EngineOptions:
    """How a local model is loaded that is not served, on the CPU.

    Args:
        directory: where it lies.
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


def take_into_memory(model: torch.nn.Module) -> None:
    """Copy tensors that lie in a file that is mapped into memory.

    transformers maps weights that need no cast: whoever writes to the file would change a model
    that runs.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and type(tensor) in _PLAIN:
            place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            # Tied tensors stay tied.
            tensor.data = copies.setdefault(place, tensor.detach().clone())


def _check_tensors(directory: Path, architecture: str, loading: dict[str, Any]) -> None:
    """Refuse weights that do not fit the architecture exactly.

    What may rightly be absent or left over (tied weights, the class's own ignore lists) is not
    in transformers' report.
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
            f"the tensors in {directory} are not those of {architecture}: {'; '.join(faults)}"
        )


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Foreign errors become one line that says what could not be done, and why."""
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
