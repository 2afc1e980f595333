"""Places in transformers' `generate` at which a model's calls are watched.

`generate` looks these methods up on the model at every call. The hook sets wrappers on this one
model, and no class is changed.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import transformers
from transformers import GenerationMixin

from whence_hooks.transformers.call import Destination, RecordedCall
from whence_hooks.transformers.refusals import (
    NotRecordableError,
    check_arguments,
    check_mode,
)

_SEAMS: dict[str, tuple[str, ...]] = {
    "generate": ("logits_processor", "stopping_criteria", "custom_generate"),
    "_validate_generation_mode": ("generation_mode",),
    "_get_logits_processor": ("generation_config", "encoder_input_ids", "model_kwargs"),
    "_get_stopping_criteria": ("generation_config", "stopping_criteria"),
    "_get_top_k_continuations": ("cur_len", "decoder_prompt_len"),
    "_get_running_beams_for_next_iteration": ("next_token_hits_stopping_criteria", "num_beams"),
    "_update_finished_beams": ("beam_indices", "is_sent_finished"),
}
"""Methods that are wrapped, with the parameters that the wrappers rely on."""

_CURRENT: ContextVar[RecordedCall | None] = ContextVar("whence_recorded_call", default=None)
"""The call of `generate` that runs here."""
_HOOKS: "weakref.WeakKeyDictionary[Any, Hook]" = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def find_generating_model(model: Any) -> Any:
    """Return the model whose `generate` runs: the model itself, or the one that it wraps.

    Raises:
        NotRecordableError: there is none, or it is no decoder-only model.
        RuntimeError: this version of transformers has no places to watch.
    """
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, GenerationMixin) and hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, GenerationMixin):
        raise NotRecordableError(
            f"{type(model).__name__} has no transformers' generate: give a model that "
            "AutoModelForCausalLM loads"
        )
    if inner.config.is_encoder_decoder:
        raise NotRecordableError(
            f"{type(inner).__name__} is an encoder-decoder model; record_generate records "
            "decoder-only models"
        )
    _check_version(type(inner))
    return inner


def _check_version(kind: type) -> None:
    for name, parameters in _SEAMS.items():
        method = getattr(kind, name, None)
        known = {} if method is None else inspect.signature(method).parameters
        missing = [parameter for parameter in parameters if parameter not in known]
        if method is None or missing:
            raise RuntimeError(
                f"transformers {transformers.__version__} cannot be recorded: "
                f"{kind.__name__}.{name} is missing or has no {', '.join(missing)}; install a "
                "version that whence names, 5.20 or later of version 5"
            )


def add_destination(model: Any, destination: Destination) -> None:
    """Record a model's calls at a destination, instead of at those that were added before."""
    with _LOCK:
        hook = _HOOKS.get(model)
        if hook is None:
            hook = _HOOKS[model] = Hook(model)
        hook.destinations.append(destination)
        hook.use()


def remove_destination(model: Any, destination: Destination) -> None:
    """Record no further calls at a destination; calls that run are recorded to their end."""
    with _LOCK:
        hook = _HOOKS[model]
        hook.destinations.remove(destination)
        hook.leave()


class Hook:
    """Wrappers on one model, for as long as a destination or a running call uses them.

    Attributes:
        destinations: the newest one is last.
    """

    def __init__(self, model: Any) -> None:
        self.destinations: list[Destination] = []
        self._model = weakref.ref(model)
        self._num_uses = 0
        self._replaced: dict[str, Any] = {}

    def use(self) -> None:
        """Count a user; the first sets the wrappers. The caller holds the lock."""
        self._num_uses += 1
        if self._num_uses == 1:
            model = self._model()
            for name, run in _WRAPPERS.items():
                if name in vars(model):
                    self._replaced[name] = vars(model)[name]
                setattr(model, name, Wrapper(self, model, name, run))

    def leave(self) -> None:
        """Count a user less; the last removes the wrappers. The caller holds the lock."""
        self._num_uses -= 1
        if self._num_uses == 0:
            model = self._model()
            for name in _WRAPPERS:
                if name in self._replaced:
                    setattr(model, name, self._replaced[name])
                else:
                    delattr(model, name)
            self._replaced.clear()

    def begin_call(self) -> RecordedCall | None:
        """Return a new call of the newest destination; None if calls are not recorded."""
        with _LOCK:
            if not self.destinations:
                return None
            self.use()
            return RecordedCall(self.destinations[-1])

    def end_call(self) -> None:
        """End the use of the wrappers by a call."""
        with _LOCK:
            self.leave()


class Wrapper:
    """A method of one model, watched. A copy of the model has the method itself.

    Args:
        hook: hook of the model.
        model: the model.
        name: name of the method.
        run: runs the method and watches it.
    """

    def __init__(self, hook: Hook, model: Any, name: str, run: "Run") -> None:
        functools.update_wrapper(self, getattr(model, name))
        self._hook = hook
        self._original: Callable[..., Any] = getattr(model, name)
        self._model = weakref.ref(model)
        self._name = name
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return self._run(self._hook, self._original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the method of the model's copy, which is in the memo before its parts are."""
        return getattr(memo[id(self._model())], self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the method of the unpickled model."""
        return getattr, (self._model(), self._name)


Run = Callable[[Hook, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(hook, method, its arguments, its keyword arguments) -> the method's result."""


def _run_generate(hook: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    call = hook.begin_call()
    token = _CURRENT.set(call)
    try:
        if call is not None:
            call.check(lambda: check_arguments(kwargs))
        result = method(*args, **kwargs)
    except BaseException as error:
        if call is not None:
            call.end(error)
        raise
    finally:
        _CURRENT.reset(token)
        if call is not None:
            hook.end_call()
    if call is not None:
        call.end(None)
    return result


def _run_validation(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    call = _CURRENT.get()
    mode = args[0] if args else kwargs["generation_mode"]
    if call is not None:
        call.check(lambda: check_mode(mode))
    return method(*args, **kwargs)


def _get_processors(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    processors = method(*args, **kwargs)
    call = _CURRENT.get()
    if call is None or "generation_config" not in kwargs:
        return processors
    mask = (kwargs.get("model_kwargs") or {}).get("attention_mask")
    input_ids = kwargs.get("encoder_input_ids")
    return call.prepare(kwargs["generation_config"], input_ids, mask, processors)


def _get_criteria(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    criteria = method(*args, **kwargs)
    call = _CURRENT.get()
    return criteria if call is None else call.watch(criteria)


def _get_continuations(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    call = _CURRENT.get()
    if call is not None:
        call.note_continuations(result, kwargs)
    return result


def _get_running_beams(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    call = _CURRENT.get()
    if call is not None:
        call.note_kept(kwargs)
    return method(*args, **kwargs)


def _update_finished_beams(_: Hook, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    call = _CURRENT.get()
    if call is not None:
        call.note_outcome(result)
    return result


_WRAPPERS: dict[str, Run] = {
    "generate": _run_generate,
    "_validate_generation_mode": _run_validation,
    "_get_logits_processor": _get_processors,
    "_get_stopping_criteria": _get_criteria,
    "_get_top_k_continuations": _get_continuations,
    "_get_running_beams_for_next_iteration": _get_running_beams,
    "_update_finished_beams": _update_finished_beams,
}
