"""Recipe of the demo's model: everything that its weights depend on."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from whence_server.demo.corpus import compute_corpus_digest

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 2048,
        "block_size": 512,
        "batch_size": 2,
        "max_steps": 900,
        # The peak, which warmup_steps lead up to.
        "learning_rate": 2e-3,
        "warmup_steps": 200,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "save_steps": 150,
    }
)
"""Settings of `whence-server train`, by name; the model has 2.3 million parameters."""

# Number of changes to the recipe that no setting shows.
_REVISION = 2
# Packages whose versions the weights depend on.
_LIBRARIES = ("accelerate", "tokenizers", "torch", "transformers")


def compute_key(settings: Mapping[str, Any] = SETTINGS) -> str:
    """Return twelve hex digits of a digest over the settings, the corpus and the libraries."""
    ingredients = {
        "revision": _REVISION,
        "settings": dict(settings),
        "corpus": compute_corpus_digest(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    canonical = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
