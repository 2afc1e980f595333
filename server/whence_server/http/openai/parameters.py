"""Parameters of a request's body: taken one by one, so that none is left over unread."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from whence_server.domain.errors import FieldViolation, InvalidRequestError

_MAX_INTEGER = 2**64 - 1


class Parameters:
    """The parameters of one request; faults are collected, and raised together.

    A parameter that is null counts as not given, as in OpenAI's API.

    Args:
        given: the JSON object.
        path: path of the object in the request's body, with a dot at its end; "" for the body.
        violations: list to which faults are added.
        passes_on: True if parameters that whence does not know are for an upstream.
        passes_on_tools: True if the upstream also renders conversations, and reads tool calls.

    Attributes:
        passes_on_tools: see above.
        passed_on: parameters for the upstream.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        path: str = "",
        violations: list[FieldViolation] | None = None,
        *,
        passes_on: bool = False,
        passes_on_tools: bool = False,
    ) -> None:
        self.passes_on_tools = passes_on_tools
        self._passes_on = passes_on
        self.passed_on: dict[str, Any] = {}
        self._given = {name: value for name, value in given.items() if value is not None}
        self._path = path
        self._known: list[str] = []
        self.violations: list[FieldViolation] = [] if violations is None else violations

    def add_fault(self, name: str, rule: str) -> None:
        """Add a fault of a parameter; the rule says what it must be."""
        self.violations.append(FieldViolation(self._path + name, rule))

    def take(self, name: str) -> Any:
        """Return a parameter of any type; None if it is not given."""
        self._known.append(name)
        return self._given.pop(name, None)

    def peek(self, name: str) -> Any:
        """Return a parameter without taking it; None if it is not given."""
        return self._given.get(name)

    def take_text(self, name: str) -> str | None:
        """Return a string."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        self.add_fault(name, f"must be a string, not {_describe(value)}")
        return None

    def take_flag(self, name: str) -> bool:
        """Return a boolean; False if it is not given."""
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.add_fault(name, f"must be true or false, not {_describe(value)}")
        return False

    def take_integer(self, name: str, lowest: int = 0, highest: int = _MAX_INTEGER) -> int | None:
        """Return an integer within bounds."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            told = value if isinstance(value, (int, float)) else _describe(value)
            self.add_fault(name, f"must be an integer from {lowest} to {highest}, not {told}")
            return None
        return value

    def take_number(self, name: str, lowest: float, highest: float) -> float | None:
        """Return a number within bounds."""
        value = self.take(name)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not lowest <= value <= highest
        ):
            told = value if isinstance(value, (int, float)) else _describe(value)
            self.add_fault(name, f"must be a number from {lowest:g} to {highest:g}, not {told}")
            return None
        return float(value)

    def take_texts(self, name: str) -> list[str]:
        """Return a list of strings, or one string as a list of one; [] if it is not given."""
        value = self.take(name)
        texts = [value] if isinstance(value, str) else value
        if texts is None:
            return []
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return texts
        self.add_fault(name, f"must be a string or a list of strings, not {_describe(value)}")
        return []

    def take_list(self, name: str) -> list[Any]:
        """Return a list; [] if it is not given."""
        value = self.take(name)
        if value is None or isinstance(value, list):
            return value or []
        self.add_fault(name, f"must be a list, not {_describe(value)}")
        return []

    def take_object(self, name: str) -> "Parameters":
        """Return the parameters of an object; none if it is not given."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            self.add_fault(name, f"must be an object, not {_describe(value)}")
            value = None
        return Parameters(value or {}, f"{self._path}{name}.", self.violations)

    def take_mapping(self, name: str) -> Mapping[str, str]:
        """Return an object whose values are strings; {} if it is not given."""
        value = self.take(name)
        if value is None:
            return {}
        if isinstance(value, dict) and all(isinstance(it, str) for it in value.values()):
            return value
        self.add_fault(name, f"must be an object whose values are strings, not {_describe(value)}")
        return {}

    def expect(self, name: str, *allowed: object) -> None:
        """Add a fault if a parameter is given and has none of the values that change nothing."""
        value = self.take(name)
        if value is None or any(value == it and type(value) is type(it) for it in allowed):
            return
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value in allowed:
            return
        told = " or ".join(_spell(it) for it in allowed)
        self.add_fault(name, f"is not offered{f', but for {told}' if told else ''}")

    def pass_on(self, name: str, *allowed: object) -> None:
        """Take a parameter for the upstream; without one, see `expect`."""
        if not self._passes_on:
            self.expect(name, *allowed)
        elif (value := self.take(name)) is not None:
            self.passed_on[name] = value

    def pass_on_as(
        self, name: str, holder: "Parameters", inner_name: str, *allowed: object
    ) -> None:
        """Take a parameter of an object for the upstream, which has another name for it."""
        if not self._passes_on:
            holder.expect(inner_name, *allowed)
        elif (value := holder.take(inner_name)) is not None:
            self.passed_on[name] = value

    def refuse_unknown(self) -> None:
        """Add a fault for each parameter that was not taken, or pass it on to the upstream."""
        if self._passes_on:
            self.passed_on |= self._given
            return
        for name in self._given:
            near = get_close_matches(name, self._known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.add_fault(name, f"is not a parameter that this server knows{hint}")

    def raise_faults(self) -> None:
        """Raise the faults that were found.

        Raises:
            InvalidRequestError: there are some.
        """
        if self.violations:
            raise InvalidRequestError(*self.violations)


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Sequence):
        return "a list"
    if isinstance(value, bool):
        return "a boolean"
    return "a number"


def _spell(value: object) -> str:
    return (
        {True: "true", False: "false"}.get(value, repr(value))
        if isinstance(value, bool)
        else (f'"{value}"' if isinstance(value, str) else repr(value))
    )
