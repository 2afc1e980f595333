"""Environment variables are read in one package."""

import ast
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server" / "whence_server"
HAND_ON = {"engines/transformers/link.py", "generation/text_process.py"}
"""Modules that start a process with the whole environment."""
NAMES = {"environ", "environb", "getenv"}


def reads_environment(path: Path) -> bool:
    text = path.read_text()
    # Parsing every module of the server takes seconds.
    return any(name in text for name in NAMES) and any(
        isinstance(node, ast.Attribute) and node.attr in NAMES for node in ast.walk(ast.parse(text))
    )


def test_only_config_reads_environment_variables() -> None:
    readers = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        if reads_environment(path) and path.parent != SERVER / "config"
    }
    assert readers == HAND_ON
