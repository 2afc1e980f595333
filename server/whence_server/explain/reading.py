"""Passes that the explained value needs, and the reading of their logits.

The value is a sum of log probabilities: of the span's tokens, minus those of the contrast. Both
follow the same context, so that one pass reads both if each is a single token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.target import Target


class Read(NamedTuple):
    """One token whose probability counts.

    Attributes:
        place: index among the pass's read positions, which are its last ones.
        token_id: the token.
        sign: 1 for the span, -1 for the contrast.
    """

    place: int
    token_id: int
    sign: float


class ReadingPass(NamedTuple):
    """One forward pass.

    Attributes:
        ids: token ids that the model reads.
        num_places: number of positions whose logits are read, the last ones.
        reads: tokens whose probabilities count.
    """

    ids: tuple[int, ...]
    num_places: int
    reads: tuple[Read, ...]


def plan_passes(target: Target) -> tuple[ReadingPass, ...]:
    """Return the passes whose values add up to the explained value."""
    passes: dict[tuple[int, ...], ReadingPass] = {}
    for continuation, sign in ((target.span, 1.0), (target.against, -1.0)):
        if continuation:
            ids = target.context + continuation[:-1]
            reads = tuple(Read(i, token, sign) for i, token in enumerate(continuation))
            others = passes[ids].reads if ids in passes else ()
            passes[ids] = ReadingPass(ids, len(continuation), others + reads)
    return tuple(passes.values())


def read_logits(model: Any, ids: torch.Tensor, num_places: int) -> torch.Tensor:
    """Return the logits of the last positions.

    Args:
        model: a causal language model in eval mode.
        ids: int64 [B, T]
        num_places: n

    Returns:
        float32 [B, n, V]
    """
    with keep_places(model, num_places):
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[:, -num_places:].float()


@contextmanager
def keep_places(model: Any, num_places: int) -> Iterator[None]:
    """Make the output head compute the last positions alone: a vocabulary is wide."""
    head = model.get_output_embeddings()
    if head is None:
        raise UnavailableError("it has no output head")
    handle = head.register_forward_pre_hook(
        lambda _head, args: (args[0][:, -num_places:], *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def sum_logprobs(logits: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
    """Return the signed sum of the reads' log probabilities, [B]; `logits` as `read_logits`."""
    places = torch.tensor([read.place for read in reads], device=logits.device)
    signs = torch.tensor([read.sign for read in reads], device=logits.device)
    totals = torch.logsumexp(logits, -1)[:, places]
    return ((_pick(logits, reads) - totals) * signs).sum(-1)


def sum_logits(logits: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
    """Return the signed sum of the reads' logits, [B]; `logits` as `read_logits`."""
    signs = torch.tensor([read.sign for read in reads], device=logits.device)
    return (_pick(logits, reads) * signs).sum(-1)


def _pick(logits: torch.Tensor, reads: Sequence[Read]) -> torch.Tensor:
    return logits[:, [read.place for read in reads], [read.token_id for read in reads]]


@torch.no_grad()
def compute_value(model: Any, target: Target) -> float:
    """Return the explained value, in nats."""
    return sum(
        float(sum_logprobs(read_logits(model, make_ids(model, one), one.num_places), one.reads))
        for one in plan_passes(target)
    )


def make_ids(model: Any, one: ReadingPass) -> torch.Tensor:
    """Return the pass's token ids, int64 [1, T]."""
    return torch.tensor([one.ids], device=model.device)


@contextmanager
def replace_embeddings(model: Any, instead: torch.Tensor) -> Iterator[None]:
    """Replace the output of the input embedding, within the context.

    Args:
        model: a causal language model.
        instead: [B, T, width]

    Raises:
        UnavailableError: the model does not call its input embedding exactly once.
    """
    calls: list[None] = []

    def hook(_module: torch.nn.Module, _args: Any, _output: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return instead

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if len(calls) != 1:
        raise UnavailableError(
            f"a pass calls its input embedding {len(calls)} times, expected once"
        )
