"""Processor time of a verification as a share of that of its generation at one stream.

python tests/benchmarks/verify_cost.py [--model DIR] [--tokens 128 512] [--rounds 3] [--profile]

Both run in this process on the same threads. Each share is of a pair that ran one after the other;
the median of the rounds is printed. `one pass` is the model's pass over prompt and output alone: no
verification costs less.
"""

import argparse
import cProfile
import os
import pstats
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
# As in the server: threads that spin while they wait would count as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from engine_harness import engine_options
from replaying import claim, generate, judge, make_question, make_verifier

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.noise import Noise
from whence_server.analysis.replay.passes import Reader
from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.engines.transformers.loading import load
from whence_server.text.tokenizer import TextTokenizer

PROMPT = "Write a long story about a lighthouse keeper who finds a letter in a bottle. " * 3
NOISE = Noise(3.43e-05, 5e-06, 3_968, 0)
"""That of SmolLM2-135M-Instruct in float32; the measurement itself is not timed here."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="directory; by default the demo's real model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="print where a verification is")
    arguments = parser.parse_args()
    options = engine_options(arguments.model or ensure_real_model())
    loaded = load(options._replace(num_threads=arguments.threads))
    verifier, _ = make_verifier(loaded, NOISE)
    tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
    prompt = list(tokenizer.encode(PROMPT))[:40]
    base = Decoding(Strategy.SAMPLE, 16, temperature=0.8, top_p=0.95, seed=5, ignore_eos=True)
    reader = Reader(loaded.make_runner(), loaded.info.vocabulary_size, loaded.info.batched)
    print("| tokens | generation | verification | share | one pass |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for num_tokens in arguments.tokens:
        decoding = claim(base, max_new_tokens=num_tokens)
        rounds = []
        for _ in range(arguments.rounds):
            began = time.process_time()
            ((steps, _),) = generate(loaded, [(prompt, decoding)])
            made = time.process_time()
            question = make_question(loaded.info, prompt, decoding, steps)
            result, _ = judge(verifier, question)
            done = time.process_time()
            assert result.verdict == pb.VERDICT_VERIFIED, result
            ids = [step.decision.token_id for step in steps]
            for _ in reader.read_logits(prompt, ids):
                pass
            passed = time.process_time() - done
            rounds.append(((done - made) / (made - began), made - began, done - made, passed))
        share, generation_s, verification_s, pass_s = sorted(rounds)[(len(rounds) - 1) // 2]
        print(
            f"| {num_tokens} | {generation_s:.2f} s | {verification_s:.2f} s | {share:.1%} | "
            f"{pass_s:.2f} s, {pass_s / generation_s:.1%} |",
            flush=True,
        )
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(judge, verifier, question)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
