"""Cost of redaction and of content policies: characters a second, and its share of a step.

The step is one of the real model. Times are of the processor, in one thread; only the steps' are by
the clock.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from statistics import median

from constraints import Stepping, load_real_model
from storage import varied_step

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain import steps as domain_steps
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import EntryKind
from whence_server.domain.redaction import KINDS
from whence_server.generation.content.forms import PolicyForm
from whence_server.generation.content.redacting import RedactedForm
from whence_server.journal.codec import encode_step
from whence_server.redaction.opening import open_detectors
from whence_server.redaction.stream import Redactor, find_ranges

NUM_TOKENS = 4_000
NUM_STREAMS = (1, 16)
PROSE = (
    "The capital of France is Paris, and 2,102,650 people live there on 105 square kilometres. "
    "It lies on the Seine; the first bridge was built in 1578. "
)
SECRETS = "Write to joe.blow@mail.example.com, pay with 4111 1111 1111 1111, call +49 30 1234567. "
TEXTS = {
    "prose": PROSE,
    "something to redact in every sentence": SECRETS,
    "digits": "4111111111111112 ",
    "letters without a space": "abcdefghij",
    "private key without an end": "-----BEGIN PRIVATE KEY-----\n"
    + "MIIEvQIBADANBgkqhkiG9w0B" * 400,
}
DETECTORS = open_detectors(KINDS, None)


def run(runs: int) -> None:
    """Print both tables."""
    print("Redaction with all of whence's detectors, a token at a time\n")
    print("| text | characters/s | us/token | longest wait, bytes | characters/s as a whole |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, text in TEXTS.items():
        tokens = _split(text)
        whole = "".join(tokens)
        seconds, longest = _stream(tokens)
        seconds = min(seconds, *(_stream(tokens)[0] for _ in range(runs)))
        at_once = min(_time(lambda whole=whole: find_ranges(DETECTORS, whole)) for _ in range(runs))
        print(
            f"| {name} | {len(whole) / seconds:,.0f} | {seconds / len(tokens) * 1e6:.1f} | "
            f"{longest:,} | {len(whole) / at_once:,.0f} |"
        )
    _print_shares(runs)


def _print_shares(runs: int) -> None:
    """Print what a stored step costs with redaction and without, beside a step of the model."""
    steps = _make_steps(PROSE)
    ways = (
        _encode,
        _redact,
        partial(_hide, ContentPolicy.TOKENS),
        partial(_hide, ContentPolicy.NONE),
    )
    encoded, redacted, tokens, none = (
        min(_time(lambda store=store: store(steps)) for _ in range(runs)) / NUM_TOKENS
        for store in ways
    )
    print("\n| | us |\n| --- | ---: |")
    print(f"| encoding a step with 8 candidates | {encoded * 1e6:.1f} |")
    print(f"| the same, and its stored form with redaction | {redacted * 1e6:.1f} |")
    print(
        f"| the same, and its stored form under `--journal-content tokens` | {tokens * 1e6:.1f} |"
    )
    print(f"| under `none` | {none * 1e6:.1f} |")
    loaded = load_real_model("float32")
    print("\n| streams | step of SmolLM2-135M, ms | redaction, ms | share |")
    print("| ---: | ---: | ---: | ---: |")
    for num_streams in NUM_STREAMS:
        stepping = Stepping(loaded, num_streams, None)
        step = median(stepping.step() for _ in range(64))
        added = (redacted - encoded) * num_streams
        print(f"| {num_streams} | {step * 1e3:.2f} | {added * 1e3:.3f} | {added / step:.2%} |")


def _stream(tokens: list[str]) -> tuple[float, int]:
    """Return the seconds of a text in tokens, and the most bytes that waited."""
    redactor, num_bytes, longest = Redactor(DETECTORS), 0, 0
    began = time.process_time()
    for token in tokens:
        redactor.push(token)
        num_bytes += len(token)
        longest = max(longest, num_bytes - redactor.settled)
    redactor.push("", last=True)
    return time.process_time() - began, longest


def _make_steps(text: str) -> list[domain_steps.Step]:
    """Return the steps of a text with eight candidates each."""
    steps, begin = [], 0
    for index, token in enumerate(_split(text)):
        end = begin + len(token)
        own = {"text": token, "text_begin_byte": begin, "text_end_byte": end}
        steps.append(varied_step(0, index)._replace(**own))
        begin = end
    return steps


def _split(text: str) -> list[str]:
    return list(islice(cycle(re.findall(r" ?\w{1,5}|\W", text)), NUM_TOKENS))


def _encode(steps: list[domain_steps.Step]) -> None:
    for step in steps:
        encode_step(step)


def _redact(steps: list[domain_steps.Step]) -> None:
    form = RedactedForm(DETECTORS, 1, "")
    form.take(EntryKind.STARTED, GenerationStarted().SerializeToString())
    for step in steps:
        form.take(EntryKind.STEP, encode_step(step))


def _hide(policy: ContentPolicy, steps: list[domain_steps.Step]) -> None:
    form = PolicyForm(policy, "")
    for step in steps:
        form.take(EntryKind.STEP, encode_step(step))


def _time(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began
