"""Adapters that requests name: found among those of the model, or refused."""

from dataclasses import replace

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.model import ModelInfo, NamedAdapter

_NAMES_SHOWN = 20
_CHARACTERS_SHOWN = 100


def find_adapter(model: ModelInfo, name: str) -> NamedAdapter | None:
    """Return the model's adapter of this name; None if the name is empty.

    Raises:
        InvalidRequestError: the server has no adapter of this name.
    """
    if not name:
        return None
    for adapter in model.adapters:
        if adapter.name == name:
            return adapter
    raise InvalidRequestError(FieldViolation("adapter", _describe_unknown(model, name)))


def adapt_model(model: ModelInfo, name: str, *, has_internals: bool = False) -> ModelInfo:
    """Return the description of the model as a generation runs it.

    The name and the digests stay the model's own. Internals, training run and kernels are those of
    the model with the adapter.

    Args:
        model: the served model.
        name: name of the adapter; "" for none.
        has_internals: True if internals are read from its steps, which may have other kernels.

    Raises:
        InvalidRequestError: the server has no adapter of this name.
    """
    adapter = find_adapter(model, name)
    if adapter is not None:
        model = replace(
            model,
            internals=adapter.internals,
            training_run=adapter.training_run,
            environment=replace(model.environment, step_kernels=adapter.step_kernels),
        )
    if not has_internals:
        return model
    kernels = model.internals.step_kernels
    return replace(model, environment=replace(model.environment, step_kernels=kernels))


def _describe_unknown(model: ModelInfo, name: str) -> str:
    shown = repr(name[:_CHARACTERS_SHOWN]) + ("..." if len(name) > _CHARACTERS_SHOWN else "")
    names = [adapter.name for adapter in model.adapters]
    if not names:
        return f"is {shown}, but this server has no adapters; start it with --adapter NAME=DIR"
    known = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"is {shown}; the adapters of this server are: {known}"
