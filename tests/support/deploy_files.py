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
    return _parse((DEPLOY / name).read_text(encoding="utf-8"))


def load_compose(name: str) -> dict[str, Any]:
    """Read a Compose file with its variables filled in, as Compose does it."""

    def fill(match: re.Match[str]) -> str:
        default = match[3] if match[2] == ":-" else ""
        return GIVEN.get(match[1], default)

    text = (DEPLOY / name).read_text(encoding="utf-8")
    filled = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", fill, text)
    return _parse(filled)


def _parse(text: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(text, _Loader)
    return document


class _Loader(yaml.SafeLoader):
    """Loader that refuses a key that is twice in one mapping, as Compose, Jaeger and kubectl do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"the key {key!r} is twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


# Compose takes away what an earlier file says, where a later one says `!reset`.
_Loader.add_constructor("!reset", lambda loader, node: None)
