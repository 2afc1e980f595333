"""Environment variables are read in one package."""

import ast
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server" / "whence_server"
HAND_ON = {"engines/transformers/link.py", "generation/text_process.py"}
"""Modules that start a process with the whole environment."""


def reads_environment(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
        for node in ast.walk(tree)
    )


def test_only_config_reads_environment_variables() -> None:
    readers = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if reads_environment(path) and path.parent != SERVER / "config"
    }
    assert readers == HAND_ON
