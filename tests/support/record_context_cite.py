"""Record what ContextCite's own package computes: `make context-cite`.

It runs in an environment of its own, with none of the server's packages. The values go into
tests/recorded/context_cite.json, with the masks, the logit of the response's probability at each,
and the attributions.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from context_cite import ContextCiter
from context_cite.context_partitioner import SimpleContextPartitioner
from context_cite.utils import aggregate_logit_probs
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_ABLATIONS = 16
CASES = {
    "tiny": (
        [
            *("The dog is lazy.", "The fox jumps.", "A token is a trace.", "For is a statement."),
            *("A quick fox jumps over.", "Each reason is used."),
        ],
        "What jumps?",
        "The fox",
    ),
    "real": (
        [
            "Anna keeps the keys in the drawer.",
            "It had rained for most of the night.",
            "Bruno keeps the keys in the garage.",
            "The road to the village is narrow.",
            "Clara goes to work by train.",
            "Emil has a meeting every Monday.",
        ],
        "Where does Bruno keep the keys?",
        "Bruno keeps the keys in the garage.",
    ),
}


class Given(SimpleContextPartitioner):
    """A context whose sentences are given, and not found by NLTK."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__(" ".join(sentences))
        self._cache = {"parts": sentences, "separators": ["", *[" "] * (len(sentences) - 1)]}


def record(directory: Path, sentences: list[str], query: str, response: str) -> dict[str, Any]:
    """Return what the package computes for a context, a question and an answer."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    partitioner = Given(sentences)
    citer = ContextCiter(
        model,
        tokenizer,
        partitioner.context,
        query,
        num_ablations=NUM_ABLATIONS,
        partitioner=partitioner,
    )
    prompt_ids, prompt = citer._get_prompt_ids(return_prompt=True)
    citer._cache["output"] = prompt + response
    attributions = citer.get_attributions(verbose=False)
    segments = find_segments(tokenizer, prompt, sentences)
    check_prompts(citer, prompt_ids, segments)
    return {
        "prompt_ids": prompt_ids,
        "response_ids": citer._response_ids,
        "segments": segments,
        "masks": citer._masks.astype(int).tolist(),
        "logits": aggregate_logit_probs(citer._logit_probs).tolist(),
        "attributions": attributions.tolist(),
    }


def find_segments(tokenizer: Any, prompt: str, sentences: list[str]) -> list[list[int]]:
    """Return the tokens of each sentence, with the space before it."""
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    segments = []
    for sentence in sentences:
        begin = prompt.index(sentence)
        end = begin + len(sentence)
        inside = [
            i for i, (first, last) in enumerate(offsets.offset_mapping) if begin <= last <= end
        ]
        segments.append([inside[0], inside[-1] + 1])
    return segments


def check_prompts(citer: Any, prompt_ids: list[int], segments: list[list[int]]) -> None:
    """Check that without a sentence's tokens, a prompt is the one without the sentence."""
    for mask in citer._masks:
        gone = {
            i
            for segment, stays in zip(segments, mask, strict=True)
            if not stays
            for i in range(*segment)
        }
        ids = [token for i, token in enumerate(prompt_ids) if i not in gone]
        if ids != citer._get_prompt_ids(mask=np.asarray(mask)):
            raise SystemExit(f"the tokens without {sorted(gone)} are other ones: {mask}")


def main() -> None:
    """Record all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real_model", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directories = {
            "tiny": save_tiny_model(Path(folder), "llama"),
            "real": options.real_model,
        }
        recorded = {name: record(directories[name], *case) for name, case in CASES.items()}
    options.output.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
