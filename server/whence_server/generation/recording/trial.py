"""Trial of a recorder's tokenizer: `python -m whence_server.generation.recording.trial`.

A file that another process sends can make the library abort its process, take all memory, or never
end. It is therefore loaded in a process of its own first, under limits, and in the front only then.
The process reads a JSON line with the settings, then the file. It writes OK, or a Fault as JSON.
"""

import asyncio
import json
import resource
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.model import TextFiles
from whence_server.domain.recorded import MAX_TOKENIZER_BYTES
from whence_server.text.tokenizer import TextTokenizer

PADDING_ROWS = 8_192
"""Rows that a model's output head may have beyond the tokens of its tokenizer."""
# -P: do not import modules from the working directory.
_COMMAND = (sys.executable, "-P", "-m", "whence_server.generation.recording.trial")
_OK = b"ok"
_MAX_MEMORY_BYTES = 4 << 30
_MAX_CPU_S, _MAX_WALL_S = 60, 180.0
_MAX_DESCRIPTION_CHARACTERS = 300
FIELD = "tokenizer.content"


class Fault(NamedTuple):
    """Reason for refusing a tokenizer."""

    field: str
    description: str


def load_tokenizer(files: TextFiles, vocabulary_size: int) -> TextTokenizer:
    """Load a tokenizer that is within bounds.

    Raises:
        InvalidRequestError: it would run a regular expression of its decoder, the texts of its
            tokens are too long, or the model has more rows than it explains.
    """
    # Tokens are decoded in the event loop, and a regular expression can take minutes for one.
    if _has_regex(json.loads(files.tokenizer_json).get("decoder")):
        raise InvalidRequestError(
            FieldViolation(
                FIELD,
                "has a decoder with a regular expression, which the server does not run for a "
                "recorder: write the pattern as a String",
            )
        )
    num_tokens = Tokenizer.from_str(files.tokenizer_json).get_vocab_size()
    if vocabulary_size > num_tokens + PADDING_ROWS:
        raise InvalidRequestError(
            FieldViolation(
                "model.vocabulary_size",
                f"is {vocabulary_size}; for a tokenizer of {num_tokens} tokens it may be at most "
                f"{num_tokens + PADDING_ROWS}",
            )
        )
    tokenizer = TextTokenizer(files, vocabulary_size)
    num_bytes = sum(map(len, tokenizer.list_vocabulary()))
    if num_bytes > MAX_TOKENIZER_BYTES:
        raise InvalidRequestError(
            FieldViolation(
                FIELD,
                f"has a decoder that makes {num_bytes} bytes of text of its tokens; they may have "
                f"at most {MAX_TOKENIZER_BYTES}",
            )
        )
    return tokenizer


def _has_regex(part: Any) -> bool:
    """Return whether a part of a tokenizer.json has a pattern that is a regular expression."""
    if isinstance(part, dict):
        return "Regex" in part or any(map(_has_regex, part.values()))
    return isinstance(part, list) and any(map(_has_regex, part))


async def try_tokenizer(files: TextFiles, vocabulary_size: int) -> Fault | None:
    """Load a tokenizer in a process of its own; return the reason if it cannot be used."""
    settings = {"vocabulary_size": vocabulary_size, "cleans_up_spaces": files.cleans_up_spaces}
    given = json.dumps(settings).encode() + b"\n" + files.tokenizer_json.encode()
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(_MAX_WALL_S):
            answer, _ = await process.communicate(given)
    except TimeoutError:
        answer = b""
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        code = await process.wait()
    if answer == _OK:
        return None
    try:
        return Fault(*json.loads(answer))
    except (ValueError, TypeError):
        ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Fault(
            FIELD,
            f"is no tokenizer.json that can be read: the library ends on it ({ending}), within "
            f"{_MAX_MEMORY_BYTES >> 30} GiB of memory and {_MAX_CPU_S} s",
        )


def main() -> None:
    """Load the tokenizer on standard input, and write the result."""
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, _MAX_CPU_S),
        (resource.RLIMIT_AS, _MAX_MEMORY_BYTES),
    ):
        resource.setrlimit(what, (limit, limit))
    settings = json.loads(sys.stdin.buffer.readline())
    text = sys.stdin.buffer.read().decode()
    files = TextFiles(text, None, {}, cleans_up_spaces=settings["cleans_up_spaces"])
    try:
        load_tokenizer(files, settings["vocabulary_size"])
    except InvalidRequestError as error:
        (violation,) = error.violations
        fault = Fault(violation.field, violation.description)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        told = str(error)[:_MAX_DESCRIPTION_CHARACTERS]
        fault = Fault(FIELD, f"is no tokenizer.json that can be read: {told}")
    else:
        sys.stdout.buffer.write(_OK)
        return
    sys.stdout.buffer.write(json.dumps(fault).encode())


if __name__ == "__main__":
    main()
