"""A small model that learns, in about a minute, to find a planted fact in a long context.

A fact is a key and the two values that follow it. Facts are planted in filler; at the end comes
one of the keys, and the model has to say its values: associative recall (Arora et al., "Zoology:
Measuring and Improving Recall in Efficient Language Models", 2023). It is taught in two stages:
to repeat random sequences, from which looking back emerges at once, and then to find facts.
"""

from typing import Any, NamedTuple

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

NUM_FILLER, NUM_KEYS, NUM_VALUES = 24, 20, 20
VOCABULARY_SIZE = NUM_FILLER + NUM_KEYS + NUM_VALUES
FACT_LENGTH = 3
NUM_FACTS = 8
PIECE_LENGTH = 4
REPEATING = (32, 48)
"""Sequences a step, tokens each; until the loss is below `REPEATING_LOSS`."""
REPEATING_LOSS = 0.15
MAX_REPEATING_STEPS = 3_000
FINDING = ((150, 16, 96), (100, 8, 240), (150, 4, 480))
"""Steps, sequences a step, tokens each."""
LEARNING_RATE = 5e-3


class Haystack(NamedTuple):
    """A context with facts in it, and what has to follow.

    Attributes:
        token_ids: the filler with its facts, then for each fact its key and its values once more.
        needles: where each fact stands, in the order in which they are asked for.
        answers: for each fact, where the values are that have to be found.
    """

    token_ids: list[int]
    needles: list[list[int]]
    answers: list[list[int]]


def haystack(num_tokens: int, generator: torch.Generator) -> Haystack:
    """So many tokens with `NUM_FACTS` facts in them, and all the questions."""
    length = num_tokens - NUM_FACTS * FACT_LENGTH
    filler = torch.randint(NUM_FILLER, (length,), generator=generator)
    keys = torch.randperm(NUM_KEYS, generator=generator)[:NUM_FACTS] + NUM_FILLER
    values = torch.randint(NUM_VALUES, (NUM_FACTS, FACT_LENGTH - 1), generator=generator)
    facts = torch.cat((keys[:, None], values + NUM_FILLER + NUM_KEYS), 1)
    places = torch.randperm(length // FACT_LENGTH, generator=generator)[:NUM_FACTS] * FACT_LENGTH
    for place, fact in zip(places.tolist(), facts, strict=True):
        filler[place : place + FACT_LENGTH] = fact
    return Haystack(
        [*filler.tolist(), *facts.flatten().tolist()],
        [list(range(place, place + FACT_LENGTH)) for place in places.tolist()],
        [
            list(range(length + FACT_LENGTH * i + 1, length + FACT_LENGTH * (i + 1)))
            for i in range(NUM_FACTS)
        ],
    )


def trained_model(seed: int = 0) -> Any:
    """A GPT-NeoX of two layers that finds facts."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1_024,
        # Most of a head compares contents, whatever the distance.
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.25,
        },
        use_parallel_residual=False,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    for step in range(MAX_REPEATING_STEPS):
        rate = LEARNING_RATE * min(1, (step + 1) / 30)
        if _learn(model, optimizer, _repetitions(*REPEATING, generator), rate) < REPEATING_LOSS:
            break
    for stage, (num_steps, *sizes) in enumerate(FINDING):
        for _ in range(num_steps):
            _learn(model, optimizer, _facts(*sizes, generator), LEARNING_RATE / 2 ** (stage + 1))
    return model.eval().requires_grad_(False)


def _learn(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    rate: float,
) -> float:
    """One step; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    input_ids, labels = batch
    loss = model(input_ids=input_ids, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _repetitions(
    num_rows: int, num_tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of different tokens, and then the same in another order: distances tell nothing."""
    half = num_tokens // 2
    token_ids = torch.empty(num_rows, num_tokens, dtype=torch.int64)
    labels = torch.full_like(token_ids, -100)
    for row in range(num_rows):
        pieces = torch.randperm(VOCABULARY_SIZE, generator=generator)[:half].view(-1, PIECE_LENGTH)
        order = torch.randperm(len(pieces), generator=generator)
        token_ids[row] = torch.cat((pieces, pieces[order])).flatten()
        # Which piece comes next cannot be known, the rest of each can.
        labels[row, half:] = token_ids[row, half:]
        labels[row, half::PIECE_LENGTH] = -100
    return token_ids, labels


def _facts(
    num_rows: int, num_tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts with their answers; only these count."""
    rows = [haystack(num_tokens, generator) for _ in range(num_rows)]
    token_ids = torch.tensor([row.token_ids for row in rows])
    labels = torch.full_like(token_ids, -100)
    for i, row in enumerate(rows):
        for places in row.answers:
            labels[i, places] = token_ids[i, places]
    return token_ids, labels
