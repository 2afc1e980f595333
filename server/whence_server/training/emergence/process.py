"""How a text's probability grew during a training: a process that the server starts.

python -m whence_server.training.emergence.process

Reads one JSON object from standard input, {"record": "/.../lineage.binpb", "prompt": "...",
"continuation": "...", "omit_groups": false}, and writes delimited TraceEmergenceResponse messages
to standard output, each as soon as it is known. A refusal ends it with exit status 2, its last
line on standard error being {"reason": ..., "message": ..., "field": ...}; any other status above 0
is a bug. It also ends when its standard input does: nobody waits for the answer any more.
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
from whence_server.engine.context import CONTEXT_LENGTH_FIELDS
from whence_server.lineage.framing import framed
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import verified_run
from whence_server.training.emergence import trajectory
from whence_server.training.emergence.allocation import allocate, token_logprobs
from whence_server.training.emergence.trajectory import (
    Kept,
    RefusedError,
    examples_between,
    kept_weights,
    load_weights,
    recorded_tokenizer,
)

REFUSED = 2
ABANDONED = 3
"""Exit statuses: of a refusal, and where the input ended first."""
_NICENESS = 10


class Question(NamedTuple):
    """Whose emergence is traced."""

    record: Path
    prompt: str
    continuation: str
    omit_groups: bool = False


class _Text(NamedTuple):
    prompt_ids: list[int]
    continuation_ids: list[int]
    texts: list[str]


class _Point(NamedTuple):
    """A checkpoint, its parameters in memory."""

    step: int
    logprob: float
    parameters: dict[str, torch.Tensor]


def main() -> int:
    """Run the process; see the module."""
    os.nice(_NICENESS)
    # The other half is for those whom the server serves meanwhile.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    # Whatever else prints, prints elsewhere.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        question = _asked(sys.stdin.buffer)
        _end_with_input()
        for answer in trace(question):
            answers.write(framed(answer.SerializeToString()))
    except RefusedError as refusal:
        told = {"reason": refusal.reason, "message": str(refusal), "field": refusal.field}
        print(json.dumps({name: value for name, value in told.items() if value}), file=sys.stderr)
        return REFUSED
    return 0


def trace(question: Question) -> Iterator[TraceEmergenceResponse]:
    """What is traced, then points by ascending step with what lies between them.

    In memory are two checkpoints, a working copy and its gradient.

    Raises:
        RefusedError: it cannot be computed, in whole or from here on.
    """
    if not question.continuation:
        raise RefusedError("INVALID_TEXT", "it must not be empty", "continuation")
    try:
        run = verified_run(question.record)
    except LineageError as error:
        raise RefusedError("RECORD_BROKEN", str(error)) from error
    kept = kept_weights(run)
    tokenizer = recorded_tokenizer(run, kept)
    text = _tokens(tokenizer, question)
    steps = [one.step for one in kept]
    beginning = None if 0 in steps else trajectory.beginning(run, tokenizer)
    if beginning is not None:
        steps.insert(0, 0)
    started = EmergenceStarted(
        prompt_token_ids=text.prompt_ids,
        continuation_token_ids=text.continuation_ids,
        continuation_texts=text.texts,
        steps=steps,
    )
    before: _Point | None = None
    for number, (step, digest, model) in enumerate(_models(run, kept, beginning)):
        if not number:
            beginning = None  # two models are enough to hold
            _require_context(model, text)
            yield TraceEmergenceResponse(started=started)
        answer = _point(model, step, digest, text)
        yield TraceEmergenceResponse(point=answer)
        after = _Point(step, answer.logprob, _parameters(model))
        if before is not None:
            interval = _interval(run, before, after)
            if not question.omit_groups:
                _allocate(run, interval, (before, after), model, text)
            yield TraceEmergenceResponse(interval=interval)
        before = after


def _models(
    run: TrainingRun, kept: list[Kept], beginning: Any | None
) -> Iterator[tuple[int, str, Any]]:
    """Step, weights digest and model, one after another."""
    if beginning is not None:
        yield 0, run.started.initial_weights_digest, beginning
        del beginning
    for one in kept:
        yield one.step, one.checkpoint.weights_digest, load_weights(run, one)


def _point(model: Any, step: int, weights_digest: str, text: _Text) -> EmergencePoint:
    with torch.no_grad():
        logprobs = token_logprobs(model, text.prompt_ids, text.continuation_ids).double()
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


def _interval(run: TrainingRun, before: _Point, after: _Point) -> EmergenceInterval:
    return EmergenceInterval(
        first_step=before.step,
        last_step=after.step,
        change=after.logprob - before.logprob,
        example_ids=examples_between(run, before.step, after.step),
    )


def _allocate(
    run: TrainingRun,
    interval: EmergenceInterval,
    ends: tuple[_Point, _Point],
    model: Any,
    text: _Text,
) -> None:
    """Say which groups the interval's change came from."""
    before, after = ends
    groups = [list(group.parameter_names) for group in run.started.groups]
    ids = (text.prompt_ids, text.continuation_ids)
    allocation = allocate(model, before.parameters, after.parameters, groups, ids)
    interval.group_changes[:] = allocation.changes
    interval.gap = interval.change - sum(allocation.changes)
    interval.num_gradients = allocation.num_gradients


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _tokens(tokenizer: Any, question: Question) -> _Text:
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
        # Their border is within a token of the whole: each is read by itself.
        continuation = tokenizer(question.continuation, add_special_tokens=False)["input_ids"]
    if not continuation:
        raise RefusedError("INVALID_TEXT", "the tokenizer makes no token of it", "continuation")
    return _Text(prompt, continuation, _texts(tokenizer, continuation))


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token; one that ends within a character leaves it to the next."""
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


def _asked(stdin: BinaryIO) -> Question:
    """Read the question; its end is where its JSON is whole, as the input stays open."""
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
