"""The `whence` command in the test's process, as in a pipe: starting Python takes a second."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from whence.cli.main import main


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str
    raw: bytes
    """Standard output as it was written."""


def run_whence(*arguments: str, **environment: str) -> Done:
    """Run the command with further environment variables, outside a terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NO_COLOR", "WHENCE_"))}
    buffers = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(buffer, encoding="utf-8") for buffer in buffers]
    with (
        patch.dict(os.environ, kept | environment, clear=True),
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
    ):
        try:
            status = main(arguments)
        except SystemExit as end:  # of the parser
            status = int(end.code or 0)
    for stream in streams:
        stream.flush()
    raw, told = (written.getvalue() for written in buffers)
    return Done(status, raw.decode(errors="replace"), told.decode(), raw)


def run_whence_well(*arguments: str, **environment: str) -> str:
    """Run the command, and return its standard output.

    Raises:
        AssertionError: its exit status is not 0.
    """
    done = run_whence(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
