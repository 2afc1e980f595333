"""Tokens of answers in OpenAI's form that have texts and no ids."""

from typing import Any

from whence_server.domain.errors import UpstreamMalformedError
from whence_server.engines.upstream.exchange import UpstreamCandidate, UpstreamToken
from whence_server.engines.upstream.tables import make_table
from whence_server.engines.upstream.wire.documents import (
    check_logprob,
    get_bytes,
    get_list,
    get_object,
    get_objects,
    get_text,
)

FLOOR = -9999.0
"""Logprob that stands for "less than": OpenAI's own and vLLM's, as JSON has no infinity."""


class TextTokens:
    """Reader of the tokens of a choice.

    Args:
        num_candidates: number of candidates that the record has; None for no logprobs.
    """

    def __init__(self, num_candidates: int | None) -> None:
        self._num_candidates = num_candidates

    def read_chat(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a chat's chunk."""
        del document, text
        if self._num_candidates is None:
            return ()
        logprobs = get_object(choice, "logprobs", path)
        path = f"{path}logprobs."
        entries = get_objects(logprobs, "content", path) or get_objects(logprobs, "refusal", path)
        return self.read_entries(entries, f"{path}content")

    def read_entries(self, entries: list[dict[str, Any]], path: str) -> tuple[UpstreamToken, ...]:
        """Return tokens that are objects with `token`, `logprob`, `bytes` and `top_logprobs`."""
        tokens = []
        for number, entry in enumerate(entries):
            at = f"{path}[{number}]."
            logprob = check_logprob(entry.get("logprob"), f"{at}logprob", FLOOR)
            candidates = [
                UpstreamCandidate(
                    get_text(top, "token", below), value, None, _read_bytes(top, below)
                )
                for place, top in enumerate(get_objects(entry, "top_logprobs", at))
                if (below := f"{at}top_logprobs[{place}].")
                and (value := check_logprob(top.get("logprob"), f"{below}logprob", FLOOR))
                is not None
            ]
            raw_bytes = _read_bytes(entry, at)
            tokens.append(self._make(get_text(entry, "token", at), raw_bytes, logprob, candidates))
        return tuple(tokens)

    def read_completion(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a completion's chunk."""
        del document, text
        if self._num_candidates is None:
            return ()
        logprobs = get_object(choice, "logprobs", path)
        path = f"{path}logprobs."
        if "content" in logprobs:
            # Some servers give the chat's form here, too.
            return self.read_entries(get_objects(logprobs, "content", path), f"{path}content")
        texts = get_list(logprobs, "tokens", path)
        values = get_list(logprobs, "token_logprobs", path)
        tables = get_list(logprobs, "top_logprobs", path)
        if len(values) != len(texts) or len(tables) not in {0, len(texts)}:
            raise UpstreamMalformedError(
                f"the lists in `{path}` of the upstream's answer must have one length; they have "
                f"{len(texts)}, {len(values)} and {len(tables)} entries"
            )
        tokens = []
        for number, token_text in enumerate(texts):
            table = tables[number] if tables else None
            candidates = [
                UpstreamCandidate(spelled, value)
                for spelled, given in (table.items() if isinstance(table, dict) else ())
                if (value := check_logprob(given, f"{path}top_logprobs[{number}]", FLOOR))
                is not None
            ]
            logprob = check_logprob(values[number], f"{path}token_logprobs[{number}]", FLOOR)
            tokens.append(self._make(str(token_text), None, logprob, candidates))
        return tuple(tokens)

    def _make(
        self,
        text: str,
        raw_bytes: bytes | None,
        logprob: float | None,
        candidates: list[UpstreamCandidate],
    ) -> UpstreamToken:
        num_wanted = self._num_candidates or 0
        chosen = None if logprob is None else UpstreamCandidate(text, logprob, None, raw_bytes)
        table = make_table(candidates, chosen, num_wanted, num_wanted)
        return UpstreamToken(text, None, raw_bytes, logprob, table.rank, table.candidates)


def _read_bytes(entry: dict[str, Any], path: str) -> bytes | None:
    """Return a token's bytes, unless they are those of the sign for bytes that are no text."""
    raw_bytes = get_bytes(entry, "bytes", path)
    return None if raw_bytes is None or "\ufffd".encode() in raw_bytes else raw_bytes
