"""Answers of llama.cpp's server.

The server sends no token of a text that ends inside of a character, and in a chat none that its
parser holds back, nor the one that ends the sequence. Of these, nothing but their number is known.
"""

from typing import Any

from whence_server.domain.decoding import FinishReason
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamChunk,
    UpstreamEvent,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.openai_form.answers import OpenAIAnswer
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.tables import make_table
from whence_server.engines.upstream.wire.documents import (
    check_logprob,
    get_bytes,
    get_count,
    get_object,
    get_objects,
    get_text,
    get_token_ids,
    parse_object,
    quote,
)
from whence_server.engines.upstream.wire.events import Event
from whence_server.engines.upstream.wire.refusals import is_error, make_stream_error

FLOOR = -3.4e38
"""A probability of 0 is sent as the smallest number of 32 bits."""

_RANDOM_SEED = 2**32 - 1
"""Stands for a seed that the server draws and does not tell."""

_FINISHES = {
    "eos": FinishReason.END_OF_SEQUENCE,
    "word": FinishReason.STOP,
    "limit": FinishReason.LENGTH,
}


class CompletionAnswer:
    """Reader of an answer of /completion.

    Args:
        progress: its progress.
        tokens: reader of its tokens.
        name: the upstream, for errors.
    """

    def __init__(self, progress: Progress, tokens: "ShownTokens", name: str) -> None:
        self._progress = progress
        self._tokens = tokens
        self._name = name

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the part of the answer that one server-sent event has.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """
        document = parse_object(event.data, "event")
        if event.name == "error" or is_error(document):
            raise make_stream_error(self._name, document)
        index = self._progress.check_index(document.get("index", 0))
        text = get_text(document, "content", "")
        tokens = self._tokens.read_completion(index, document, text)
        finish, stop = None, ""
        if document.get("stop") is True:
            finish, stop = self._read_end(index, document)
            num_made = get_count(document, "tokens_predicted", "")
            tokens += self._tokens.complete(index, num_made)
        if not (text or tokens or finish):
            return []
        return [UpstreamChunk(index, text, tokens, finish, stop)]

    def finish(self) -> list[UpstreamEvent]:
        """Return the end of the answer.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """
        return [self._progress.end()]

    def _read_end(self, index: int, document: dict[str, Any]) -> tuple[FinishReason, str]:
        self._progress.check_model(get_text(document, "model", ""))
        self._progress.finish(index)
        settings = get_object(document, "generation_settings", "")
        self._progress.add_generated(get_count(document, "tokens_predicted", "") or 0)
        self._progress.note(
            num_prompt_tokens=get_count(document, "tokens_evaluated", ""),
            seed=self._read_seed(settings) if index == 0 else None,
        )
        self._tokens.note_timings(document, self._progress)
        kind = get_text(document, "stop_type", "")
        finish = _FINISHES.get(kind)
        if finish is None:
            return FinishReason.STOP, quote(kind)
        return finish, get_text(document, "stopping_word", "")

    def _read_seed(self, settings: dict[str, Any]) -> int | None:
        seed = get_count(settings, "seed", "generation_settings.")
        return None if seed == _RANDOM_SEED else seed


class ChatAnswer(OpenAIAnswer):
    """Reader of an answer of a chat.

    Args:
        request: the generation as it was asked for.
        progress: its progress.
        tokens: reader of its tokens.
        name: the upstream, for errors.
    """

    def __init__(
        self, request: UpstreamRequest, progress: Progress, tokens: "ShownTokens", name: str
    ) -> None:
        super().__init__(request, progress, tokens.read_chat, name, sums_usage=True)
        self._progress = progress
        self._tokens = tokens
        self._ending: UpstreamChunk | None = None

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the parts of the answer that one server-sent event has.

        The number of a sequence's tokens comes right after its finish reason, which waits for it.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """
        events = super().read(event)
        if self._ending is not None:
            events = [*self._end_sequence(), *events]
        last = events[-1] if events else None
        if isinstance(last, UpstreamChunk) and last.finish is not None:
            self._ending = last
            events.pop()
        return events

    def finish(self) -> list[UpstreamEvent]:
        """Return what is left, and the end of the answer.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """
        return [*self._end_sequence(), *super().finish()]

    def note(self, document: dict[str, Any]) -> None:
        """Note the server's own figures, which come in the last event of a sequence."""
        self._tokens.note_timings(document, self._progress)
        ending = self._ending
        if ending is not None and not get_objects(document, "choices", ""):
            num_made = _count_made(document)
            hidden = self._tokens.complete(ending.sequence_index, num_made)
            self._ending = ending._replace(tokens=ending.tokens + hidden)

    def _end_sequence(self) -> list[UpstreamEvent]:
        ending, self._ending = self._ending, None
        return [] if ending is None else [ending]


