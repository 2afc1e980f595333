"""The peer: untraced transformers in a process of its own, with torch's default threads.

Reads a JSON command a line ({"mode": ..., "num_streams": ..., "num_new_tokens": ...}) and
answers each with a JSON line of tokens and seconds.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from workloads import TEMPERATURE, TOP_P, prompt


class Counter(BaseStreamer):
    """Takes tokens as a streaming server would."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.num_values = 0

    def put(self, value: torch.Tensor) -> None:
        self.num_values += value.numel()
        if self.num_values > value.numel() and self.first_at is None:
            self.first_at = time.perf_counter()

    def end(self) -> None:
        pass


def main(directory: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, **json.loads(line))), flush=True)


@torch.inference_mode()
def run(model, mode: str, num_streams: int, num_new_tokens: int, num_prompt_tokens: int = 32):
    vocabulary_size = model.config.vocab_size
    prompts = [prompt(i, vocabulary_size, num_prompt_tokens) for i in range(num_streams)]
    sampling = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
        "max_new_tokens": num_new_tokens,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    started = time.perf_counter()
    first_s = None
    if mode == "stream":
        for ids in prompts:
            counter = Counter()
            at = time.perf_counter()
            out = model.generate(torch.tensor([ids]), streamer=counter, **sampling)
            first_s = (counter.first_at or at) - at
            assert out.shape[1] == num_prompt_tokens + num_new_tokens
    elif mode == "sequential":
        for ids in prompts:
            model.generate(torch.tensor([ids]), **sampling)
    elif mode == "static":
        model.generate(torch.tensor(prompts), **sampling)
    elif mode == "continuous":
        config = GenerationConfig(**sampling)
        model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    else:
        raise SystemExit(f"unknown mode {mode!r}")
    seconds = time.perf_counter() - started
    return {"tokens": num_streams * num_new_tokens, "seconds": seconds, "first_s": first_s}


if __name__ == "__main__":
    main(sys.argv[1])
