"""The command on a terminal: rows as wide as it is, and no wider."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
import wcwidth
from client_fake_server import VOCABULARY, FakeServer, journal, steps
from whence_command import run_whence_well


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        made = steps()
        for step in made:
            step.candidates.token_ids[:] = range(len(VOCABULARY))
            step.candidates.logprobs[:] = [-2.0] * len(VOCABULARY)
            step.candidates.ClearField("sampling_logprobs")
        running.script.events = journal(made)
        yield running


def run_on_terminal(num_columns: int, *arguments: str) -> list[str]:
    """Run the command on a terminal of its own; return the lines of its standard output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, num_columns, 0, 0))
    plain = {key: value for key, value in os.environ.items() if key not in {"COLUMNS", "NO_COLOR"}}
    running = subprocess.Popen(
        [sys.executable, "-m", "whence.cli", *arguments],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**plain, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
    )
    os.close(theirs)
    written = b""
    with running:
        try:
            while part := os.read(ours, 65_536):
                written += part
        except OSError:  # Linux: the last writer has closed the terminal
            pass
        finally:
            os.close(ours)
        assert running.wait(60) == 0, running.stderr.read()
    return written.decode().splitlines()


@pytest.mark.parametrize(("num_columns", "num_runners_up"), [(60, 0), (80, 1), (120, 3)])
def test_a_row_takes_one_line(server, num_columns, num_runners_up):
    target = ("--target", server.target)
    for command in (["generate", "The", "--candidates"], ["generations", "show", "g", "--steps"]):
        lines = run_on_terminal(num_columns, *command, *target)
        rows = [line for line in lines if line.lstrip().startswith("0/")]
        assert len(rows) == 5
        assert any("\x1b[38;5;" in row for row in rows)
        assert max(map(wcwidth.width, rows)) <= num_columns
        assert {row.count("%") - 1 for row in rows} == {num_runners_up}
    piped = run_whence_well("generate", "The", "--candidates", *target)
    assert {line.count("%") - 1 for line in piped.splitlines()[1:]} == {7}
