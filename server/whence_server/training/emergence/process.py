"""Process, started by the server, that computes a text's probability along a training run.

python -m whence_server.training.emergence.process

Reads one JSON object from standard input, {"record": "/.../lineage.binpb", "prompt": "...",
"continuation": "...", "omit_groups": false}, and writes delimited TraceEmergenceResponse messages
to standard output, each as soon as it is known. A refusal ends it with exit status 2, its last
line on standard error being {"reason": ..., "message": ..., "field": ...}; any other status above 0
is a bug. The end of standard input ends the process, as the answer is no longer wanted.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from whence.v1.training_pb2 import (
    EmergenceInterval,
    EmergencePoint,
    EmergenceStarted,
    TraceEmergenceResponse,
)
from whence_server.domain.errors import LineageError
from whence_server.engines.transformers.context import CONTEXT_LENGTH_FIELDS
from whence_server.lineage.framing import frame_message
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_verified_run
from whence_server.training.emergence import trajectory
from whence_server.training.emergence.allocation import allocate, compute_token_logprobs
from whence_server.training.emergence.trajectory import (
    KeptWeights,
    RefusedError,
    iterate_examples_between,
    list_kept_weights,
    load_recorded_tokenizer,
    load_weights,
)

REFUSED = 2
ABANDONED = 3
"""Exit statuses after a refusal, and after the end of standard input."""
_NICENESS = 10


class Question(NamedTuple):
    """Text to trace, and the record of the run to trace it in."""

    record: Path
    prompt: str
    continuation: str
    omit_groups: bool = False


class _Text(NamedTuple):
    prompt_ids: list[int]
    continuation_ids: list[int]
    texts: list[str]


class _Point(NamedTuple):
    """A checkpoint with its parameters in memory; `logprob` is in nats."""

    step: int
    logprob: float
    parameters: dict[str, torch.Tensor]


def main() -> int:
    """Run the process, and return its exit status; see the module's docstring."""
    os.nice(_NICENESS)
    # The other half of the cores is left to the server.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    # Other prints to standard output go to standard error.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        question = _read_question(sys.stdin.buffer)
        _end_with_input()
        for answer in trace(question):
            answers.write(frame_message(answer.SerializeToString()))
    except RefusedError as refusal:
        told = {"reason": refusal.reason, "message": str(refusal), "field": refusal.field}
        print(json.dumps({name: value for name, value in told.items() if value}), file=sys.stderr)
        return REFUSED
    return 0


def trace(question: Question) -> Iterator[TraceEmergenceResponse]:
    """Yield the start of the answer, then points by ascending step with the intervals between them.

    Memory holds two checkpoints, a working copy and its gradient.

    Raises:
        RefusedError: the answer, or the rest of it, cannot be computed.
    """
    if not question.continuation:
        raise RefusedError("INVALID_TEXT", "it must not be empty", "continuation")
    try:
        run = read_verified_run(question.record)
    except LineageError as error:
        raise RefusedError("RECORD_BROKEN", str(error)) from error
    kept = list_kept_weights(run)
    tokenizer = load_recorded_tokenizer(run, kept)
    text = _tokenize(tokenizer, question)
    steps = [one.step for one in kept]
    beginning = None if 0 in steps else trajectory.load_initial_model(run, tokenizer)
    if beginning is not None:
        steps.insert(0, 0)
    started = EmergenceStarted(
        prompt_token_ids=text.prompt_ids,
        continuation_token_ids=text.continuation_ids,
        continuation_texts=text.texts,
        steps=steps,
    )
    before: _Point | None = None
    for number, (step, digest, model) in enumerate(_load_models(run, kept, beginning)):
        if not number:
            beginning = None  # two models are enough to hold
            _require_context(model, text)
            yield TraceEmergenceResponse(started=started)
        answer = _compute_point(model, step, digest, text)
        yield TraceEmergenceResponse(point=answer)
        after = _Point(step, answer.logprob, _copy_parameters(model))
        if before is not None:
            interval = _make_interval(run, before, after)
            if not question.omit_groups:
                _allocate(run, interval, (before, after), model, text)
            yield TraceEmergenceResponse(interval=interval)
        before = after


