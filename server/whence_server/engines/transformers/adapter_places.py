"""Directories of the adapters that requests can name.

Only files are read here, before torch is imported, so that a missing file ends the start at once.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.weights import ADAPTER_CONFIGURATION, ModelPlaces


class AdapterPlace(NamedTuple):
    """An adapter's name and directory.

    Attributes:
        name: name in requests.
        directory: directory of its configuration and weights.
        base_name: name of its base in its configuration; "" if it has none.
        revision: the base's revision in its configuration; None for the newest.
    """

    name: str
    directory: Path
    base_name: str
    revision: str | None


def find_adapters(given: Sequence[tuple[str, str]], places: ModelPlaces) -> list[AdapterPlace]:
    """Return the places of adapters, sorted by name.

    Args:
        given: name and directory of each.
        places: places of the served model.

    Raises:
        ConfigurationError: a directory has no adapter, PEFT is missing, or the model has an
            adapter already.
    """
    found = []
    for name, path in sorted(given):
        place = AdapterPlace(name, Path(path), "", None)
        with name_in_errors(place):
            found.append(_read(place, places))
    return found


@contextmanager
def name_in_errors(place: AdapterPlace) -> Iterator[None]:
    """Begin the message of any ConfigurationError within the context with the adapter's flag."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(
            f"--adapter {place.name}={place.directory}: {error.message}"
        ) from error


def _read(place: AdapterPlace, places: ModelPlaces) -> AdapterPlace:
    path = place.directory / ADAPTER_CONFIGURATION
    if not path.is_file():
        raise ConfigurationError(
            f"the directory has no {path.name}; name the directory that PEFT saved the adapter in"
        )
    if places.has_adapter:
        raise ConfigurationError(
            f"the model in {places.directory} has an adapter itself; serve its base with --model, "
            "and name both adapters with --adapter"
        )
    weights.require_peft("it is an adapter")
    weights.list_adapter_files(place.directory)
    try:
        configuration: Any = json.loads(path.read_bytes())
        base_name = str(configuration.get("base_model_name_or_path") or "")
        return place._replace(base_name=base_name, revision=configuration.get("revision"))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not an adapter's configuration: {error!r}") from error
