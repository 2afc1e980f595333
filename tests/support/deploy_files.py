"""Files of deploy/, read as the programs read them that they are for."""

import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
GIVEN = {"MODEL_DIR": "/srv/models/demo"}
"""The variables that compose.yaml requires."""


def load_yaml(name: str) -> dict[str, Any]:
    """Read a YAML file of deploy/."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return document


def load_compose(name: str) -> dict[str, Any]:
    """Read a Compose file with its variables filled in, as Compose does it."""

    def fill(match: re.Match[str]) -> str:
        default = match[3] if match[2] == ":-" else ""
        return GIVEN.get(match[1], default)

    text = (DEPLOY / name).read_text(encoding="utf-8")
    filled = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", fill, text)
    document: dict[str, Any] = yaml.safe_load(filled)
    return document
