"""From a model's directory to a model that is ready to run, or one clear line why not.

transformers fills in whatever a checkpoint lacks with random numbers, and leaves out whatever
it has too much, with no more than a log line. Here both end the start.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import ModelInfo
from whence_server.engine import adapters, digests, frequencies, weights
from whence_server.engine import batching_check as probe
from whence_server.engine import step_capture as recording
from whence_server.engine.describing import adapter_info, describe, text_files
from whence_server.engine.digest_cache import DigestCache, Identity, identity
from whence_server.engine.frequencies import Frequencies
from whence_server.engine.generation_config import FILE, check_file
from whence_server.engine.handshake import EngineOptions
from whence_server.engine.internals import attention
from whence_server.engine.internals.head_weights import HeadWeights, read_head_weights
from whence_server.engine.internals.probe import Inside
from whence_server.engine.internals.probe_building import look_inside
from whence_server.engine.runner import Runner
from whence_server.engine.solo import SoloRunner
from whence_server.engine.step_graph import StepGraph
from whence_server.engine.style import ForwardStyle
from whence_server.engine.tokenizer_check import check_tokenizer
from whence_server.engine.weights import ModelPlaces

logger = logging.getLogger(__name__)

ONE_THREAD_BELOW_PARAMETERS = 40_000_000
"""Smaller models decode faster on one thread while the front computes on another core."""
NAMES_SHOWN = 10
_NO_ADAPTER = ".no-adapter"
"""A directory without one: transformers applies what it finds, and does not say so."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensors whose storage is what they hold; those of quantized models have types of their own."""


class LoadedModel(NamedTuple):
    """A model in memory, and all that is known of it."""

    model: Any
    style: ForwardStyle | None
    """How to call it for a batch; None where every sequence decodes by itself."""
    graph: StepGraph | None
    """Its decoding step, recorded; None where that cannot be."""
    info: ModelInfo
    inside: Inside
    """What can be seen of it while it decodes."""
    rotary: Frequencies
    """Its rotary modules that depend on length, as they were when it was loaded."""

    def runner(self) -> Runner | SoloRunner:
        """A new runner of the kind that is right for the model, without rows."""
        if self.style is None:
            return SoloRunner(self.model, self.inside, self.rotary)
        return Runner(self.model, self.style, self.graph, self.inside)


def load(options: EngineOptions) -> LoadedModel:
    """Loads the model, checks it, and says exactly which one it is.

    Raises:
        ConfigurationError: it cannot be served.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    places = weights.model_places(options.model, trust_remote_code=options.trust_remote_code)
    config = _config(places.base, options)
    check_file(places.base)
    base_weights = weights.weight_files(places.base)
    paths = weights.model_paths(places, base_weights, with_code=options.trust_remote_code)
    before = _identities(paths)
    cache = DigestCache(options.digest_cache)
    with ThreadPoolExecutor(2, "digests") as pool:
        # The files are digested while transformers reads them.
        digested = pool.submit(cache.digests, paths)
        text = text_files(_tokenizer(places.tokenizer, options))
        model = _model(places.base, config, base_weights, options)
        adapted = _adapted(model, places, options) if places.has_adapter else None
        in_memory = pool.submit(digests.weights_digest, model.state_dict())
        _set_num_threads(options.num_threads, model)
        # Not before the digest is taken: a first forward pass may rescale weights (RWKV's does).
        wait([in_memory])
        weights_digest = in_memory.result()
        files = cache.confirmed(paths, digested.result(), weights_digest, _conditions(model))
        _check_unchanged(before, _identities(paths))
        if adapted is not None:
            adapters.check_alone(adapted)
        rotary = frequencies.find(model)
        style, obstacle = _style(model, rotary)
        inside, internals = look_inside(
            model, style, obstacle, _head_weights(options, weights_digest)
        )
        graph = None if style is None else recording.recorded(model, style, inside)
        info = describe(
            options.model_name,
            model,
            text,
            files=files,
            tokenizer_files=_recorded(places, places.tokenizer, weights.tokenizer_files),
            loaded_files=[
                *(places.name_of(places.base, name) for name in base_weights),
                *(weights.adapter_files(places.directory)[1:] if places.has_adapter else ()),
            ],
            weights_digest=weights_digest,
            batched=style is not None,
            internals=internals,
            places=places,
            adapter=None
            if adapted is None
            else adapter_info(
                adapted.peft_config["default"].peft_type.value,
                places,
                files,
                _files_alone(places, base_weights, options),
            ),
        )
    return LoadedModel(model, style, graph, info, inside, rotary)


def _recorded(
    places: ModelPlaces, directory: Path, names: Callable[[Path], list[str]]
) -> list[str]:
    """Return the names on record of some of a directory's files."""
    return [places.name_of(directory, name) for name in names(directory)]


