"""Tokenizer of a training: trained on its texts, or loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import weights
from whence_server.lineage.texts import TextDocument, decode_text

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
"""Smallest vocabulary: every byte, and the end-of-text token."""

_LOADING_ARGUMENTS = ("is_local", "local_files_only")
"""Arguments that transformers saves with a loaded tokenizer; they would change its digest."""

# The model is not trained on conversations: each message is a new paragraph.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)


def train_tokenizer(documents: Sequence[TextDocument], vocab_size: int) -> Any:
    """Train a byte-level BPE on the documents, with END_OF_TEXT as id 0 and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (decode_text(document.data).text for document in documents)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer.

    Raises:
        ConfigurationError: the tokenizer cannot be loaded.
    """
    weights.list_tokenizer_files(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:
        raise ConfigurationError(
            f"the tokenizer in {directory} cannot be loaded: {error}"
        ) from error
    for argument in _LOADING_ARGUMENTS:
        tokenizer.init_kwargs.pop(argument, None)
    return tokenizer


def load_block_tokenizer(directory: Path) -> Any:
    """Load a tokenizer with token offsets and an end-of-text token.

    Raises:
        ConfigurationError: the tokenizer cannot be loaded, is slow, or has no end-of-text token.
    """
    tokenizer = load_tokenizer(directory)
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{directory} has only a slow tokenizer ({type(tokenizer).__name__}); "
            "a tokenizer.json, as a fast one saves it, is needed"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"the tokenizer in {directory} has no end-of-sequence token to put after a text"
        )
    return tokenizer