class ShownTokens:
    """Reader of the tokens that the server shows, which counts those that it does not.

    Args:
        num_candidates: number of candidates that the record has; None for no logprobs.
        are_shown: False if the answer has no tokens at all, but only text.
    """

    def __init__(self, num_candidates: int | None, *, are_shown: bool = True) -> None:
        self._num_candidates = num_candidates
        self._are_shown = are_shown
        self._num_read: dict[int, int] = {}

    def read_completion(
        self, index: int, document: dict[str, Any], text: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a chunk of /completion."""
        token_ids = get_token_ids(document, "tokens", "") or ()
        entries = get_objects(document, "completion_probabilities", "")
        num_made = get_count(document, "tokens_predicted", "")
        shown = self._read_entries(entries, "completion_probabilities") or [
            UpstreamToken(text, token_id) for token_id in token_ids
        ]
        return self._count(index, num_made, shown)

    def read_chat(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a chat's chunk."""
        del text
        entries = get_objects(get_object(choice, "logprobs", path), "content", f"{path}logprobs.")
        num_made = _count_made(document)
        shown = self._read_entries(entries, f"{path}logprobs.content")
        return self._count(get_count(choice, "index", path) or 0, num_made, shown)

    def note_timings(self, document: dict[str, Any], progress: Progress) -> None:
        """Note figures of the server's own."""
        timings = get_object(document, "timings", "")
        progress.note(
            num_cached_prompt_tokens=get_count(timings, "cache_n", "timings."),
            has_drafted_tokens=bool(get_count(timings, "draft_n", "timings.")) or None,
        )

    def complete(self, index: int, num_made: int | None) -> tuple[UpstreamToken, ...]:
        """Return the tokens that a sequence has and did not show, at its end."""
        if not self._are_shown:
            return ()
        num_hidden = max((num_made or 0) - self._num_read.get(index, 0), 0)
        self._num_read[index] = self._num_read.get(index, 0) + num_hidden
        return (UpstreamToken(""),) * num_hidden

    def _count(
        self, index: int, num_made: int | None, shown: list[UpstreamToken]
    ) -> tuple[UpstreamToken, ...]:
        """Return the shown tokens after those that were held back before them."""
        if not shown:
            return ()
        num_read = self._num_read.get(index, 0)
        num_held_back = 0 if num_made is None else max(num_made - num_read - len(shown), 0)
        self._num_read[index] = num_read + num_held_back + len(shown)
        return (*[UpstreamToken("")] * num_held_back, *shown)

    def _read_entries(self, entries: list[dict[str, Any]], path: str) -> list[UpstreamToken]:
        return [self._read_entry(entry, f"{path}[{place}].") for place, entry in enumerate(entries)]

    def _read_entry(self, entry: dict[str, Any], path: str) -> UpstreamToken:
        token_id = get_count(entry, "id", path)
        text = get_text(entry, "token", path)
        if self._num_candidates is None:
            return UpstreamToken(text, token_id)
        candidates = [
            candidate
            for place, top in enumerate(get_objects(entry, "top_logprobs", path))
            if (candidate := _read_candidate(top, f"{path}top_logprobs[{place}]."))
        ]
        if not candidates:
            # A drafted token that was accepted: its logprob of 0 is none that was computed.
            return UpstreamToken(text, token_id)
        logprob = check_logprob(entry.get("logprob"), f"{path}logprob", FLOOR)
        chosen = UpstreamCandidate("", logprob or 0.0, token_id)
        num_asked = max(self._num_candidates, 1)
        table = make_table(candidates, chosen, self._num_candidates, num_asked)
        # `bytes` of the entry are those of the chunk; the token's own are in the table.
        raw_bytes = next((c.raw_bytes for c in candidates if c.token_id == token_id), None)
        return UpstreamToken(text, token_id, raw_bytes, logprob, table.rank, table.candidates)


def _count_made(document: dict[str, Any]) -> int | None:
    return get_count(get_object(document, "timings", ""), "predicted_n", "timings.")


def _read_candidate(top: dict[str, Any], path: str) -> UpstreamCandidate | None:
    logprob = check_logprob(top.get("logprob"), f"{path}logprob", FLOOR)
    if logprob is None:
        return None
    raw_bytes = get_bytes(top, "bytes", path)
    # `token` lacks bytes that are no text by themselves.
    text = raw_bytes.decode("utf-8", "replace") if raw_bytes else get_text(top, "token", path)
    return UpstreamCandidate(text, logprob, get_count(top, "id", path), raw_bytes)
