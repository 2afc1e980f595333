"""PEFT adapters: loaded as PEFT loads them, or refused.

PEFT initialises tensors that an adapter's file lacks, and ignores superfluous ones, with a warning
only. Here the server does not start in either case, as for a model's own weights.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

from whence_server.domain.errors import ConfigurationError

SERVED_TYPES = frozenset(
    {"ADALORA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "TRAINABLE_TOKENS", "VERA"}
)
"""PEFT types that change only layers of the base; tests compare each with PEFT."""
_PER_INPUT = ("alora_invocation_tokens", "arrow_config", "layer_replication")
"""LoRA settings with which a layer depends on more than its input, or layers are repeated."""
NAMES_SHOWN = 10


def apply_adapter(model: Any, directory: Path, device: str) -> Any:
    """Insert an adapter's layers into its base model.

    Args:
        model: the base, changed in place.
        directory: the adapter's directory.
        device: device of the adapter's weights.

    Returns:
        PEFT's model around the base.

    Raises:
        ConfigurationError: the adapter cannot be loaded exactly.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return _load_adapted(model, directory, device, caught).eval()


def _load_adapted(
    model: Any, directory: Path, device: str, caught: list[warnings.WarningMessage]
) -> Any:
    import peft

    config = peft.PeftConfig.from_pretrained(str(directory))
    # PEFT's warning about fields that this release does not know, and would ignore.
    unknown = [str(w.message) for w in caught if "Unexpected keyword arguments" in str(w.message)]
    if unknown:
        raise ConfigurationError(
            f"the adapter in {directory} needs another release of PEFT than {peft.__version__}: "
            f"{unknown[0].splitlines()[0]}"
        )
    _check_type(config, directory)
    config.inference_mode = True
    adapted = peft.PeftModelForCausalLM(model, config, "default")
    try:
        loading = adapted.load_adapter(str(directory), "default", torch_device=device)
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        if not wrong:
            raise
        raise ConfigurationError(
            f"the adapter in {directory} is for another base model: the shapes of {len(wrong)} of "
            f"its tensors differ, such as: {wrong[0]}"
        ) from error
    _check_tensors(loading, directory)
    return adapted


def changes_biases(directory: Path) -> bool:
    """Return whether an adapter changes biases of its base, besides adding layers."""
    import peft

    config = peft.PeftConfig.from_pretrained(str(directory))
    return getattr(config, "bias", "none") not in (None, "none")


def check_equals_peft(adapted: Any) -> None:
    """Check that the base with the adapter's layers gives the logits of PEFT's model.

    Raises:
        ConfigurationError: the logits differ, as the adapter changes more than layers.
    """
    base = adapted.get_base_model()
    ids = torch.arange(1, 8, device=base.device)[None] % base.config.get_text_config().vocab_size
    with torch.inference_mode():
        same = torch.equal(
            adapted(input_ids=ids, use_cache=False).logits,
            base(input_ids=ids, use_cache=False).logits,
        )
    if not same:
        kind = adapted.peft_config["default"].peft_type.value
        raise _refuse(f"this adapter of PEFT type {kind} does more than change layers")


def _check_type(config: Any, directory: Path) -> None:
    kind = config.peft_type.value if hasattr(config.peft_type, "value") else str(config.peft_type)
    if kind not in SERVED_TYPES:
        raise _refuse(f"{directory} is an adapter of PEFT type {kind}, which is not served")
    for name in _PER_INPUT:
        if getattr(config, name, None):
            raise _refuse(f"{directory} is an adapter with {name}, which is not served")


def _refuse(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}; if PEFT can, merge it into its base with merge_and_unload and serve the result"
    )


def _check_tensors(loading: Any, directory: Path) -> None:
    """Raise ConfigurationError if the adapter's file lacks tensors or has superfluous ones."""
    faults = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:NAMES_SHOWN])}"
        + (", ..." if len(names) > NAMES_SHOWN else "")
        for kind, names in (
            ("missing", loading.missing_keys),
            ("unexpected", loading.unexpected_keys),
        )
        if names
    ]
    if faults:
        raise ConfigurationError(
            f"the tensors of the adapter in {directory} do not match its configuration: "
            f"{'; '.join(faults)}"
        )
