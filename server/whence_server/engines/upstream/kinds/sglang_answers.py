"""Answers of SGLang's /generate."""

from typing import Any

from whence_server.domain.decoding import FinishReason
from whence_server.domain.errors import UpstreamError, UpstreamMalformedError
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamChunk,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.progress import Progress, read_finish
from whence_server.engines.upstream.tables import make_table
from whence_server.engines.upstream.wire.documents import (
    check_logprob,
    check_token_id,
    get_count,
    get_list,
    get_object,
    get_text,
    get_token_ids,
    parse_object,
    quote,
)
from whence_server.engines.upstream.wire.events import Event
from whence_server.engines.upstream.wire.refusals import is_error, make_stream_error

_DONE = b"[DONE]"
_FLOOR = -1e30
_MAX_PARTS = 3


class GenerateAnswer:
    """Reader of one answer.

    The server sends either everything so far or what is new, as it was started; the number of
    tokens that it has made tells which.

    Args:
        request: the generation as it was asked for.
        progress: its progress.
        num_candidates: number of candidates that the record has; None for no logprobs.
        name: the upstream, for errors.
    """

    def __init__(
        self, request: UpstreamRequest, progress: Progress, num_candidates: int | None, name: str
    ) -> None:
        self._stop_token_ids = request.decoding.stop_token_ids
        self._progress = progress
        self._num_candidates = num_candidates
        self._name = name
        self._num_read: dict[int, int] = {}
        self._texts: dict[int, str] = {}
        self._has_prompt = False

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the parts of the answer that one server-sent event has.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """
        if event.data.strip() == _DONE:
            return []
        document = parse_object(event.data, "event")
        if is_error(document):
            raise make_stream_error(self._name, document)
        meta = get_object(document, "meta_info", "")
        index = self._progress.check_index(document.get("index", 0))
        events: list[UpstreamEvent] = []
        prompt_ids = get_token_ids(document, "prompt_token_ids", "") or get_token_ids(
            meta, "prompt_token_ids", "meta_info."
        )
        if prompt_ids and not self._has_prompt:
            self._has_prompt = True
            events.append(UpstreamPrompt(None, prompt_ids))
        tokens, is_cumulative = self._read_tokens(index, document, meta)
        text = self._cut_text(index, get_text(document, "text", ""), is_cumulative=is_cumulative)
        if len(tokens) == 1:
            tokens = (tokens[0]._replace(text=text),)
        finish, stop = self._read_finish(index, meta)
        if text or tokens or finish:
            events.append(UpstreamChunk(index, text, tokens, finish, stop))
        return events

    def finish(self) -> list[UpstreamEvent]:
        """Return the end of the answer.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """
        return [self._progress.end()]

    def _read_tokens(
        self, index: int, document: dict[str, Any], meta: dict[str, Any]
    ) -> tuple[tuple[UpstreamToken, ...], bool]:
        """Return the new tokens, and whether the lists hold all tokens so far."""
        path = "meta_info.output_token_logprobs"
        entries = get_list(meta, "output_token_logprobs", "meta_info.")
        tables = get_list(meta, "output_top_logprobs", "meta_info.")
        ids = get_token_ids(document, "output_ids", "") or tuple(
            _read_entry(entry, path)[1] for entry in entries
        )
        num_read = self._num_read.get(index, 0)
        num_made = get_count(meta, "completion_tokens", "meta_info.")
        num_new = len(ids) if num_made is None else num_made - num_read
        is_cumulative = num_read > 0 and num_made is not None and len(ids) == num_made
        if num_new < 0 or num_new > len(ids):
            raise UpstreamMalformedError(
                f"{self._name} says that it has made {num_made} tokens, and sends {len(ids)} after "
                f"{num_read}"
            )
        self._num_read[index] = num_read + num_new
        if not num_new:
            return (), is_cumulative
        new_entries = entries[-num_new:] if len(entries) >= num_new else [None] * num_new
        new_tables = tables[-num_new:] if len(tables) >= num_new else [None] * num_new
        # Some versions repeat the first table of a chunk for its other tokens.
        new_tables = [
            None if place and table == new_tables[0] else table
            for place, table in enumerate(new_tables)
        ]
        tokens = tuple(
            self._make_token(token_id, entry, table, path)
            for token_id, entry, table in zip(ids[-num_new:], new_entries, new_tables, strict=True)
        )
        return tokens, is_cumulative

    def _make_token(self, token_id: int, entry: Any, table: Any, path: str) -> UpstreamToken:
        if self._num_candidates is None or entry is None:
            return UpstreamToken("", token_id)
        value, entry_id, text = _read_entry(entry, path)
        if entry_id != token_id:
            raise UpstreamMalformedError(
                f"`{path}` of the upstream's answer is about token {entry_id}, not about {token_id}"
            )
        logprob = check_logprob(value, path, _FLOOR)
        chosen = None if logprob is None else UpstreamCandidate(text, logprob, token_id)
        candidates = []
        for top in table or ():
            top_value, top_id, top_text = _read_entry(top, "meta_info.output_top_logprobs")
            top_logprob = check_logprob(top_value, "meta_info.output_top_logprobs", _FLOOR)
            if top_logprob is not None:
                candidates.append(UpstreamCandidate(top_text, top_logprob, top_id))
        if table is None:
            return UpstreamToken(text, token_id, None, logprob)
        made = make_table(candidates, chosen, self._num_candidates, self._num_candidates)
        return UpstreamToken(text, token_id, None, logprob, made.rank, made.candidates)

    def _cut_text(self, index: int, text: str, *, is_cumulative: bool) -> str:
        before = self._texts.get(index, "")
        if not is_cumulative:
            self._texts[index] = before + text
            return text
        if not text.startswith(before):
            raise UpstreamMalformedError(
                f"{self._name} changed text that it had sent already: {quote(text)}"
            )
        self._texts[index] = text
        return text[len(before) :]

    def _read_finish(self, index: int, meta: dict[str, Any]) -> tuple[FinishReason | None, str]:
        reason = get_object(meta, "finish_reason", "meta_info.")
        if not reason or self._progress.is_finished(index):
            return None, ""
        kind = get_text(reason, "type", "meta_info.finish_reason.")
        if kind == "abort":
            message = get_text(reason, "message", "meta_info.finish_reason.")
            raise UpstreamError(f"{self._name} gave up the generation: {quote(message)}")
        self._progress.finish(index)
        self._progress.add_generated(get_count(meta, "completion_tokens", "meta_info.") or 0)
        self._progress.note(
            num_prompt_tokens=get_count(meta, "prompt_tokens", "meta_info."),
            num_cached_prompt_tokens=get_count(meta, "cached_tokens", "meta_info."),
            fingerprint=get_text(meta, "weight_version", "meta_info.")[:256],
        )
        matched = reason.get("matched")
        if kind == "stop" and matched is not None:
            if isinstance(matched, str) or matched in self._stop_token_ids:
                return FinishReason.STOP, quote(str(matched))
            return FinishReason.END_OF_SEQUENCE, ""
        return read_finish(kind, has_stops=False)


def _read_entry(entry: Any, path: str) -> tuple[Any, int, str]:
    """Return logprob, id and text of an entry."""
    if not isinstance(entry, list) or len(entry) != _MAX_PARTS:
        raise UpstreamMalformedError(
            f"`{path}` of the upstream's answer must have entries of logprob, id and text, not "
            f"{quote(repr(entry)[:80])}"
        )
    value, token_id, text = entry
    return value, check_token_id(token_id, path), text if isinstance(text, str) else ""
