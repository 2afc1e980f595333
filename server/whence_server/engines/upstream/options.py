"""Settings of an upstream as an engine, and the description of its model."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.domain.decoding import GenerationDefaults
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import (
    Environment,
    FileDigest,
    InternalsInfo,
    ModelInfo,
    TextFiles,
)
from whence_server.domain.observation import WeightsOrigin
from whence_server.domain.upstream import UpstreamInfo
from whence_server.engines.file_digests import digest_model_files
from whence_server.engines.upstream.claimed_files import describe_difference
from whence_server.engines.upstream.exchange import UpstreamDescription

_UNSEEN = "an upstream does not show its model's activations"


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Settings of an upstream as an engine."""

    url: str
    """URL, without user name, password and query."""
    name: str
    """Name under which clients ask for the model; "" for the upstream's own."""
    whence_version: str
    num_retries: int = 0
    """Times that a generation which got no token is begun again after the upstream was away."""
    text: TextFiles | None = None
    """The model's tokenizer; None if it is not known."""
    tokenizer_digest: str = ""
    vocabulary_size: int = 0
    """Number of the tokenizer's ids; 0 without one."""
    weights: Path | None = None
    """File or folder that the upstream says it serves; None if whence cannot read it."""
    health_interval_s: float = 5.0
    """Seconds between two questions whether the upstream answers."""


def describe_model(
    options: UpstreamOptions, told: UpstreamDescription, files: tuple[FileDigest, ...]
) -> ModelInfo:
    """Return the description of the model that an upstream serves.

    Args:
        options: the settings.
        told: the upstream's own description.
        files: digests of the files that it says it serves; empty if whence has not read them.

    Raises:
        ConfigurationError: the tokenizer is that of another model, or the weights' file is another
            one than the upstream names.
    """
    if told.vocabulary_size and options.vocabulary_size > told.vocabulary_size:
        raise ConfigurationError(
            f"--tokenizer has {options.vocabulary_size} tokens, and the model of the upstream at "
            f"{options.url} has {told.vocabulary_size}: it is the tokenizer of another model"
        )
    difference = describe_difference(options.weights, told) if options.weights else ""
    return ModelInfo(
        name=options.name or told.model or options.url,
        architecture="",
        num_parameters=0,
        num_layers=0,
        vocabulary_size=told.vocabulary_size or options.vocabulary_size,
        max_context_length=told.max_context_length or 0,
        model_digest=digest_model_files(files) if files else "",
        tokenizer_digest=options.tokenizer_digest,
        weights_digest="",
        files=files,
        loaded_files=(),
        batched=True,
        environment=Environment(options.whence_version, "", "", "", "", 0, ""),
        # Nothing is left to the upstream's own defaults: all settings are sent, and on record.
        # `early_stopping` has its neutral value: it is of beam search alone.
        defaults=GenerationDefaults(do_sample=True, top_k=0, early_stopping=True),
        directory=_name_folder(options.weights),
        text=options.text or TextFiles("", None, {}),
        internals=InternalsInfo("", {"sources": _UNSEEN, "layers": _UNSEEN}),
        upstream=UpstreamInfo(
            kind=told.kind,
            version=told.version,
            url=options.url,
            model=told.model,
            claimed_files=told.claimed_files,
            weights_difference=difference,
            takes_token_ids=told.takes_token_ids,
            max_candidates=told.max_candidates,
            max_text_candidates=told.count_candidates(is_chat=False),
            max_seed=told.max_seed,
        ),
        weights_origin=_grade_weights(told, has_digests=bool(files) and not difference),
    )


def _grade_weights(told: UpstreamDescription, *, has_digests: bool) -> WeightsOrigin:
    """Return the grade of the weights, which every generation has too."""
    if has_digests:
        return WeightsOrigin.DIGESTS_OF_CLAIMED_FILES
    return WeightsOrigin.CLAIMED if told.claimed_files else WeightsOrigin.UNKNOWN


def _name_folder(weights: Path | None) -> str:
    if weights is None:
        return ""
    return str((weights if weights.is_dir() else weights.parent).resolve())
