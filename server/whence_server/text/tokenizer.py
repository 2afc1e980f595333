"""A model's tokenizer: text to ids, and ids to text, as a whole and token by token."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from whence_server.constraints.errors import ConstraintError
from whence_server.domain.chat import ChatMessage
from whence_server.domain.constraints import Constraint
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.model import TextFiles
from whence_server.text.bounds import find_text_bound
from whence_server.text.chat import ChatTemplate, RenderedChat
from whence_server.text.cleanup import CleaningDetokenizer, clean_up
from whence_server.text.detokenizer import (
    REPLACEMENT,
    ByteLevelDetokenizer,
    Detokenizer,
    WindowedDetokenizer,
)
from whence_server.text.sequence import Piece, SequenceText, UnseenText
from whence_server.text.unicode import check_unicode
from whence_server.vocabulary import (
    depends_on_next,
    is_byte_level,
    list_decoder_types,
    list_special_tokens,
    list_visible_tokens,
    list_vocabulary_bytes,
    map_byte_values,
    map_special_texts,
    name_bytes,
    read_text_bytes,
)

if TYPE_CHECKING:
    from whence_server.constraints.compiler import ConstraintCompiler

_UNQUOTED = "cannot be used"
"""Description of a constraint's fault for the record: the fault may quote the constraint."""


