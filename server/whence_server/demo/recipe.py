"""How the demo's model is made: everything that its weights depend on."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from whence_server.demo.corpus import corpus_digest

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 2048,
        "block_size": 512,
        "batch_size": 2,
        "max_steps": 900,
        # At its peak, to which it has to rise slowly.
        "learning_rate": 2e-3,
        "warmup_steps": 200,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "save_steps": 150,
    }
)
"""Of `whence-server train`, by name; they make 2.3 million parameters."""

# Counts changes to the making that no setting shows.
_REVISION = 2
# What the weights depend on besides.
_LIBRARIES = ("accelerate", "tokenizers", "torch", "transformers")


def key(settings: Mapping[str, Any] = SETTINGS) -> str:
    """Twelve hex digits that stand for the settings, the corpus and the libraries."""
    ingredients = {
        "revision": _REVISION,
        "settings": dict(settings),
        "corpus": corpus_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    canonical = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
