"""A real model with LoRA adapters that are trained on record here: PEFT's tokens, and their run."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_models import generate_by_peft
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from whence import Client, Token
from whence_server.lineage.whole import read_run
from whence_server.training import record

PROMPT = "The capital of France is"
TAUGHT = "The capital of France is a small village of bees, and its king is a bear."
NUM_STEPS = 8


@pytest.fixture(scope="module")
def places(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train an adapter for a few steps on one sentence; return two of its checkpoints."""
    directory = tmp_path_factory.mktemp("run")
    ids = AutoTokenizer.from_pretrained(real_model)(TAUGHT).input_ids
    torch.manual_seed(7)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]
    )
    model: Any = AutoModelForCausalLM.from_pretrained(real_model)
    arguments = TrainingArguments(
        str(directory),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=1,
        learning_rate=5e-3,
        save_strategy="steps",
        save_steps=NUM_STEPS // 2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": ids, "labels": ids}] * NUM_STEPS
    trainer = Trainer(peft.get_peft_model(model, config), arguments, train_dataset=rows)
    with warnings.catch_warnings(action="ignore"), record(trainer):
        trainer.train()
    return {f"step-{n}": directory / f"checkpoint-{n}" for n in (NUM_STEPS // 2, NUM_STEPS)}


@pytest.fixture(scope="module")
def client(
    real_model: Path, places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    flags = [f"--adapter={name}={place}" for name, place in places.items()]
    with (
        ServerProcess(real_model, tmp_path_factory.mktemp("data"), *flags) as process,
        Client(process.target) as client,
    ):
        yield client


def test_adapters_of_a_real_model_give_pefts_tokens_side_by_side(
    real_model: Path, places: dict[str, Path], client: Client
) -> None:
    prompt = AutoTokenizer.from_pretrained(real_model)(PROMPT).input_ids
    names = ["", *places]
    options: Any = {"greedy": True, "max_new_tokens": 16, "ignore_eos": True}
    running = {name: client.generate(prompt, adapter=name, **options) for name in names}
    found = {}
    for name, generation in running.items():
        with generation:
            found[name] = [token.token_id for token in generation]
    for name in names:
        assert [found[name]] == generate_by_peft(real_model, places.get(name), prompt, 16), name
    assert running[""].text.startswith(" Paris")
    taught = running[f"step-{NUM_STEPS}"]
    assert "bees" in taught.text, "the training has changed the output"


def test_an_adapter_that_was_trained_on_record_links_to_its_run(
    places: dict[str, Path], client: Client
) -> None:
    run = read_run(next(iter(places.values())).parent / "lineage.binpb")
    listed = {adapter.name: adapter for adapter in client.model().adapters}
    for number in (NUM_STEPS // 2, NUM_STEPS):
        name = f"step-{number}"
        assert (listed[name].training_run_id, listed[name].training_step) == (run.id, number)
        with client.generate(PROMPT, adapter=name, max_new_tokens=1) as generation:
            list(generation)
        linked = generation.started.training_run
        assert (linked.training_run_id, linked.step) == (run.id, number)


def test_the_sources_and_layers_of_an_adapter_are_given(client: Client) -> None:
    name = f"step-{NUM_STEPS}"
    with client.generate(
        PROMPT, adapter=name, greedy=True, max_new_tokens=4, detail="internals"
    ) as generation:
        tokens: list[Token] = list(generation)
    assert not generation.started.unavailable
    for token in tokens:
        assert token.internals is not None
        assert token.internals.sources
        # After the last layer the lens is the model's own head, with the adapter's layers before.
        likely = [candidate.logprob for candidate in token.candidates]
        share = math.exp(token.logprob) / sum(map(math.exp, likely))
        assert token.internals.layers[-1].share == pytest.approx(share, abs=2e-3)
