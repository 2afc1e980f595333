"""A small model that learns, in a few minutes, to find planted facts in a long context.

The context is made of sentences: filler, in which each word is followed by one of a few, and facts,
a key and the two values that belong to it, each said several times. At the end come the keys, and
the model has to say their values: associative recall (Arora et al., "Zoology: Measuring and
Improving Recall in Efficient Language Models", 2023).

It is taught in two stages: to repeat random sequences, from which looking back emerges at once, and
then to read contexts, every word of them and the answers. Weights decay, as where language models
are trained: so values that nothing needs shrink, among them those of full stops and of the first
position, to which heads attend that have nothing to look for (Guo et al., "Active-Dormant Attention
Heads", 2024).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

NUM_FILLER, NUM_KEYS, NUM_VALUES = 24, 20, 20
FULL_STOP = NUM_FILLER + NUM_KEYS + NUM_VALUES
BEGIN = FULL_STOP + 1
VOCABULARY_SIZE = BEGIN + 1
SENTENCE_LENGTHS = (4, 8)
"""Shortest and longest sentence of filler in words, including the full stop."""
NUM_SUCCESSORS = 3
FACT_LENGTH = 3
NUM_FACTS = 3
NUM_TOLD = 6
"""Number of times that each fact is stated."""
PIECE_LENGTH = 4
REPEATING = (32, 48)
"""Sequences of a step, and tokens of each; trained until the loss is below `REPEATING_LOSS`."""
REPEATING_LOSS = 0.15
MAX_REPEATING_STEPS = 3_000
READING = ((700, 8, 192), (466, 8, 240), (700, 4, 480))
"""Number of steps, sequences of a step, and tokens of each."""
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.3


class Haystack(NamedTuple):
    """A context with facts, and the questions and answers after it.

    Attributes:
        token_ids: the sentences, then for each fact its key and its values once more.
        needles: positions of each fact, for every time that it is stated.
        answers: positions of the values to find, for each fact.
    """

    token_ids: list[int]
    needles: list[list[int]]
    answers: list[list[int]]


def haystack(num_tokens: int, generator: torch.Generator) -> Haystack:
    """Return a context of `num_tokens` tokens with `NUM_FACTS` facts, and all questions."""
    facts = _new_facts(generator)
    length = num_tokens - 1 - NUM_FACTS * NUM_TOLD * (FACT_LENGTH + 1)
    sentences = list(_filler(length, generator))
    told: list[list[int]] = [[] for _ in sentences]
    for i in range(NUM_FACTS * NUM_TOLD):
        told[_below(len(sentences), generator)].append(i % NUM_FACTS)
    token_ids = [BEGIN]
    needles: list[list[int]] = [[] for _ in facts]
    for before, sentence in zip(told, sentences, strict=True):
        for i in before:
            needles[i] += range(len(token_ids), len(token_ids) + FACT_LENGTH)
            token_ids += [*facts[i], FULL_STOP]
        token_ids += sentence
    answers = []
    for fact in facts:
        answers.append(list(range(len(token_ids) + 1, len(token_ids) + FACT_LENGTH)))
        token_ids += fact
    return Haystack(token_ids, needles, answers)


def _new_facts(generator: torch.Generator) -> list[list[int]]:
    keys = torch.randperm(NUM_KEYS, generator=generator)[:NUM_FACTS] + NUM_FILLER
    values = torch.randint(NUM_VALUES, (NUM_FACTS, FACT_LENGTH - 1), generator=generator)
    facts: list[list[int]] = torch.cat((keys[:, None], values + NUM_FILLER + NUM_KEYS), 1).tolist()
    return facts


def _filler(num_tokens: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield sentences with `num_tokens` tokens in total."""
    shortest, longest = SENTENCE_LENGTHS
    while num_tokens:
        length = min(num_tokens, shortest + _below(longest - shortest + 1, generator))
        if num_tokens - length < shortest:
            length = num_tokens
        word = _below(NUM_FILLER, generator)
        sentence = []
        for _ in range(length - 1):
            sentence.append(word)
            word = SUCCESSORS[word][_below(NUM_SUCCESSORS, generator)]
        yield [*sentence, FULL_STOP]
        num_tokens -= length


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (1,), generator=generator))


def _successors() -> list[list[int]]:
    generator = torch.Generator().manual_seed(99)
    return [
        torch.randperm(NUM_FILLER, generator=generator)[:NUM_SUCCESSORS].tolist()
        for _ in range(NUM_FILLER)
    ]


SUCCESSORS = _successors()
"""Possible successors of each word of filler."""


def train_model(seed: int = 0) -> Any:
    """Train a GPT-NeoX of three layers that finds facts."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
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
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    for step in range(MAX_REPEATING_STEPS):
        rate = LEARNING_RATE * min(1, (step + 1) / 30)
        input_ids, labels = _repetitions(*REPEATING, generator)
        loss = model(input_ids=input_ids, labels=labels).loss
        _step(model, optimizer, loss, rate)
        if float(loss.detach()) < REPEATING_LOSS:
            break
    for stage, (num_steps, *sizes) in enumerate(READING):
        for _ in range(num_steps):
            input_ids, answers = _contexts(*sizes, generator)
            logits = model(input_ids=input_ids).logits
            # The answers have the same weight as all words together.
            loss = _loss(logits, input_ids) + _loss(logits, answers)
            _step(model, optimizer, loss, LEARNING_RATE / 2 ** (stage + 1))
    return model.eval().requires_grad_(False)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats over the labels that are not -100."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])


def _step(model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _repetitions(
    num_rows: int, num_tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pieces of tokens that are repeated in another order, and labels of the repetition."""
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


def _contexts(
    num_rows: int, num_tokens: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return contexts, and labels of their answers."""
    rows = [haystack(num_tokens, generator) for _ in range(num_rows)]
    token_ids = torch.tensor([row.token_ids for row in rows])
    labels = torch.full_like(token_ids, -100)
    for i, row in enumerate(rows):
        for places in row.answers:
            labels[i, places] = token_ids[i, places]
    return token_ids, labels
