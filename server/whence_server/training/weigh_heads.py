"""`whence-server weigh-heads`: computes a file of head weights for a model from texts."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from whence_server.domain.errors import ConfigurationError

PIECE_TOKENS = 256
DEFAULT_MAX_TOKENS = 16_384
MOST_TOKENS = 10**9
UNUSABLE = ("refuse", "skip", "replace")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="directory of the model; a model with code of its own is refused",
    )
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="text files or folders")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, for `serve --head-weights`",
    )
    parser.add_argument(
        "--unusable",
        choices=UNUSABLE,
        default="refuse",
        help="treatment of files that are empty, binary or not UTF-8, as for `train` "
        "(default: refuse)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_parse_num_tokens,
        default=DEFAULT_MAX_TOKENS,
        metavar="N",
        help="number of tokens to read, evenly spread over the texts (default: "
        f"{DEFAULT_MAX_TOKENS})",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of the weights; it must be the type that the server uses (default: auto)",
    )


def _parse_num_tokens(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not PIECE_TOKENS <= int(text) <= MOST_TOKENS:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {PIECE_TOKENS} to {MOST_TOKENS}"
        )
    return int(text)


def run(parsed: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status, 0.

    Raises:
        ConfigurationError: the model, a text or the file cannot be used.
    """
    weigh_heads(
        parsed.directory,
        parsed.texts,
        parsed.output,
        unusable=parsed.unusable,
        max_tokens=parsed.max_tokens,
        dtype=parsed.dtype,
    )
    print(f"{parsed.output}: for `whence-server serve --head-weights`")
    return 0


def weigh_heads(
    directory: Path,
    texts: Sequence[Path],
    output: Path,
    *,
    unusable: str = "refuse",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    dtype: str = "auto",
) -> None:
    """Compute a file of head weights; see `engine.internals.weighing`.

    Args:
        directory: directory of the model.
        texts: files, and folders of files.
        output: the file to write, which must not exist.
        unusable: treatment of files that are not text; see `lineage.texts.read_texts`.
        max_tokens: largest number of tokens to read, evenly spread over the texts.
        dtype: dtype of the weights; the server must use the same.

    Raises:
        ConfigurationError: the model, a text or the file cannot be used.
    """
    from whence_server.engine.internals.head_weights import write_head_weights
    from whence_server.engine.internals.sources import UnavailableError
    from whence_server.engine.internals.weighing import compute_stream_weights
    from whence_server.engine.loading import load
    from whence_server.engine.pretrained import make_offline_options
    from whence_server.lineage.texts import read_texts
    from whence_server.training.train.blocks import cut_into_blocks
    from whence_server.training.train.tokenizer import load_block_tokenizer

    _require_free(output)
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory; give the directory of a model")
    reading = read_texts(texts, unusable)
    for line in reading.skipped:
        print(f"left out: {line}", file=sys.stderr)
    loaded = load(make_offline_options(directory, dtype))
    reason = loaded.info.internals.unavailable.get("sources")
    if reason is not None:
        raise ConfigurationError(f"{directory}: the model gives no sources to weigh: {reason}")
    size = min(PIECE_TOKENS, loaded.info.max_context_length)
    tokenizer = load_block_tokenizer(directory)
    try:
        blocks = cut_into_blocks(reading.documents, tokenizer, size).blocks
    except ConfigurationError:
        raise ConfigurationError(
            f"TEXT: the texts have fewer than {size} tokens; give more text"
        ) from None
    num_pieces = min(len(blocks), max_tokens // size)
    chosen = (blocks[i * len(blocks) // num_pieces]["input_ids"] for i in range(num_pieces))
    try:
        values = compute_stream_weights(loaded.model, (ids.tolist() for ids in chosen))
    except UnavailableError as obstacle:
        raise ConfigurationError(
            f"{directory}: head weights cannot be computed: {obstacle}"
        ) from None
    write_head_weights(output, loaded.info.weights_digest, values)


def _require_free(output: Path) -> None:
    """Refuse, before anything is computed, an output that cannot be written.

    Raises:
        ConfigurationError: the folder is missing or not writable, or the file exists.
    """
    folder = output.parent
    if not os.path.isdir(folder):  # noqa: PTH112 - False where it may not be looked at
        raise ConfigurationError(
            f"--output {output}: {folder} is not a directory; give a file in one that exists"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--output {output}: {folder} cannot be written to")
    if os.path.lexists(output):
        raise ConfigurationError(f"--output {output} exists; give a new file")
