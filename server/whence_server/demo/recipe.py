"""How the demo's model is made: everything that its weights depend on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version

from whence_server.demo.corpus import corpus_digest

# What the weights depend on besides the recipe itself.
_LIBRARIES = ("accelerate", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Sizes of the model and settings of its training.

    The defaults make 2.3 million parameters. Their training was measured at just under four
    minutes on two cores.
    """

    revision: int = 1
    """Counts changes to the making that no other field shows."""
    vocab_size: int = 2048
    num_layers: int = 4
    num_heads: int = 6
    embedding_size: int = 192
    context_length: int = 512
    block_length: int = 256
    """Tokens of a training block; divides the context."""
    batch_size: int = 4
    """Blocks a step."""
    num_steps: int = 1000
    num_warmup_steps: int = 200
    learning_rate: float = 2e-3
    """At its peak, to which it has to rise slowly; then it falls to 0 along a cosine."""
    weight_decay: float = 0.1
    seed: int = 0

    def key(self) -> str:
        """Twelve hex digits that stand for the recipe, the corpus and the libraries."""
        ingredients = {
            "recipe": asdict(self),
            "corpus": corpus_digest(),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
        canonical = json.dumps(ingredients, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]
