"""Abilities of each kind of upstream, as data.

Requests are checked against them, and the table of docs/sidecar.md is made from them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Language
from whence_server.domain.decoding import DECODING_OPTIONS, Strategy
from whence_server.domain.errors import FieldViolation, InvalidRequestError, NotOfferedError
from whence_server.domain.observation import Distribution
from whence_server.engines.upstream.exchange import UpstreamRequest


@dataclass(frozen=True, slots=True)
class Shown:
    """Parts of a record that a kind of upstream shows, in words, for the docs; "" for nothing."""

    ids: str
    """Generated token ids."""
    prompt: str
    logprobs: str
    candidates: str
    finish: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Abilities of a kind of upstream."""

    kind: str
    title: str
    options: Mapping[str, str]
    """Field of a request by the option of `Decoding`; other options are refused."""
    shown: Shown
    distribution: Distribution | None
    """Distribution behind its logprobs; None where a probe has to find it."""
    max_candidates: int
    max_seed: int
    takes_token_ids: bool = False
    takes_template_arguments: bool = False
    """True if a chat can have arguments of its template."""
    no_forced: str = "its API has no field for it"
    """Reason why it cannot continue a prompt with given tokens and tell their logprobs."""
    min_temperature: float = 0.0
    """Smallest temperature that it applies: it replaces smaller ones by this in silence."""
    max_logit_bias: float | None = None
    """Largest amount of a logit bias, up or down; None for any."""
    constraints: frozenset[Language] = frozenset()
    reserved: frozenset[str] = frozenset()
    """Fields of the caller that are refused, as they would change the form of the answer."""
    neutral_fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields sent with every request unless the caller sets them, as the upstream's own defaults
    would change the distribution."""

    def check(self, request: UpstreamRequest, max_candidates: int) -> None:
        """Refuse what this kind of upstream cannot do.

        Raises:
            InvalidRequestError: names each option.
            NotOfferedError: the strategy is none of its own.
        """
        decoding = request.decoding
        if decoding.strategy not in {Strategy.GREEDY, Strategy.SAMPLE}:
            reason = f": {self.no_forced}" if decoding.strategy is Strategy.FORCED else ""
            raise NotOfferedError(
                f"the upstream ({self.title}) offers no `{decoding.strategy.value}`{reason}; ask "
                "for `greedy` or `sample`"
            )
        violations = [
            *self._check_options(request),
            *self._check_prompt(request),
            *(
                FieldViolation(
                    name,
                    f"the upstream ({self.title}) may not be asked for it through "
                    "whence: it would change the form of the answer that whence reads",
                )
                for name in sorted(self.reserved & set(request.passed_on))
            ),
        ]
        if (request.num_candidates or 0) > max_candidates:
            violations.append(
                FieldViolation(
                    "trace.num_candidates",
                    f"must be at most {max_candidates} for the upstream ({self.title}), not "
                    f"{request.num_candidates}",
                )
            )
        if violations:
            raise InvalidRequestError(*violations)

    def _check_options(self, request: UpstreamRequest) -> list[FieldViolation]:
        violations = []
        for option in DECODING_OPTIONS:
            value = getattr(request.decoding, option.name)
            if value == option.neutral or option.neutral is dataclasses.MISSING:
                continue
            if option.name == "seed" and value > self.max_seed:
                violations.append(
                    FieldViolation(
                        option.path,
                        f"must be at most {self.max_seed} for the upstream ({self.title})",
                    )
                )
            elif option.name == "temperature" and value < self.min_temperature:
                violations.append(
                    FieldViolation(
                        option.path,
                        f"must be at least {self.min_temperature:g} for the upstream "
                        f"({self.title}), which would apply that in its place; or ask for `greedy`",
                    )
                )
            elif option.name == "constraint":
                if value.language not in self.constraints:
                    violations.append(self._refuse(f"{option.path}.{value.language.value}"))
            elif option.name == "add_special_tokens":
                if isinstance(request.prompt, str) and option.name not in self.options:
                    violations.append(self._refuse(option.path))
            elif option.name not in self.options:
                violations.append(self._refuse(option.path))
            elif option.name == "logit_bias" and not self._takes_biases(value):
                violations.append(
                    FieldViolation(
                        option.path,
                        f"must be from -{self.max_logit_bias:g} to {self.max_logit_bias:g} for the "
                        f"upstream ({self.title})",
                    )
                )
        return violations

    def _takes_biases(self, biases: tuple[tuple[int, float], ...]) -> bool:
        most = self.max_logit_bias
        return most is None or all(abs(bias) <= most for _, bias in biases)

    def _check_prompt(self, request: UpstreamRequest) -> list[FieldViolation]:
        prompt = request.prompt
        if isinstance(prompt, tuple):
            return [] if self.takes_token_ids else [self._refuse("prompt_token_ids")]
        if not isinstance(prompt, ChatInput):
            return []
        violations = []
        if prompt.template_name:
            violations.append(self._refuse("chat.template_name"))
        if prompt.template_arguments_json and not self.takes_template_arguments:
            violations.append(self._refuse("chat.template_arguments_json"))
        return violations

    def _refuse(self, path: str) -> FieldViolation:
        return FieldViolation(path, f"the upstream ({self.title}) cannot apply it; leave it unset")
