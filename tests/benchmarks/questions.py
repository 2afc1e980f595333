"""Prompts for a real model: a paragraph with planted facts, and a question about one of them.

A paragraph has a line before it and eight sentences: three facts of the kind that is asked for,
each of another person, three facts of other kinds, and two sentences of no kind. The answer is
begun as the fact was told, so that the next token is its value: the model has to find the sentence
with the person and the kind. There are two worlds without a kind, a person or a value in common: in
`FITTING` head weights are fitted, in `MEASURING` sources are measured.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of fact: `told`, with `{who}`, ends before the value; `asked` is its question."""

    told: str
    asked: str
    values: tuple[str, ...]
    end: str = "."


class World(NamedTuple):
    """Words of which prompts are made."""

    people: tuple[str, ...]
    kinds: tuple[Kind, ...]
    asides: tuple[str, ...]
    openings: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """A generated prompt.

    Attributes:
        text: the prompt, with the answer begun.
        answer: the value that is asked for, with a space before it.
        sentences: begin and end in `text` of each sentence of the paragraph, in characters.
        fact: index of the sentence with the answer.
    """

    text: str
    answer: str
    sentences: list[tuple[int, int]]
    fact: int


FITTING = World(
    people=(
        *("Anna", "Bruno", "Clara", "David", "Emil", "Fiona", "Georg", "Helen"),
        *("Ivan", "Julia", "Karl", "Laura", "Marco", "Nora", "Oscar", "Paula"),
    ),
    kinds=(
        Kind(
            "{who} keeps the keys in the",
            "Where does {who} keep the keys?",
            ("drawer", "basket", "garage", "kitchen", "attic", "cupboard"),
        ),
        Kind(
            "The favourite fruit of {who} is the",
            "What is the favourite fruit of {who}?",
            ("apple", "pear", "cherry", "orange", "banana", "mango"),
        ),
        Kind(
            "{who} goes to work by",
            "How does {who} go to work?",
            ("train", "bus", "car", "boat", "bicycle", "tram"),
        ),
        Kind(
            "Last summer {who} travelled to",
            "Where did {who} travel last summer?",
            ("Spain", "Norway", "Brazil", "Japan", "Kenya", "Canada"),
        ),
        Kind(
            "{who} works as a",
            "What does {who} work as?",
            ("teacher", "doctor", "farmer", "painter", "lawyer", "baker"),
        ),
        Kind(
            "The house of {who} was built of",
            "What was the house of {who} built of?",
            ("stone", "wood", "brick", "glass", "steel", "clay"),
        ),
        Kind(
            "{who} has a meeting every",
            "When does {who} have a meeting?",
            ("Monday", "Tuesday", "Thursday", "Friday", "Sunday", "Saturday"),
        ),
        Kind(
            "For dinner {who} cooked",
            "What did {who} cook for dinner?",
            ("rice", "fish", "soup", "pasta", "chicken", "beans"),
        ),
    ),
    asides=(
        "It had rained for most of the night.",
        "Nobody could say when the old bridge would open again.",
        "The shop at the corner was closed that week.",
        "A dog barked somewhere behind the houses.",
        "There was little news in the paper that morning.",
        "The road to the village is narrow and steep.",
    ),
    openings=("Notes about the neighbours:", "A letter from home:", "What we know so far:"),
)
MEASURING = World(
    people=(
        *("Alice", "Robert", "Sarah", "Thomas", "Maria", "Peter", "Linda", "Henry"),
        *("Susan", "Frank", "Diana", "Victor", "Olivia", "Samuel", "Emma", "William"),
    ),
    kinds=(
        Kind(
            "{who} painted the door",
            "Which colour did {who} paint the door?",
            ("green", "yellow", "blue", "red", "black", "white"),
        ),
        Kind(
            "{who} plays the",
            "Which instrument does {who} play?",
            ("violin", "piano", "guitar", "flute", "trumpet", "drums"),
        ),
        Kind(
            "The pet of {who} is a small",
            "What is the pet of {who}?",
            ("rabbit", "cat", "turtle", "bird", "snake", "horse"),
        ),
        Kind(
            "{who} was born in the city of",
            "In which city was {who} born?",
            ("London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo"),
        ),
        Kind(
            "At school {who} studied",
            "What did {who} study at school?",
            ("history", "physics", "music", "law", "biology", "geography"),
        ),
        Kind(
            "{who} left the bag under the",
            "Where did {who} leave the bag?",
            ("table", "bed", "stairs", "tree", "bench", "window"),
        ),
        Kind(
            "The birthday of {who} is in",
            "When is the birthday of {who}?",
            ("March", "July", "October", "January", "June", "December"),
        ),
        Kind(
            "In the garden {who} grows",
            "What does {who} grow in the garden?",
            ("roses", "tomatoes", "potatoes", "herbs", "corn", "carrots"),
        ),
    ),
    asides=(
        "The weather was mild for the season.",
        "Most of the guests arrived before noon.",
        "Somebody had forgotten to wind the clock.",
        "The river runs quietly past the mill.",
        "They talked for a long time about the harvest.",
        "A new school opened at the end of the street.",
    ),
    openings=("From the town's chronicle:", "My notes of today:", "About the people here:"),
)
NUM_ALIKE = 3
"""Facts of the kind that is asked for."""
NUM_OTHERS = 3
NUM_ASIDES = 2
CHAT = (
    "<|im_start|>system\nYou answer from the text.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
"""Beginning and end of a question in the form of chats that the model was trained on."""


def make_prompt(
    world: World,
    rng: random.Random,
    *,
    is_chat: bool = False,
    num_others: int = NUM_OTHERS,
    num_asides: int = NUM_ASIDES,
) -> Prompt:
    """Return a prompt whose words, places and question are drawn by `rng`.

    Args:
        world: the words.
        rng: draws.
        is_chat: true for the form of chats.
        num_others: facts of other kinds, at most 7.
        num_asides: sentences of no kind, at most 6.
    """
    kind, *others = rng.sample(world.kinds, 1 + num_others)
    people = rng.sample(world.people, NUM_ALIKE + num_others)
    values = rng.sample(kind.values, NUM_ALIKE)
    told = [
        *zip([kind] * NUM_ALIKE, people, values, strict=False),
        *(
            (other, people[NUM_ALIKE + i], rng.choice(other.values))
            for i, other in enumerate(others)
        ),
    ]
    sentences = [f"{one.told.format(who=who)} {value}{one.end}" for one, who, value in told]
    asked = sentences[0]
    sentences += rng.sample(world.asides, num_asides)
    rng.shuffle(sentences)
    text = rng.choice(world.openings) + "\n"
    if is_chat:
        text = CHAT[0] + text
    spans = []
    for sentence in sentences:
        begin = len(text)
        text += sentence + " "
        spans.append((begin, len(text) - 1))
    question, begun = kind.asked.format(who=people[0]), kind.told.format(who=people[0])
    if is_chat:
        text = f"{text.rstrip()}\n{question}{CHAT[1]}{begun}"
    else:
        text = f"{text.rstrip()}\n\nQuestion: {question}\nAnswer: {begun}"
    return Prompt(text, f" {values[0]}", spans, sentences.index(asked))


def make_documents(num_documents: int, seed: int) -> list[str]:
    """Return texts to fit head weights on: prompts of `FITTING`, with their answers."""
    rng = random.Random(seed)
    prompts = (make_prompt(FITTING, rng) for _ in range(num_documents))
    return [f"{prompt.text}{prompt.answer}.\n" for prompt in prompts]
