"""Head weights fitted to ablations: a head counts as much as what it reads predicts effects.

Half of a text's spans are hidden at random from all layers, several times, and the logprobs of the
text's last tokens are taken each time. A token's sources predict each of these logprobs: by the
sum of the shares of the spans that stay visible. The weights of the heads are those whose
predictions correlate best with the logprobs, averaged over tokens. (Cohen-Wang, Chuang, Madry,
"Learning to Attribute with Attention", 2025. Here heads read value norms, and no weight is below 0,
so that shares stay shares.)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.attention import (
    LayerAttention,
    ReadAttention,
    probe_attention,
)
from whence_server.engines.transformers.internals.sources import OutputNorms, UnavailableError

METHOD = "ablations/1"
SPAN_TOKENS = 8
"""Tokens that are hidden together."""
NUM_ABLATIONS = 16
"""Ablations of each piece, in pairs that hide each other's visible spans."""
MOST_TARGETS = 32
TARGET_PART = 4
"""The last fourth of a piece's tokens are predicted, but at most `MOST_TARGETS`."""
FEWEST_TOKENS = 48
"""Tokens of the shortest piece that is used."""
LEAST_EFFECT = 1.0
"""Standard deviation, in nats over ablations, of a token that counts: others need no context."""
FEWEST_EXAMPLES = 32
NUM_STEPS = 300
LEARNING_RATE = 0.05
RESTRAINT = 0.01
"""Factor of the mean square of the logarithms of the weights, which holds heads near alike."""
HELD_OUT = 4
"""One piece in this many decides when to stop."""
SIGNIFICANT_DIGITS = 4


class FittedWeights(NamedTuple):
    """Head weights, and how well they predict.

    Attributes:
        values: a number for each head of each layer; the largest is 1.
        correlation: mean correlation with the effects in the pieces that were held out.
        correlation_alike: the same with heads alike.
        num_tokens: number of tokens whose logprobs were predicted.
    """

    values: list[list[float]]
    correlation: float
    correlation_alike: float
    num_tokens: int


class Examples(NamedTuple):
    """Tokens of a piece, with what heads read and what ablations did.

    Attributes:
        reads: what each head read from the spans that stay visible, [tokens, ablations, K].
        logprobs: logprob of each token in each ablation, [tokens, ablations].
    """

    reads: torch.Tensor
    logprobs: torch.Tensor


def fit_head_weights(
    model: Any, norms: OutputNorms | None, pieces: Iterable[Sequence[int]], seed: int = 0
) -> FittedWeights:
    """Return one weight for each head, fitted to ablations of the pieces.

    Args:
        model: in eval mode, with our attention in place.
        norms: the model's norms, with heads alike.
        pieces: token ids of texts typical for the model's use, whose last tokens need the first.
        seed: seed of the ablations.

    Raises:
        UnavailableError: too few tokens of the texts depend on their context, or the model does
            not take positions.
    """
    if norms is None:
        raise UnavailableError("it gives no sources to weigh")
    generator = torch.Generator().manual_seed(seed)
    pieces = [piece for piece in pieces if len(piece) >= FEWEST_TOKENS]
    made = [measure_piece(model, norms, piece, generator) for piece in pieces]
    num_layers = len(read_attention(model, pieces[0][:2], 1)[0]) if pieces else 0
    return fit(made, num_layers)


def fit(pieces: Sequence[Examples], num_layers: int) -> FittedWeights:
    """Return the head weights that predict the logprobs of the examples best.

    Raises:
        UnavailableError: too few tokens depend on their context.
    """
    used = [piece for piece in pieces if len(piece.logprobs)]
    num_tokens = sum(len(piece.logprobs) for piece in used)
    if len(used) < HELD_OUT or num_tokens < FEWEST_EXAMPLES:
        raise UnavailableError(
            f"{num_tokens} tokens of the texts, in {len(used)} pieces, depend on their context by "
            f"at least {LEAST_EFFECT} nats; it takes {FEWEST_EXAMPLES} tokens in {HELD_OUT} pieces"
        )
    held_out = _join(used[HELD_OUT - 1 :: HELD_OUT])
    fitted = _join([piece for i, piece in enumerate(used) if i % HELD_OUT != HELD_OUT - 1])
    logs = torch.zeros(fitted.reads.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=LEARNING_RATE)
    thetas = logs.detach().exp()
    alike = best = float(_correlate(held_out, thetas))
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        (RESTRAINT * logs.square().mean() - _correlate(fitted, logs.exp())).backward()
        optimizer.step()
        found = float(_correlate(held_out, logs.detach().exp()))
        if found > best:
            best, thetas = found, logs.detach().exp()
    values = (thetas / thetas.max()).view(num_layers, -1).tolist()
    rounded = [[float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in row] for row in values]
    return FittedWeights(rounded, best, alike, num_tokens)


