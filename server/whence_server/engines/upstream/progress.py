"""Progress of an answer: sequences that have ended, and the figures of its end."""

import re
from typing import Any

from whence_server.domain.decoding import FinishReason
from whence_server.domain.errors import (
    UpstreamMalformedError,
    UpstreamModelError,
    UpstreamUnfinishedError,
)
from whence_server.engines.upstream.exchange import UpstreamEnd, UpstreamRequest
from whence_server.engines.upstream.wire.documents import get_count, get_object, get_text, quote

_VERSION = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{3})")
"""Date or number of a version: gpt-4o-2024-08-06, gpt-4-0613, gemini-1.5-pro-002."""


class Progress:
    """Progress of one answer.

    Args:
        request: the generation as it was asked for.
        name: the upstream, for errors.
        model: name of the model that was asked for.
        is_model_exact: True if the answer must name the same model; False if it may name a version
            of it.
    """

    def __init__(
        self, request: UpstreamRequest, name: str, model: str, *, is_model_exact: bool = True
    ) -> None:
        self._num_sequences = request.decoding.num_return_sequences
        self._name = name
        self._model = model
        self._is_model_exact = is_model_exact
        self._finished: set[int] = set()
        self._end = UpstreamEnd()

    def check_index(self, index: object) -> int:
        """Return the index of a sequence.

        Raises:
            UpstreamMalformedError: there is no such sequence, or it has ended.
        """
        if isinstance(index, bool) or not isinstance(index, int):
            raise UpstreamMalformedError(f"{self._name} sent a choice without an index")
        if not 0 <= index < self._num_sequences:
            raise UpstreamMalformedError(
                f"{self._name} sent a choice with index {index}; {self._num_sequences} were asked "
                "for, from 0 on"
            )
        return index

    def is_finished(self, index: int) -> bool:
        """Return whether a sequence has ended."""
        return index in self._finished

    def finish(self, index: int) -> None:
        """Note the end of a sequence."""
        self._finished.add(index)

    def check_model(self, model: str) -> None:
        """Note the model that an answer names.

        Raises:
            UpstreamModelError: it is not the one that was asked for.
        """
        if not model or model == self._end.model:
            return
        if model != self._model and (self._is_model_exact or not _is_version(model, self._model)):
            raise UpstreamModelError(
                f"{self._name} answered with the model {quote(model)!r}, not with "
                f"{quote(self._model)!r}, which it was asked for; name the model that it serves "
                "(--upstream-model)"
            )
        self._end = self._end._replace(model=model)

    def note(self, **figures: Any) -> None:
        """Note figures of the end; None and "" leave what is known."""
        known = {key: value for key, value in figures.items() if value not in {None, ""}}
        self._end = self._end._replace(**known)

    def add_generated(self, num_tokens: int) -> None:
        """Add the tokens of one sequence to those of the answer."""
        known = self._end.num_generated_tokens or 0
        self._end = self._end._replace(num_generated_tokens=known + num_tokens)

    def note_usage(self, document: dict[str, Any], *, sums: bool = False) -> None:
        """Note the `usage` and `system_fingerprint` of a document in OpenAI's form.

        Args:
            document: one piece of the answer.
            sums: True if each sequence has a usage of its own.
        """
        self.note(fingerprint=get_text(document, "system_fingerprint", "")[:256])
        usage = get_object(document, "usage", "")
        if not usage:
            return
        num_generated = get_count(usage, "completion_tokens", "usage.")
        if sums:
            self.add_generated(num_generated or 0)
            num_generated = None
        details = get_object(usage, "prompt_tokens_details", "usage.")
        self.note(
            num_prompt_tokens=get_count(usage, "prompt_tokens", "usage."),
            num_generated_tokens=num_generated,
            num_cached_prompt_tokens=get_count(
                details, "cached_tokens", "usage.prompt_tokens_details."
            ),
        )

    def end(self) -> UpstreamEnd:
        """Return the figures of the end.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """
        missing = self._num_sequences - len(self._finished)
        if missing:
            raise UpstreamUnfinishedError(
                f"{self._name} ended its answer, and {missing} of {self._num_sequences} sequences "
                "have no finish reason; it may have been stopped"
            )
        return self._end


def read_finish(reason: str, *, has_stops: bool) -> tuple[FinishReason, str]:
    """Return a finish reason in OpenAI's words, and the name of an end that is none of them.

    "stop" is the end of the sequence as well as a stop string; an upstream that does not say which
    is taken to have met a stop string if the request has any.
    """
    if reason == "length":
        return FinishReason.LENGTH, ""
    if reason == "stop":
        return (FinishReason.STOP if has_stops else FinishReason.END_OF_SEQUENCE), ""
    if reason in {"tool_calls", "function_call"}:
        return FinishReason.END_OF_SEQUENCE, ""
    # For example a filter of content, which ended the text though the model would have gone on.
    return FinishReason.STOP, quote(reason)


def _is_version(model: str, asked: str) -> bool:
    """Return whether a model's name is the one asked for, or a dated version of it.

    One of the names may lack the part before the last slash, which names who made the model.
    """
    maker, _, name = model.rpartition("/")
    asked_maker, _, asked_name = asked.rpartition("/")
    if maker and asked_maker and maker != asked_maker:
        return False
    version = name.removeprefix(asked_name.removesuffix("-latest"))
    return name == asked_name or (version != name and _VERSION.fullmatch(version) is not None)
