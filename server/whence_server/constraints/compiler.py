"""Compilation of constraints for one model's vocabulary, within limits of time and memory."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from whence_server.constraints.errors import ConstraintError
from whence_server.constraints.explaining import explain_fault
from whence_server.constraints.grammars import translate
from whence_server.domain.constraints import Constraint

_MAX_STEP_ITEMS = 10_000
"""Items of the parser for one token: some 70 ms for the most ambiguous grammars."""
_MAX_LEXER_STATES = 50_000
"""States of a compiled constraint's lexer; about 1 kB each, shared by all its matchers."""
_LIMIT_EXCEEDED = re.compile(
    r"(?:parser|lexer) error: ((?:too many|current row has) .*)", re.IGNORECASE
)
_NOT_ALLOWED = "does not allow a token of the text"
_NUM_PROBED = 4
"""Tokens that are tried when a constraint is compiled: some fail with their first ones."""
_END = b"\xff<end>"
"""Name of the one token, beyond the vocabulary, that ends a text for llguidance."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Vocabulary of a model, and the form in which llguidance takes it.

    After the model's ids, llguidance has one more for the end of a text, and then the ids that
    stand for a token at the beginning of a text.

    Attributes:
        inside: bytes of each id inside a text, V in number.
        first_ids: the model's ids with other bytes at the beginning of a text.
        own_ids: the ids of these bytes in llguidance, by the model's ids.
        num_words: 32-bit words of a mask.
    """

    inside: Sequence[bytes]
    first_ids: npt.NDArray[np.int64]
    own_ids: Mapping[int, int]
    num_words: int

    @property
    def first_own_id(self) -> int:
        """The first id of `own_ids`."""
        return len(self.inside) + 1


class Matcher:
    """State of one text under a compiled constraint.

    Args:
        matcher: llguidance's state.
        vocabulary: the model's.
        begun: True if the text has a token.
    """

    __slots__ = ("_begun", "_matcher", "_vocabulary")

    def __init__(self, matcher: LLMatcher, vocabulary: _Vocabulary, *, begun: bool) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._begun = begun

    @property
    def is_complete(self) -> bool:
        """True if the text belongs to the language."""
        return bool(self._matcher.is_accepting())

    def copy(self) -> "Matcher":
        """Return a state that goes on independently."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, begun=self._begun)

    def select_ends(
        self, eos_token_ids: Iterable[int], stop_token_ids: Iterable[int]
    ) -> frozenset[int]:
        """Return the tokens that end a sequence and add nothing to its text.

        A stop token that adds text follows the language as any other token does.
        """
        inside = self._vocabulary.inside
        ends = {token_id for token_id in eos_token_ids if token_id < len(inside)}
        return frozenset(ends | {i for i in stop_token_ids if i < len(inside) and not inside[i]})

    def compute_mask(self) -> npt.NDArray[np.bool_]:
        """Return [V]: True for each token after which the text can still be completed.

        Raises:
            ConstraintError: the text exceeds a limit on the work for one token.
        """
        vocabulary = self._vocabulary
        words = np.zeros(vocabulary.num_words, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        # In an error state every mask allows the end alone.
        self._require_no_error()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
        mask = bits[: len(vocabulary.inside)]
        if not self._begun and vocabulary.first_ids.size:
            first = vocabulary.first_own_id
            mask[vocabulary.first_ids] = bits[first : first + vocabulary.first_ids.size]
        return mask

    def advance(self, token_ids: Sequence[int]) -> None:
        """Append tokens to the text.

        Raises:
            ConstraintError: the language does not allow them.
        """
        own = list(token_ids)
        if own and not self._begun:
            own[0] = self._vocabulary.own_ids.get(own[0], own[0])
            self._begun = True
        if not self._matcher.consume_tokens(own):
            self._require_no_error()

    def _require_no_error(self) -> None:
        if not self._matcher.is_error():
            return
        # Only errors about limits are shown: others may quote the text.
        error, reason = self._matcher.get_error(), self._matcher.stop_reason()
        limit = _LIMIT_EXCEEDED.match(error)
        if limit is not None:
            raise ConstraintError(f"takes too much work for one token: {limit[1]}")
        if "satisfy the grammar" in error or "NoExtension" in error:
            raise ConstraintError(_NOT_ALLOWED)
        raise ConstraintError(f"cannot be applied to the text: {reason}")


class ConstraintCompiler:
    """Compiler of constraints; it may be used by one thread at a time.

    Args:
        inside: bytes of each token inside a text, by id; b"" for a token that adds no text.
        first: bytes of the tokens that are different at the beginning of a text.
    """

    def __init__(self, inside: Sequence[bytes], first: Mapping[int, bytes]) -> None:
        end = len(inside)
        own_ids = {token_id: end + 1 + place for place, token_id in enumerate(first)}
        num_words = (end + 1 + len(own_ids) + 31) // 32
        self._vocabulary = _Vocabulary(inside, np.array([*first], np.int64), own_ids, num_words)
        own = _OwnTokens([*inside, _END, *first.values()], end)
        self._tokenizer = LLTokenizer(TokenizerWrapper(own))

    def compile(self, constraint: Constraint) -> Matcher:
        """Return the state of an empty text.

        The limits count work and not time, so that a constraint is refused everywhere or nowhere.

        Raises:
            ConstraintError: the constraint is wrong, too complex, or allows no text.
        """
        limits = LLParserLimits(
            step_max_items=_MAX_STEP_ITEMS,
            max_lexer_states=_MAX_LEXER_STATES,
            verbose_errors=False,
        )
        compiled = LLMatcher(self._tokenizer, translate(constraint), log_level=0, limits=limits)
        if compiled.is_error():
            raise ConstraintError(explain_fault(compiled.get_error(), constraint))
        matcher = Matcher(compiled, self._vocabulary, begun=False)
        _probe(matcher.copy())
        return matcher


def _probe(state: Matcher) -> None:
    """Write the first tokens of a text.

    Raises:
        ConstraintError: there is no text, or its first tokens take too much work.
    """
    for number in range(_NUM_PROBED):
        try:
            allowed = state.compute_mask().nonzero()[0]
        except ConstraintError as error:
            # llguidance finds out late that nothing can be written.
            if number or error.message != _NOT_ALLOWED:
                raise
            allowed = np.empty(0, np.int64)
        if not allowed.size:
            if number == 0 and not state.is_complete:
                raise ConstraintError("allows no text that the model's tokens can write")
            return
        state.advance([int(allowed[0])])


class _OwnTokens:
    """Tokens as llguidance takes them."""

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.bos_token_id = None
        self.special_token_ids = [end]

    def __call__(self, text: object) -> list[int]:
        raise NotImplementedError("llguidance tokenizes nothing, as no bytes are forced")