@torch.inference_mode()
def measure_piece(
    model: Any, norms: OutputNorms, piece: Sequence[int], generator: torch.Generator
) -> Examples:
    """Return the last tokens of a piece that depend on their context, with their examples."""
    num_targets = min(len(piece) // TARGET_PART, MOST_TARGETS)
    spans = list(list_spans(len(piece) - num_targets - 1))
    visible = draw_ablations(len(spans), generator)  # (ablations, spans)
    logprobs = ablate(model, piece, num_targets, spans, visible)
    counts = logprobs.std(1) >= LEAST_EFFECT
    weights, values = read_attention(model, piece[:-1], num_targets)
    of_each = norms.compute(values)  # (K, tokens)
    reads = []
    for target in counts.nonzero().flatten().tolist():
        heads = torch.cat([layer[num_targets - 1 - target] for layer in weights])
        read = heads * of_each[:, : heads.shape[1]]
        reads.append(torch.stack([read[:, span].sum(1) for span in spans]))  # (spans, K)
    if not reads:
        return Examples(torch.empty(0, len(visible), len(of_each)), torch.empty(0, len(visible)))
    return Examples(visible.float() @ torch.stack(reads).cpu(), logprobs[counts])


def list_spans(end: int) -> Iterator[slice]:
    """Yield the spans before position `end`; the positions before the first are never hidden."""
    # The first position stays: without the sink of its heads a model reads another way.
    for begin in range(1 + (end - 1) % SPAN_TOKENS, end, SPAN_TOKENS):
        yield slice(begin, begin + SPAN_TOKENS)


def draw_ablations(num_spans: int, generator: torch.Generator) -> torch.Tensor:
    """Return which spans are visible: bool [ablations, spans], each row with half of the spans."""
    rows = []
    for _ in range(NUM_ABLATIONS // 2):
        order = torch.randperm(num_spans, generator=generator)
        half = num_spans // 2
        for seen in (order[:half], order[num_spans - half :]):
            row = torch.zeros(num_spans, dtype=torch.bool)
            row[seen] = True
            rows.append(row)
    return torch.stack(rows)


def ablate(
    model: Any,
    piece: Sequence[int],
    num_targets: int,
    spans: Sequence[slice],
    visible: torch.Tensor,
) -> torch.Tensor:
    """Return the logprobs of the last tokens in each ablation: [targets, ablations]."""
    ids = torch.tensor(piece, device=model.device)
    always = [*range(spans[0].start)], [*range(spans[-1].stop, len(piece) - 1)]
    rows = []
    for row in visible.tolist():
        seen = [
            i
            for span, is_seen in zip(spans, row, strict=True)
            if is_seen
            for i in range(span.start, span.stop)
        ]
        rows.append([*always[0], *seen, *always[1]])
    # Tokens that are left out are hidden from all layers, for less than it costs to mask them.
    places = torch.tensor(rows, device=model.device)
    logits = model(
        input_ids=ids[places],
        position_ids=places,
        attention_mask=torch.ones_like(places),
        use_cache=False,
    ).logits[:, -num_targets:]
    logprobs = torch.log_softmax(logits.float(), -1)
    answers = ids[-num_targets:].expand(len(rows), -1).unsqueeze(-1)
    return logprobs.gather(-1, answers).squeeze(-1).mT.cpu()


def read_attention(
    model: Any, token_ids: Sequence[int], num_newest: int
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Read the attention of the newest tokens in one pass.

    Returns:
        For each layer, for each of the newest tokens, the newest first: weights [heads, columns],
        from the first position to the token's; and each layer's values, [value heads, tokens, d].
    """
    weights: list[list[torch.Tensor]] = []
    values: list[torch.Tensor] = []

    def collect(read: ReadAttention) -> None:
        layers: list[LayerAttention] = [read(back) for back in range(num_newest)]
        weights.append([layer.weights[0] for layer in layers])
        values.append(layers[0].values[0])

    with probe_attention(collect):
        model(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    return weights, values


def _join(pieces: Sequence[Examples]) -> Examples:
    return Examples(
        torch.cat([piece.reads for piece in pieces]),
        torch.cat([piece.logprobs for piece in pieces]),
    )


def _correlate(examples: Examples, thetas: torch.Tensor) -> torch.Tensor:
    """Return the correlation of predictions and logprobs, averaged over tokens."""
    predicted = examples.reads @ thetas
    ones, others = (
        torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
        for x in (predicted, examples.logprobs)
    )
    return (ones * others).sum(1).mean()
