"""Option `--html FILE`, which writes the generation as a page."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whence.cli.exits import UsageError
from whence.client import Client
from whence.errors import NotFoundError, WhenceError
from whence.page import check_writable, make_page, write_page
from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary


def add_html(group: Any) -> None:
    """Add the option to a command."""
    group.add_argument(
        "--html",
        metavar="FILE",
        help="also write the generation to this file, as one self-contained page",
    )


def choose_page_path(arguments: argparse.Namespace) -> Path | None:
    """Return the path of the page; None without `--html`.

    Raises:
        UsageError: no page can be written there.
    """
    if arguments.html is None:
        return None
    path = Path(arguments.html)
    try:
        check_writable(path)
    except (OSError, ValueError) as error:
        raise UsageError(_format_error(path, error)) from None
    return path


def save_page(
    path: Path,
    client: Client,
    started: GenerationStarted,
    finished: GenerationFinished | None,
    steps: Sequence[Step],
    *,
    prompt_steps: Sequence[Step],
) -> None:
    """Write the generation's page.

    Raises:
        UsageError: it could not be written.
    """
    vocabulary = _fetch_vocabulary(client, started)
    content = make_page(started, finished, steps, prompt_steps=prompt_steps, vocabulary=vocabulary)
    try:
        write_page(path, content)
    except OSError as error:
        raise UsageError(_format_error(path, error)) from None


def _fetch_vocabulary(client: Client, started: GenerationStarted) -> Vocabulary | None:
    """Return the vocabulary of the generation's model; None if the server has not kept it."""
    try:
        try:
            served = client.model(started.model)
        except NotFoundError:
            return client.vocabulary(started.model, tokenizer_digest=started.tokenizer_digest)
        if served.tokenizer_digest != started.tokenizer_digest:
            return None  # another model now has the name
        return client.vocabulary(started.model)
    except WhenceError:
        return None


def _format_error(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"--html {path}: {reason}"