def _load_models(
    run: TrainingRun, kept: list[KeptWeights], beginning: Any | None
) -> Iterator[tuple[int, str, Any]]:
    """Yield step, weights digest and model of each checkpoint, one at a time."""
    if beginning is not None:
        yield 0, run.started.initial_weights_digest, beginning
        del beginning
    for one in kept:
        yield one.step, one.checkpoint.weights_digest, load_weights(run, one)


def _compute_point(model: Any, step: int, weights_digest: str, text: _Text) -> EmergencePoint:
    with torch.no_grad():
        logprobs = compute_token_logprobs(model, text.prompt_ids, text.continuation_ids).double()
    if not bool(torch.isfinite(logprobs).all()):
        raise RefusedError(
            "NON_FINITE_LOGITS",
            f"the weights after step {step} give logits that are no numbers",
        )
    return EmergencePoint(
        step=step,
        logprob=float(logprobs.sum()),
        token_logprobs=logprobs.tolist(),
        weights_digest=weights_digest,
    )


def _make_interval(run: TrainingRun, before: _Point, after: _Point) -> EmergenceInterval:
    return EmergenceInterval(
        first_step=before.step,
        last_step=after.step,
        change=after.logprob - before.logprob,
        example_ids=iterate_examples_between(run, before.step, after.step),
    )


def _allocate(
    run: TrainingRun,
    interval: EmergenceInterval,
    ends: tuple[_Point, _Point],
    model: Any,
    text: _Text,
) -> None:
    """Set the contribution of each group to the interval's change."""
    before, after = ends
    groups = [list(group.parameter_names) for group in run.started.groups]
    ids = (text.prompt_ids, text.continuation_ids)
    allocation = allocate(model, before.parameters, after.parameters, groups, ids)
    interval.group_changes[:] = allocation.changes
    interval.gap = interval.change - sum(allocation.changes)
    interval.num_gradients = allocation.num_gradients


def _copy_parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _tokenize(tokenizer: Any, question: Question) -> _Text:
    prompt = tokenizer(question.prompt)["input_ids"]
    if not prompt:
        begin = tokenizer.bos_token_id
        begin = tokenizer.eos_token_id if begin is None else begin
        if begin is None:
            raise RefusedError(
                "INVALID_TEXT",
                "it must not be empty: the tokenizer has no token to begin from",
                "prompt",
            )
        prompt = [begin]
    together = tokenizer(question.prompt + question.continuation)["input_ids"]
    continuation = together[len(prompt) :]
    if together[: len(prompt)] != prompt or not continuation:
        # A token spans the border between the two, so that each is tokenized by itself.
        continuation = tokenizer(question.continuation, add_special_tokens=False)["input_ids"]
    if not continuation:
        raise RefusedError("INVALID_TEXT", "the tokenizer makes no token of it", "continuation")
    return _Text(prompt, continuation, _decode_tokens(tokenizer, continuation))


def _decode_tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text of each token; an incomplete character goes to the token that ends it."""
    texts, told = [], ""
    for end in range(1, len(ids) + 1):
        so_far = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        if so_far.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(so_far[len(told) :])
        told = so_far
    return texts


def _require_context(model: Any, text: _Text) -> None:
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, name, None) for name in CONTEXT_LENGTH_FIELDS]
    limit = next((n for n in limits if isinstance(n, int) and n > 0), None)
    length = len(text.prompt_ids) + len(text.continuation_ids)
    if limit is not None and length > limit:
        raise RefusedError(
            "INVALID_TEXT",
            f"together with the prompt it has {length} tokens, and the model reads at most {limit}",
            "continuation",
        )


def _read_question(stdin: BinaryIO) -> Question:
    """Read a JSON object from standard input, which stays open after it."""
    read = b""
    while chunk := os.read(stdin.fileno(), 1 << 16):
        read += chunk
        try:
            fields = json.loads(read)
        except ValueError:
            continue
        return Question(
            Path(fields["record"]),
            fields["prompt"],
            fields["continuation"],
            fields.get("omit_groups", False),
        )
    raise SystemExit(ABANDONED)


def _end_with_input() -> None:
    def watch() -> None:
        while os.read(0, 1 << 16):
            pass
        os._exit(ABANDONED)

    threading.Thread(target=watch, name="end-of-input", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