def _files_alone(places: ModelPlaces, base_weights: list[str], options: EngineOptions) -> list[str]:
    """Return the files of a base that is served alone; none where it has no tokenizer."""
    try:
        return weights.model_files(places.base, base_weights, with_code=options.trust_remote_code)
    except ConfigurationError:
        return []


def _adapted(model: Any, places: ModelPlaces, options: EngineOptions) -> Any:
    """Return PEFT's model around the base, into which it puts the adapter's layers."""
    if (places.directory / FILE).is_file() and places.directory != places.base:
        logger.warning(
            "%s is not read: an adapter goes by its base's, as in transformers and PEFT",
            places.directory / FILE,
        )
    with _translated(f"the adapter in {places.directory} cannot be put on {places.base}"):
        adapted = adapters.apply_adapter(model, places.directory, options.device)
        model.to(options.device)
        _take_into_memory(model)
    model.eval().requires_grad_(False)
    return adapted


def _identities(paths: Mapping[str, Path]) -> dict[Path, Identity]:
    return {path: identity(path) for path in paths.values()}


def _check_unchanged(before: dict[Path, Identity], after: dict[Path, Identity]) -> None:
    """Refuse files that were written to while they were read: nobody knows what was loaded.

    Raises:
        ConfigurationError: naming them.
    """
    changed = [str(path) for path, state in before.items() if after[path] != state]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed[:NAMES_SHOWN])} changed while the model was being loaded; start "
            "again once nothing writes to it"
        )


def _conditions(model: Any) -> str:
    """Return all that the tensors in memory depend on besides the files."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}, {model.dtype}"


def _style(model: Any, rotary: Frequencies) -> tuple[ForwardStyle | None, str | None]:
    """How the model is called, with our attention in place where it can be, or why it cannot.

    Raises:
        ConfigurationError: it decodes in no way.
    """
    obstacle = attention.adopt(model)
    if obstacle is not None:
        return probe.examine(model, rotary), obstacle
    decodes = True
    try:
        style = probe.examine(model, rotary)
    except ConfigurationError:
        style, decodes = None, False
    if style is not None:
        return style, None
    attention.restore(model)
    style = probe.examine(model, rotary)
    if style is None and decodes:
        # One sequence after the other, with either.
        attention.put(model)
        return None, None
    return style, "with our attention it gives other logits"


def _head_weights(options: EngineOptions, weights_digest: str) -> HeadWeights | None:
    if not options.head_weights:
        return None
    return read_head_weights(options.head_weights, weights_digest)


def offline(directory: Path, dtype: str) -> EngineOptions:
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


def trainable(directory: Path, dtype: str) -> Any:
    """A local model whose weights may change, on the CPU; checked as one that is to be served.

    Args:
        directory: where it lies.
        dtype: "float32" or "bfloat16".

    Raises:
        ConfigurationError: it cannot be loaded exactly as it is.
    """
    options = offline(directory, dtype)
    config = _config(directory, options)
    model = _model(directory, config, weights.weight_files(directory), options)
    return model.train().requires_grad_(True)


def _config(directory: Path, options: EngineOptions) -> Any:
    if not (directory / "config.json").is_file():
        raise ConfigurationError(f"{directory} is not a model's directory: it has no config.json")
    with _translated(f"{directory / 'config.json'} cannot be used"):
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
        with _translated(f"{path} cannot be used"):
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


def _tokenizer(directory: Path, options: EngineOptions) -> Any:
    weights.tokenizer_files(directory)
    with _translated(f"the tokenizer in {directory} cannot be loaded"):
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


def _model(directory: Path, config: Any, files: Collection[str], options: EngineOptions) -> Any:
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    with _translated(f"the weights in {directory} cannot be loaded"):
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
    with _translated(f"the model cannot be moved to {options.device}"):
        model.to(options.device)
        _take_into_memory(model)
    return model.eval().requires_grad_(False)


def _take_into_memory(model: torch.nn.Module) -> None:
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
    """Refuses weights that do not fit the architecture exactly.

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


def _set_num_threads(num_threads: int, model: Any) -> None:
    """0 chooses: one thread for a small model, else torch's default, which is every core."""
    if num_threads == 0 and model.num_parameters() < ONE_THREAD_BELOW_PARAMETERS:
        num_threads = 1
    if num_threads:
        torch.set_num_threads(num_threads)


@contextmanager
def _translated(what: str) -> Iterator[None]:
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
