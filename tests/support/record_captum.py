"""Recorder of Captum's attributions of the tiny models, for tests that compare with them.

`make captum` runs it in an environment with Captum, and writes tests/recorded/captum.json.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

IDS = [17, 203, 58, 120, 301, 44, 9, 250, 77, 160]
START = 8
NUM_STEPS = 24
OUTPUT = Path(__file__).parents[1] / "recorded" / "captum.json"


def record(architecture: str) -> dict[str, Any]:
    """Return Captum's attributions of the last two of `IDS` to the embeddings of the others."""
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(save_tiny_model(Path(folder), architecture))
    model.eval().requires_grad_(False)
    embed = model.get_input_embeddings()
    context = embed(torch.tensor([IDS[:START]]))
    rest = embed(torch.tensor([IDS[START:-1]]))

    def read(embedded: torch.Tensor) -> torch.Tensor:
        whole = torch.cat((embedded, rest.expand(len(embedded), -1, -1)), 1)
        logprobs = torch.log_softmax(model(inputs_embeds=whole).logits, -1)
        return logprobs[:, START - 1, IDS[START]] + logprobs[:, START, IDS[START + 1]]

    multiplied = InputXGradient(read).attribute(context.requires_grad_())
    integrated = IntegratedGradients(read).attribute(
        context, baselines=0.0, n_steps=NUM_STEPS, method="gausslegendre"
    )
    return {
        "ids": IDS,
        "start": START,
        "num_steps": NUM_STEPS,
        "value": float(read(context.detach())[0]),
        "gradient_x_input": multiplied.sum(-1)[0].tolist(),
        "integrated_gradients": integrated.sum(-1)[0].tolist(),
    }


def main() -> None:
    """Write the values of each architecture."""
    import captum

    values = {name: record(name) for name in ("gpt2", "llama")}
    made_by = {"captum": captum.__version__, "torch": torch.__version__.split("+")[0]}
    OUTPUT.write_text(json.dumps({"made_by": made_by, **values}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
