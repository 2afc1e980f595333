"""Processes that the server starts import nothing that lies in the working directory."""

import subprocess

import pytest

from whence_server.engines.transformers import link
from whence_server.generation import text_process
from whence_server.lineage import emergence


@pytest.mark.parametrize(
    "command", [link.COMMAND, text_process.COMMAND, emergence.COMMAND], ids=lambda one: one[-1]
)
def test_a_module_in_the_working_directory_is_not_imported(command, tmp_path):
    stray = "from pathlib import Path; Path(__file__).with_suffix('.imported').touch()"
    (tmp_path / "json.py").write_text(stray)
    # Without its arguments it ends at once, after its imports.
    subprocess.run(
        command,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert not (tmp_path / "json.imported").exists()
