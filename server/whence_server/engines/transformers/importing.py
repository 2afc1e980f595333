"""Import of transformers without what no decoder needs: it is a tenth of the engine's start."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leave_out_scipy() -> Iterator[None]:
    """Let transformers believe that scipy is not installed, while its models' code is imported.

    Where scipy is there, transformers imports its optimizers and linear algebra for the losses of
    object detection, which takes a third of a second.
    """
    import transformers.utils
    from transformers.utils import import_utils

    # One function under two names; a version without it needs no change.
    places = [it for it in (transformers.utils, import_utils) if hasattr(it, _QUESTION)]
    answers = [(place, getattr(place, _QUESTION)) for place in places]
    for place in places:
        setattr(place, _QUESTION, lambda: False)
    try:
        yield
    finally:
        for place, answer in answers:
            setattr(place, _QUESTION, answer)


_QUESTION = "is_scipy_available"
