"""Checks that an adapter belongs to the served model: its base's weights, and its tokenizer."""

import logging
from collections.abc import Mapping
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.adapter_places import AdapterPlace
from whence_server.engines.transformers.digests import hash_file
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.pretrained import load_tokenizer
from whence_server.engines.transformers.weights import ADAPTER_CONFIGURATION, ModelPlaces

logger = logging.getLogger(__name__)


def check_base(place: AdapterPlace, places: ModelPlaces, sha256: Mapping[str, str]) -> None:
    """Compare the base that an adapter names, if it is on this machine, with the served model.

    Only weight files of the same names are compared: the same weights may be stored in other files.

    Args:
        place: the adapter's place.
        places: places of the served model.
        sha256: digests of its weight files, by name.

    Raises:
        ConfigurationError: the bases differ.
    """
    named = _find_named_base(place)
    if named is None:
        logger.info(
            "the base of the adapter %s, %r, is not on this machine: only the shapes of "
            "tensors are compared",
            place.name,
            place.base_name,
        )
        return
    if named.resolve() == places.base.resolve():
        return
    for name, served in sha256.items():
        other = named / name
        found = hash_file(other) if other.is_file() else served
        if found != served:
            raise ConfigurationError(
                f"it is an adapter of {place.base_name}, whose {name} has the "
                f"SHA-256 {found}; that of the served model in {places.base} is {served}. "
                f"Serve {place.base_name} with --model; if the adapter was trained on the served "
                f"model, name that as base_model_name_or_path in {ADAPTER_CONFIGURATION}"
            )


def check_tokenizer(place: AdapterPlace, places: ModelPlaces, options: EngineOptions) -> None:
    """Check that a tokenizer beside an adapter has the ids of the served one, which is used.

    Raises:
        ConfigurationError: its vocabulary differs.
    """
    own = place.directory / "tokenizer.json"
    served = places.tokenizer / "tokenizer.json"
    if not own.is_file() or (served.is_file() and own.read_bytes() == served.read_bytes()):
        return
    vocabulary = load_tokenizer(place.directory, options).get_vocab()
    expected = load_tokenizer(places.tokenizer, options).get_vocab()
    differing = sorted(
        token
        for token in vocabulary.keys() | expected.keys()
        if vocabulary.get(token) != expected.get(token)
    )
    if differing:
        raise ConfigurationError(
            f"its tokenizer differs from the served model's in the ids of {len(differing)} tokens, "
            f"such as {differing[0]!r}; all requests use the served model's tokenizer"
        )
    logger.warning(
        "the tokenizer of the adapter %s is not read: requests with it use the served model's "
        "tokenizer and chat template",
        place.name,
    )


def _find_named_base(place: AdapterPlace) -> Path | None:
    """Return the directory of the base that an adapter names; None if it is not on this machine."""
    if not place.base_name:
        return None
    path = Path(place.base_name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(place.base_name, "config.json", revision=place.revision)
    except HFValidationError:  # no hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None