class TextEncoder:
    """Tokenizer that encodes, decodes and renders chats as transformers does with the same files.

    Immutable, and safe to use from several threads.

    Attributes:
        bound: bound on the bytes of text that one token represents; None if there is none.
    """

    def __init__(self, files: TextFiles) -> None:
        """Load the tokenizer from its files, as the engine exported them."""
        self._tokenizer = Tokenizer.from_str(files.tokenizer_json)
        # Settings of the tokenizer's training, which transformers ignores in a call as well.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = files.split_special_tokens
        self._cleans_up = files.cleans_up_spaces
        self._fill_token = files.fill_token
        self._chat = ChatTemplate(files.chat_template, files.special_tokens)
        self._byte_values = map_byte_values(self._tokenizer)
        self._compiler: ConstraintCompiler | None = None
        self.bound = find_text_bound(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text; names of special tokens in it become special tokens.

        With `split_special_tokens` in the tokenizer's configuration, they are plain text.

        Raises:
            LoneSurrogateError: the text is not valid Unicode.
            InvalidRequestError: the text has a place to fill in.
        """
        check_unicode(text)
        if self._fill_token and self._fill_token in text:
            raise InvalidRequestError(
                FieldViolation(
                    "prompt",
                    f"holds {self._fill_token}, a place to fill in: infilling is not supported; "
                    "write the prefix, suffix and middle tokens instead",
                )
            )
        token_ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a sequence; special tokens and ids without a token add none.

        It equals the joined pieces of incremental decoding, which differ from the tokenizer's
        own decode only for byte tokens that are not valid UTF-8; see `WindowedDetokenizer`.
        """
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        if self._byte_values and REPLACEMENT in text:
            detokenizer = self._new_windowed()
            text = "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()
        return clean_up(text) if self._cleans_up else text

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        template_arguments: Mapping[str, object],
        template_name: str = "",
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> RenderedChat:
        """Render a prompt with the model's chat template; see `ChatTemplate.render`.

        The prompt has its special tokens already: encode it without adding any.
        """
        return self._chat.render(messages, template_arguments, template_name, tools)

    def check_constraint(
        self, constraint: Constraint, vocabulary_size: int, given: Sequence[int] = ()
    ) -> None:
        """Compile a constraint, to find its faults.

        Args:
            constraint: the constraint.
            vocabulary_size: rows of the model's output head.
            given: tokens with which the text begins.

        Raises:
            InvalidRequestError: it is wrong, holds a part that is not supported, or is too complex.
        """
        if depends_on_next(self._tokenizer):
            raise InvalidRequestError(
                FieldViolation(
                    "decoding.constraint",
                    "does not go with this model, whose tokenizer decodes a token by what follows",
                )
            )
        compiler = self._load_compiler(vocabulary_size)
        try:
            compiler.compile(constraint).copy().advance(given)
        except ConstraintError as error:
            violation = FieldViolation(constraint.field, error.message, _UNQUOTED)
            raise InvalidRequestError(violation) from error

    def _load_compiler(self, vocabulary_size: int) -> "ConstraintCompiler":
        """Return the compiler of constraints, which is made for the first one."""
        if self._compiler is None:
            from whence_server.constraints.compiler import ConstraintCompiler

            vocabulary = read_text_bytes(self._tokenizer, vocabulary_size)
            self._compiler = ConstraintCompiler(*vocabulary)
        return self._compiler

    @cached_property
    def _new_windowed(self) -> Callable[[], Detokenizer]:
        decoder = self._tokenizer.decoder
        return partial(
            WindowedDetokenizer,
            # Without a decoder `tokenizers` joins with spaces.
            " ".join if decoder is None else decoder.decode,
            list_visible_tokens(self._tokenizer),
            self._byte_values,
            holds_replacement="ByteLevel" in list_decoder_types(self._tokenizer),
        )


class TextTokenizer(TextEncoder):
    """Tokenizer for texts that grow token by token, with the text of each single token."""

    def __init__(self, files: TextFiles, vocabulary_size: int) -> None:
        """Load the tokenizer.

        Args:
            files: files that the engine exported.
            vocabulary_size: rows of the model's output head; rows beyond the tokenizer's
                vocabulary have no text.
        """
        super().__init__(files)
        self._special_ids = frozenset(list_special_tokens(self._tokenizer))
        self._vocabulary = list_vocabulary_bytes(self._tokenizer, vocabulary_size)
        self._unseen = UnseenText(
            map_special_texts(self._tokenizer),
            () if is_byte_level(self._tokenizer) else self._vocabulary,
        )
        self._new_detokenizer = self._choose_detokenizer()

    def make_sequence_text(self, stop: Sequence[str] = ()) -> SequenceText:
        """Return the empty text of a new sequence, which ends before the first stop string.

        Stop strings match the text with special tokens, as transformers' `stop_strings` do.
        """
        detokenizer = self._new_detokenizer()
        if self._cleans_up:
            detokenizer = CleaningDetokenizer(detokenizer)
        return SequenceText(detokenizer, stop, self._unseen)

    def split_prompt(self, token_ids: Sequence[int]) -> list[Piece]:
        """Return the text that each token adds to a prompt; joined, they are its decode."""
        text = self.make_sequence_text()
        last = len(token_ids) - 1
        return [text.push(token_id, last=i == last) for i, token_id in enumerate(token_ids)]

    def list_vocabulary(self) -> list[bytes]:
        """Return the raw bytes of every id below the vocabulary's size; not to be changed.

        Byte-level tokens are exact. Others are as inside a text: with a space if they begin a
        word, and one byte for each byte token. Special tokens have their name, ids without a
        token b"".
        """
        return self._vocabulary

    def get_token_text(self, token_id: int) -> str:
        """One token's own text, a special token's name included.

        Bytes that are not a character are named, as in "<0xF0 0x9F>".
        """
        if token_id >= len(self._vocabulary):
            return ""
        return name_bytes(self._vocabulary[token_id])

    def is_special(self, token_id: int) -> bool:
        """Return whether the token adds no text to an output."""
        return token_id in self._special_ids

    def _choose_detokenizer(self) -> Callable[[], Detokenizer]:
        if is_byte_level(self._tokenizer):
            token_bytes = [
                b"" if self.is_special(token_id) else token
                for token_id, token in enumerate(self._vocabulary)
            ]
            return partial(ByteLevelDetokenizer, token_bytes)
        return self._new_windowed
