"""Puts something around a method of one object, and takes it away again."""

from collections.abc import Callable
from typing import Any


def wrap(owner: Any, method: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Put `around` in a method's place on this one object, and gives what undoes it."""
    original = getattr(owner, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    before = vars(owner).get(method)
    setattr(owner, method, wrapped)

    def restore() -> None:
        if before is None:
            delattr(owner, method)
        else:
            setattr(owner, method, before)

    return restore
