"""Check that a tokenizer's serialised form, as used by the front, works as in transformers."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from whence_server.domain.errors import ConfigurationError

NUM_SPECIAL_TOKENS = 32
"""Number of special tokens that are tested."""
SAMPLES = (
    "The  quick brown fox, isn't it?\n\tI 'm sure that 's 1234567 .",
    " naïve café — “quotes” 你好 😀 def f(x):\n    return x",
)


def cleans_up_spaces(tokenizer: Any) -> bool:
    """Return whether transformers removes spaces before punctuation from decoded text.

    For BPE models transformers ignores `clean_up_tokenization_spaces`, unless the tokenizer sets a
    second attribute.
    """
    return bool(
        tokenizer.clean_up_tokenization_spaces
        and (
            type(tokenizer.backend_tokenizer.model).__name__ != "BPE"
            or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        )
    )


def find_fill_token(tokenizer: Any) -> str:
    """Return the infilling token at which CodeLlama's class splits a text; "" for other classes."""
    fills_in = hasattr(type(tokenizer), "set_infilling_processor")
    return (tokenizer.fill_token or "") if fills_in else ""


def check_tokenizer(tokenizer: Any) -> None:
    """Compare the tokenizer's class with its backend, which is serialised.

    A class may have code around the backend, which the front cannot run.

    Raises:
        ConfigurationError: class and backend encode or decode a sample differently.
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
        # Read after the call, which sets the backend's options.
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
