"""The show on a model whose training is on record: generations, and their explanation by it."""

from pathlib import Path

from whence_server.demo.stage import set_stage
from whence_server.lineage.reader import RECORD_NAME

PROMPT = "The for statement is used to"
_EXPLAINED = ("The for statement", " is used to iterate over the elements of a sequence")
_SAMPLED = ("--temperature", "0.8", "--top-p", "0.95", "--max-new-tokens")
_NEXT = """
What to try next
  make serve-training                           keep a server up on this model, then elsewhere:
  .venv/bin/whence generate "If the expression" --candidates
  .venv/bin/whence generate "A class definition" --temperature 0.8 --seed 7 --json
  .venv/bin/whence training show                the training, step by step
  .venv/bin/whence training document 35         a text that the model was trained on
"""


async def show_training(model: Path, trace_url: str = "", head_weights: Path | None = None) -> None:
    """Run the show, from the start of the server to its end.

    Args:
        model: directory of the model; without the record of a training, nothing is explained.
        trace_url: template of links to traces, if the user has a collector; "" for no links.
        head_weights: file of head weights for the sources; None weighs all heads alike.

    Raises:
        SystemExit: a command failed; the status is the command's.
    """
    async with set_stage(model, "demo", trace_url, head_weights) as stage:
        greedy = ("--greedy", "--max-new-tokens", "24")
        await stage.run("generate", PROMPT, *greedy, "--candidates")
        await stage.run("generate", PROMPT, *_SAMPLED, "24", "--candidates")
        await stage.run("generate", PROMPT, *_SAMPLED, "160")
        if (model / RECORD_NAME).is_file():
            print("\nHow the training made a text likelier")
            await stage.run("training", "explain", *_EXPLAINED)
    print(_NEXT)
