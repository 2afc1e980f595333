"""`whence-server weigh-heads`: computes a file of head weights for a model from texts."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from whence_server.engines.transformers.loading import LoadedModel
    from whence_server.lineage.texts import TextDocument

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
        "--fit",
        action="store_true",
        help="fit the weights to random ablations of the texts, each of which should end with "
        "words that its beginning decides, as an answer does; takes about ten times as long as "
        "reading them (default: weigh by the residual stream's norms)",
    )
    parser.add_argument(
        "--seed",
        type=_parse_seed,
        default=0,
        metavar="N",
        help="seed of the ablations of --fit (default: 0)",
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


def _parse_seed(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text):
        raise argparse.ArgumentTypeError("expected a whole number of at most ten digits")
    return int(text)


def run(parsed: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status, 0.

    Raises:
        ConfigurationError: the model, a text or the file cannot be used.
    """
    found = weigh_heads(
        parsed.directory,
        parsed.texts,
        parsed.output,
        unusable=parsed.unusable,
        max_tokens=parsed.max_tokens,
        dtype=parsed.dtype,
        seed=parsed.seed if parsed.fit else None,
    )
    print(f"{found}\n{parsed.output}: for `whence-server serve --head-weights`")
    return 0


def weigh_heads(
    directory: Path,
    texts: Sequence[Path],
    output: Path,
    *,
    unusable: str = "refuse",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    dtype: str = "auto",
    seed: int | None = None,
) -> str:
    """Compute a file of head weights; see `engine.internals.weighing` and `.fitting`.

    Args:
        directory: directory of the model.
        texts: files, and folders of files.
        output: the file to write, which must not exist.
        unusable: treatment of files that are not text; see `lineage.texts.read_texts`.
        max_tokens: largest number of tokens to read, evenly spread over the texts.
        dtype: dtype of the weights; the server must use the same.
        seed: seed of the ablations that the weights are fitted to; None to weigh by norms of the
            residual stream instead.

    Returns:
        The method on record in the file.

    Raises:
        ConfigurationError: the model, a text or the file cannot be used.
    """
    from whence_server.engines.transformers.internals.head_weights import write_head_weights
    from whence_server.engines.transformers.internals.sources import UnavailableError
    from whence_server.engines.transformers.internals.weighing import METHOD as STREAM_METHOD
    from whence_server.engines.transformers.internals.weighing import compute_stream_weights
    from whence_server.engines.transformers.loading import load
    from whence_server.engines.transformers.pretrained import make_offline_options
    from whence_server.lineage.texts import read_texts

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
    try:
        if seed is None:
            pieces = _cut_blocks(directory, reading.documents, size, max_tokens)
            values, method = compute_stream_weights(loaded.model, pieces), STREAM_METHOD
        else:
            pieces = _cut_documents(directory, reading.documents, size, max_tokens)
            values, method = _fit(loaded, pieces, seed)
    except UnavailableError as obstacle:
        raise ConfigurationError(
            f"{directory}: head weights cannot be computed: {obstacle}"
        ) from None
    write_head_weights(output, loaded.info.weights_digest, values, method)
    return method


def _cut_blocks(
    directory: Path, documents: Sequence["TextDocument"], size: int, max_tokens: int
) -> list[list[int]]:
    """Return blocks of all texts together, evenly spread over them."""
    from whence_server.training.train.blocks import cut_into_blocks
    from whence_server.training.train.tokenizer import load_block_tokenizer

    tokenizer = load_block_tokenizer(directory)
    try:
        blocks = cut_into_blocks(documents, tokenizer, size).blocks
    except ConfigurationError:
        raise ConfigurationError(
            f"TEXT: the texts have fewer than {size} tokens; give more text"
        ) from None
    num_pieces = min(len(blocks), max_tokens // size)
    return [blocks[i * len(blocks) // num_pieces]["input_ids"].tolist() for i in range(num_pieces)]


def _cut_documents(
    directory: Path, documents: Sequence["TextDocument"], size: int, max_tokens: int
) -> list[list[int]]:
    """Return pieces of one text each, evenly spread over the texts."""
    from whence_server.lineage.texts import decode_text
    from whence_server.training.train.tokenizer import load_block_tokenizer

    tokenizer = load_block_tokenizer(directory)
    pieces: list[list[int]] = []
    for document in documents:
        ids = tokenizer(decode_text(document.data).text).input_ids
        pieces += [ids[begin : begin + size] for begin in range(0, len(ids), size)]
    num_pieces = max(1, len(pieces) * max_tokens // max(sum(map(len, pieces)), max_tokens))
    return [pieces[i * len(pieces) // num_pieces] for i in range(num_pieces)]


def _fit(
    loaded: "LoadedModel", pieces: Sequence[Sequence[int]], seed: int
) -> tuple[list[list[float]], str]:
    """Return head weights fitted to ablations, and their method."""
    from whence_server.engines.transformers.internals.fitting import METHOD, fit_head_weights

    fitted = fit_head_weights(loaded.model, loaded.probe.norms, pieces, seed)
    return fitted.values, (
        f"{METHOD};seed={seed};pieces={len(pieces)};tokens={fitted.num_tokens};"
        f"correlation={fitted.correlation:.3f};alike={fitted.correlation_alike:.3f}"
    )


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
