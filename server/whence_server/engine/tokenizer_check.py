"""Checks that the front can do with a tokenizer's files what transformers does with them."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from whence_server.domain.errors import ConfigurationError

NUM_SPECIAL_TOKENS = 32
"""So many special tokens are tried; further ones do not differ."""
SAMPLES = (
    "The  quick brown fox, isn't it?\n\tI 'm sure that 's 1234567 .",
    " naïve café — “quotes” 你好 😀 def f(x):\n    return x",
)


def cleans_up_spaces(tokenizer: Any) -> bool:
    """Tell whether transformers removes spaces before punctuation from decoded text.

    `clean_up_tokenization_spaces` is left out for a BPE, unless the tokenizer insists.
    """
    return bool(
        tokenizer.clean_up_tokenization_spaces
        and (
            type(tokenizer.backend_tokenizer.model).__name__ != "BPE"
            or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        )
    )


def find_fill_token(tokenizer: Any) -> str:
    """Return the place to fill in that CodeLlama's class splits a text at; else nothing."""
    fills_in = hasattr(type(tokenizer), "set_infilling_processor")
    return (tokenizer.fill_token or "") if fills_in else ""


def check_tokenizer(tokenizer: Any) -> None:
    """Compare the tokenizer's class with the backend that is exported.

    A class may have code of its own around the backend, which the front cannot run.

    Raises:
        ConfigurationError: they encode or decode a sample differently.
    """
    kind = type(tokenizer)
    unlike = f"the tokenizer class {kind.__name__} has code of its own that the server cannot use: "
    cleaning = PreTrainedTokenizerBase.clean_up_tokenization
    if cleans_up_spaces(tokenizer) and kind.clean_up_tokenization is not cleaning:
        raise ConfigurationError(f"{unlike}it has its own way to clean up tokenization spaces")
    for text in _make_samples(tokenizer):
        try:
            ids = tokenizer(text)["input_ids"]
        except Exception as error:
            raise ConfigurationError(f"{unlike}it fails on {text!r}: {error}") from error
        # After the call, which sets what the backend does with special tokens and with length.
        backend = tokenizer.backend_tokenizer
        if ids != backend.encode(text).ids:
            raise ConfigurationError(f"{unlike}it encodes {text!r} differently from tokenizer.json")
        decoded = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if decoded != backend.decode(ids, skip_special_tokens=True):
            raise ConfigurationError(f"{unlike}it decodes {text!r} differently from tokenizer.json")


def _make_samples(tokenizer: Any) -> Iterator[str]:
    yield from SAMPLES
    added = tokenizer.added_tokens_decoder
    for token in [added[token_id] for token_id in sorted(added)][:NUM_SPECIAL_TOKENS]:
        if token.content != find_fill_token(tokenizer):
            yield f"a {token.content} b{token.content}c"
