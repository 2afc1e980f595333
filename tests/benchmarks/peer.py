"""The peer: untraced transformers in its own process, with torch's default threads.

Reads a JSON command a line ({"mode": ..., "num_streams": ..., "num_new_tokens": ...}) and
answers each with a JSON line of tokens and seconds.
"""

import json
import sys
import time
from contextlib import nullcontext

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from workloads import DEVICE, TEMPERATURE, TOP_P, prompt

from whence_hooks.transformers import record_generate


class Counter(BaseStreamer):
    """Streamer that receives tokens as a streaming server would."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.num_values = 0

    def put(self, value: torch.Tensor) -> None:
        self.num_values += value.numel()
        if self.num_values > value.numel() and self.first_at is None:
            self.first_at = time.perf_counter()

    def end(self) -> None:
        pass


def main(directory: str, dtype: str, tokenizer_directory: str = "") -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.eval().to(DEVICE)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory or directory)
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, tokenizer, **json.loads(line))), flush=True)


def run(
    model,
    tokenizer,
    mode: str,
    num_streams: int,
    num_new_tokens: int,
    num_prompt_tokens: int = 32,
    record: str = "",
):
    """Generate once; with `record`, a server's address, the generations are put on record."""
    vocabulary_size = model.config.vocab_size
    prompts = [prompt(i, vocabulary_size, num_prompt_tokens) for i in range(num_streams)]
    sampling = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
        "max_new_tokens": num_new_tokens,
        "pad_token_id": 0,
    }
    started = time.perf_counter()
    if mode == "continuous":
        # It runs in a thread of its own, and fails within inference mode; -1 is no token.
        config = GenerationConfig(eos_token_id=-1, **sampling)
        done = model.generate_batch(inputs=prompts, generation_config=config)
        assert [len(one.generated_tokens) for one in done.values()] == [
            num_new_tokens
        ] * num_streams
        first_s, seconds, num_lost = None, time.perf_counter() - started, 0
    else:
        recording = (
            record_generate(model, tokenizer, record, weights_digest=False, flush_timeout_s=0.5)
            if record
            else nullcontext()
        )
        with recording as hook, torch.inference_mode():
            started = time.perf_counter()
            first_s = generate(model, mode, prompts, {"eos_token_id": None, **sampling})
            seconds = time.perf_counter() - started
        num_lost = hook.num_lost_generations if hook else 0
    return {
        "tokens": num_streams * num_new_tokens,
        "seconds": seconds,
        "first_s": first_s,
        "num_lost": num_lost,
    }


def generate(model, mode: str, prompts: list[list[int]], sampling: dict) -> float | None:
    """Generate; return the time to the first token if the mode streams."""
    if mode == "static":
        model.generate(torch.tensor(prompts, device=DEVICE), **sampling)
        return None
    first_s = None
    for ids in prompts:
        counter = Counter() if mode == "stream" else None
        at = time.perf_counter()
        model.generate(torch.tensor([ids], device=DEVICE), streamer=counter, **sampling)
        if counter is not None:
            first_s = (counter.first_at or at) - at
    return first_s


if __name__ == "__main__":
    main(*sys.argv[1:])
