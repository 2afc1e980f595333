"""A tiny model whose steps take a chosen time, and that stops and goes on as it is told.

It sleeps instead of computing, so that generations last as long as their test needs on any machine.
Its code comes with it: a server needs --trust-remote-code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiny_models import save_tiny_model

_CODE = '''
"""GPT-2 with steps of a chosen duration."""

import time
from functools import wraps
from pathlib import Path

from transformers import GPT2LMHeadModel


class PacedGPT2(GPT2LMHeadModel):
    """GPT-2 that sleeps before each pass, and for as long as a file exists."""

    @wraps(GPT2LMHeadModel.forward)  # the parameters say that it can be batched
    def forward(self, *args, **kwargs):
        time.sleep(self.config.step_s)
        while Path(self.config.held).exists():
            time.sleep(0.005)
        out = super().forward(*args, **kwargs)
        if out.logits.sum() == 0:  # a graph cannot follow this branch: every step comes by here
            raise RuntimeError("no logits")
        return out
'''


@dataclass(frozen=True)
class PacedModel:
    """Saved model.

    Attributes:
        directory: directory to serve.
        step_s: duration of a step in seconds.
    """

    directory: Path
    step_s: float

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have every pass wait until the end of the block."""
        file = self.directory.with_suffix(".held")
        file.touch()
        try:
            yield
        finally:
            file.unlink()


def save_paced_model(directory: Path, step_s: float) -> PacedModel:
    """Write a tiny GPT-2 with a long context whose steps take so many seconds."""
    save_tiny_model(directory, "gpt2-long")
    (directory / "modeling_paced.py").write_text(_CODE, encoding="utf-8")
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {
        "architectures": ["PacedGPT2"],
        "auto_map": {"AutoModelForCausalLM": "modeling_paced.PacedGPT2"},
        "step_s": step_s,
        "held": str(directory.with_suffix(".held")),
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return PacedModel(directory, step_s)
