"""Tokens of vLLM's answers."""

from typing import Any

from whence_server.domain.errors import UpstreamMalformedError
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.tables import make_table
from whence_server.engines.upstream.wire.documents import (
    check_logprob,
    get_bytes,
    get_list,
    get_object,
    get_objects,
    get_text,
    get_token_ids,
)

_FLOOR = -9999.0
"""Logprob that stands for "less than", as JSON has no infinity."""
_ID_PREFIX = "token_id:"


class VllmTokens:
    """Reader of the tokens of a choice.

    Args:
        request: the generation as it was asked for.
        num_asked: number of candidates that were asked for; None for no logprobs.
    """

    def __init__(self, request: UpstreamRequest, num_asked: int | None) -> None:
        self._num_wanted = request.num_candidates or 0
        self._num_asked = num_asked
        # Text that could begin a stop string is held back: it comes with later tokens.
        self._holds_text = bool(request.decoding.stop)

    def read_chat(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a chat's chunk."""
        del document
        token_ids = get_token_ids(choice, "token_ids", path)
        entries = get_objects(get_object(choice, "logprobs", path), "content", f"{path}logprobs.")
        if self._num_asked is None or (not entries and not token_ids):
            return self._make_plain_tokens(token_ids or (), text)
        where = f"{path}logprobs.content"
        _check_lengths(token_ids, len(entries), path)
        tokens = []
        for number, entry in enumerate(entries):
            at = f"{where}[{number}]."
            token_id = token_ids[number] if token_ids else _read_id(get_text(entry, "token", at))
            candidates = [
                candidate
                for place, top in enumerate(get_objects(entry, "top_logprobs", at))
                if (
                    candidate := _make_candidate(
                        get_text(top, "token", at),
                        top.get("logprob"),
                        f"{at}top_logprobs[{place}].logprob",
                    )
                )
            ]
            logprob = check_logprob(entry.get("logprob"), f"{at}logprob", _FLOOR)
            # The bytes are those of the text that the token completes.
            spelled = get_bytes(entry, "bytes", at)
            token_text = spelled.decode("utf-8", "replace") if spelled else ""
            tokens.append(
                self._make_token(token_text, token_id, logprob, candidates, displaces=True)
            )
        return tuple(tokens)

    def read_completion(
        self, document: dict[str, Any], choice: dict[str, Any], text: str, path: str
    ) -> tuple[UpstreamToken, ...]:
        """Return the tokens of a completion's chunk."""
        del document
        token_ids = get_token_ids(choice, "token_ids", path)
        logprobs = get_object(choice, "logprobs", path)
        path = f"{path}logprobs."
        spelled = get_list(logprobs, "tokens", path)
        if self._num_asked is None or (not spelled and not token_ids):
            return self._make_plain_tokens(token_ids or (), text)
        _check_lengths(token_ids, len(spelled), path)
        values = get_list(logprobs, "token_logprobs", path)
        tables = get_list(logprobs, "top_logprobs", path)
        if len(values) != len(spelled) or len(tables) not in {0, len(spelled)}:
            raise UpstreamMalformedError(
                f"the lists in `{path}` of the upstream's answer must have one length; they have "
                f"{len(spelled)}, {len(values)} and {len(tables)} entries"
            )
        tokens = []
        for number, spelling in enumerate(spelled):
            token_id = token_ids[number] if token_ids else _read_id(str(spelling))
            table = tables[number] if tables else None
            candidates = [
                candidate
                for token, value in (table.items() if isinstance(table, dict) else ())
                if (candidate := _make_candidate(token, value, f"{path}top_logprobs[{number}]"))
            ]
            logprob = check_logprob(values[number], f"{path}token_logprobs[{number}]", _FLOOR)
            token_text = self._choose_text(text, len(spelled))
            tokens.append(self._make_token(token_text, token_id, logprob, candidates))
        return tuple(tokens)

    def _make_plain_tokens(
        self, token_ids: tuple[int, ...], text: str
    ) -> tuple[UpstreamToken, ...]:
        """Return tokens of which only the ids are known."""
        token_text = self._choose_text(text, len(token_ids))
        return tuple(UpstreamToken(token_text, token_id) for token_id in token_ids)

    def _choose_text(self, text: str, num_tokens: int) -> str:
        """Return the text of each token of a chunk; "" if the chunk does not tell."""
        return text if num_tokens == 1 and not self._holds_text else ""

    def _make_token(
        self,
        text: str,
        token_id: int | None,
        logprob: float | None,
        candidates: list[UpstreamCandidate],
        *,
        displaces: bool = False,
    ) -> UpstreamToken:
        chosen = None if logprob is None else UpstreamCandidate("", logprob, token_id)
        table = make_table(
            candidates, chosen, self._num_wanted, self._num_asked or 0, displaces=displaces
        )
        return UpstreamToken(text, token_id, None, logprob, table.rank, table.candidates)


def _make_candidate(token: str, value: object, path: str) -> UpstreamCandidate | None:
    logprob = check_logprob(value, path, _FLOOR)
    if logprob is None:
        return None
    token_id = _read_id(token)
    return UpstreamCandidate("" if token_id is not None else token, logprob, token_id)


def _read_id(token: str) -> int | None:
    """Return N of "token_id:N"; None for a token by its text."""
    digits = token.removeprefix(_ID_PREFIX)
    if digits != token and digits.isascii() and digits.isdecimal() and len(digits) < 10:
        return int(digits)
    return None


def _check_lengths(token_ids: tuple[int, ...] | None, num_logprobs: int, path: str) -> None:
    if token_ids is not None and len(token_ids) != num_logprobs:
        raise UpstreamMalformedError(
            f"`{path}` of the upstream's answer has {len(token_ids)} token ids and logprobs of "
            f"{num_logprobs} tokens; they must be as many"
        )
