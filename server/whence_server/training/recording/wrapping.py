"""Wrapping of a method of one object."""

from collections.abc import Callable
from typing import Any


def wrap(owner: Any, method: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of this object by `around`; return a function that restores it."""
    original = getattr(owner, method)

    def call_around(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    before = vars(owner).get(method)
    setattr(owner, method, call_around)

    def restore() -> None:
        if before is None:
            delattr(owner, method)
        else:
            setattr(owner, method, before)

    return restore
