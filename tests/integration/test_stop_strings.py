"""Stop strings that hold special tokens, against transformers' `stop_strings`."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from server_process import ServerProcess
from tiny_models import CONFIGS, CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from whence import Client, Generation

NUM_SPECIAL = 60
NUM_TOKENS = 40
PROMPTS = ["The quick brown fox", "<|3|>def generate<|1|>\n", "naïve 😀 café"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that emits a special token in about every sixth step."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + NUM_SPECIAL + 60,
        special_tokens=[f"<|{i}|>" for i in range(NUM_SPECIAL)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|0|>")
    config = deepcopy(CONFIGS["llama"])
    config.vocab_size = len(fast)
    config.bos_token_id, config.eos_token_id = None, [0, 1]
    torch.manual_seed(5)
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    directory = tmp_path_factory.mktemp("special")
    made.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with (
        ServerProcess(model, tmp_path_factory.mktemp("stops")) as server,
        Client(server.target) as opened,
    ):
        yield opened


def finished(client: Client, prompt: str, seed: int, **options: object) -> Generation:
    generation = client.generate(
        prompt, sample=True, top_k=0, seed=seed, max_new_tokens=NUM_TOKENS, **options
    )
    tokens = list(generation)
    (sequence,) = generation.sequences
    assert "".join(token.text for token in tokens) == sequence.text
    return generation


def num_tokens_of_transformers(
    model: Path, prompt: str, token_ids: list[int], stops: list[str]
) -> int:
    """The tokens that `generate` makes with these stop strings, given that it makes these ids."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    length = prompt_ids.shape[1]
    whole = [*prompt_ids[0].tolist(), *token_ids]

    def only_next(batch_id: int, so_far: torch.Tensor) -> list[int]:
        return [whole[so_far.shape[0]]]

    made = AutoModelForCausalLM.from_pretrained(model).generate(
        prompt_ids,
        do_sample=False,
        max_new_tokens=len(token_ids),
        eos_token_id=None,
        pad_token_id=0,
        prefix_allowed_tokens_fn=only_next,
        stop_strings=stops,
        tokenizer=tokenizer,
    )
    return made.shape[1] - length


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_as_many_tokens_as_transformers_makes(
    client: Client, model: Path, prompt: str, seed: int
) -> None:
    free = finished(client, prompt, seed, ignore_eos=True)
    token_ids = list(free.sequences[0].token_ids)
    tokenizer = AutoTokenizer.from_pretrained(model)
    places = [i for i, token_id in enumerate(token_ids) if 2 <= token_id < NUM_SPECIAL and i > 4]
    assert places, "a special token comes"
    at = places[0]
    name = tokenizer.convert_ids_to_tokens(token_ids[at])
    before = tokenizer.decode(token_ids[at - 2 : at])
    after = tokenizer.decode(token_ids[at + 1 : at + 3])
    cases = [
        [name],
        [before[-1:] + name],
        [name + after[:1]],
        [before[-2:] + name + after[:2]],
        ["never", before + name + after, name[-2:] + after[:1]],
    ]
    for stops in cases:
        if any("\ufffd" in stop for stop in stops):
            continue
        expected = num_tokens_of_transformers(model, prompt, token_ids, stops)
        stopped = finished(client, prompt, seed, ignore_eos=True, stop=stops)
        (sequence,) = stopped.sequences
        assert list(sequence.token_ids) == token_ids[:expected]
        assert sequence.stop in stops
        shown = tokenizer.decode(token_ids[:expected])
        assert sequence.text == output_before(shown, sequence.stop)


def output_before(shown: str, stop: str) -> str:
    """Return the part of a text before the stop string, without special tokens."""
    end = shown.rindex(stop)
    names = [f"<|{i}|>" for i in range(NUM_SPECIAL)]
    for name in names:
        # The stop string may begin inside of a special token's name.
        place = shown.rfind(name, 0, end + len(name))
        if place >= 0 and place < end < place + len(name):
            end = place
    kept = shown[:end]
    for name in names:
        kept = kept.replace(name, "")
    return kept


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_string_goes_before_the_end_of_sequence_token(
    client: Client, ignore_eos: bool
) -> None:
    """The token is both; the stop string was asked for, and may cut text before it."""
    for seed in range(40):
        free = finished(client, PROMPTS[0], seed)
        if free.finish_reason == "end_of_sequence" and len(free.sequences[0].text) > 1:
            break
    assert free.finish_reason == "end_of_sequence"
    name = client.vocabulary().text_of(free.sequences[0].token_ids[-1])
    letter = free.sequences[0].text[-1]
    for stop, text in ((name, free.sequences[0].text), (letter + name, None)):
        stopped = finished(client, PROMPTS[0], seed, ignore_eos=ignore_eos, stop=[stop])
        (sequence,) = stopped.sequences
        assert (sequence.finish_reason, sequence.stop) == ("stop", stop)
        assert sequence.token_ids == free.sequences[0].token_ids
        assert sequence.text == (text if text is not None else free.sequences[0].text[:-1])


def test_no_stop_string_begins_in_the_prompt(client: Client) -> None:
    """Unlike in transformers, where the prompt's end may begin one."""
    free = finished(client, "The quick<|3|>", 0, ignore_eos=True)
    first = client.vocabulary().text_of(free.sequences[0].token_ids[0])
    stopped = finished(client, "The quick<|3|>", 0, ignore_eos=True, stop=["<|3|>" + first])
    assert stopped.sequences[0].token_ids == free.sequences[0].token_ids
