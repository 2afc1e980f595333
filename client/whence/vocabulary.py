"""Texts and bytes of token ids, because the server sends candidates as ids."""

import time
from collections.abc import Callable, Iterator
from typing import overload

from whence.backoff import Backoff
from whence.deadline import Deadline
from whence.errors import WhenceError
from whence.resume import Response, make_unreadable_error
from whence.summary import decode_token
from whence.v1.model_pb2 import GetVocabularyRequest, GetVocabularyResponse


class Vocabulary:
    """A tokenizer's tokens by id.

    Ids beyond the tokenizer's own, which padded models have, have no bytes and no text.
    """

    def __init__(self, tokens: tuple[bytes, ...]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._tokens)

    @overload
    def __getitem__(self, token_id: int) -> bytes: ...
    @overload
    def __getitem__(self, token_id: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, token_id: int | slice) -> bytes | tuple[bytes, ...]:
        return self._tokens[token_id]

    def bytes_of(self, token_id: int) -> bytes:
        """Return the token's bytes, which may not be valid UTF-8 by themselves."""
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else b""

    def text_of(self, token_id: int) -> str:
        """Return the token as readable text: bytes that are not UTF-8 are named: "<0xF0 0x9F>"."""
        return decode_token(self.bytes_of(token_id))


class VocabularyBuilder:
    """Builder of a vocabulary from the parts in which it is streamed."""

    def __init__(self) -> None:
        self._tokens: list[bytes] = []

    def add(self, part: GetVocabularyResponse) -> None:
        """Add the next part, or one that was added before; ids in no part have no bytes."""
        missing = part.first_token_id + len(part.tokens) - len(self._tokens)
        self._tokens.extend([b""] * missing)
        self._tokens[part.first_token_id : part.first_token_id + len(part.tokens)] = part.tokens

    def build(self) -> Vocabulary:
        """Return the vocabulary of all parts so far."""
        return Vocabulary(tuple(self._tokens))


class VocabularyStream:
    """Stream of a vocabulary's parts, from the first one again after a broken connection.

    The call ends with OK only after its last part.
    """

    def __init__(
        self,
        request: GetVocabularyRequest,
        backoff: Backoff,
        *,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._backoff = backoff
        self._deadline = Deadline(timeout_s, clock=clock)
        self._num_tokens = 0
        self._complete = False

    @property
    def complete(self) -> bool:
        """True after the last part."""
        return self._complete

    def prepare_call(self) -> tuple[GetVocabularyRequest, float | None]:
        """Return the same call every time: it has no position from which to continue."""
        return self._request, self._deadline.left_s

    def receive(self, response: Response) -> GetVocabularyResponse:
        """Return the next part."""
        if not isinstance(response, GetVocabularyResponse):
            raise make_unreadable_error(response)
        num_tokens = response.first_token_id + len(response.tokens)
        if num_tokens > self._num_tokens:
            self._num_tokens = num_tokens
            self._backoff.restart()
        return response

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds to wait, at most until the deadline."""
        self._complete = error is None
        if error is None:
            return 0.0
        self._deadline.check(error)
        return self._deadline.limit(self._backoff.choose_delay_s(error))
