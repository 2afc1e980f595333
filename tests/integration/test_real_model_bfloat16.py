"""A real model in bfloat16, with head weights of its own: clients, metrics, weights and record."""

import asyncio
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from backend_process import find_free_port
from generation_readers import READERS, make_options
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence import AsyncClient, Client, Token
from whence_server.cli import main

PROMPT = "The capital of France is"
NUM_TOKENS = 12
TEXT = Path(__file__).parents[2] / "docs" / "design.md"


@pytest.fixture(scope="module")
def head_weights(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weighed") / "heads.json"
    arguments = ["--output", str(path), "--max-tokens", "512", "--dtype", "bfloat16"]
    assert main(["weigh-heads", str(real_model), str(TEXT), *arguments]) == 0
    return path


@pytest.fixture(scope="module")
def metrics_url() -> str:
    return f"http://127.0.0.1:{find_free_port()}/metrics"


@pytest.fixture(scope="module")
def process(
    real_model: Path,
    head_weights: Path,
    metrics_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    flags = ["--dtype", "bfloat16", "--head-weights", str(head_weights), "--model-name", "smol"]
    flags += ["--metrics-listen", metrics_url.split("/")[2]]
    with ServerProcess(real_model, tmp_path_factory.mktemp("data"), *flags) as process:
        yield process


@pytest.fixture
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as client:
        yield client


def test_a_greedy_answer_in_bfloat16_is_that_of_transformers(
    real_model: Path, client: Client
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.bfloat16)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(
        **prompt,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = expected.sequences[0, prompt.input_ids.shape[1] :]
    logprobs = [
        torch.log_softmax(logits[0].float(), -1)[token_id].item()
        for logits, token_id in zip(expected.logits, ids, strict=True)
    ]

    with client.generate(PROMPT, max_new_tokens=NUM_TOKENS, greedy=True) as generation:
        tokens = list(generation)

    assert [token.token_id for token in tokens] == ids.tolist()
    assert [token.logprob for token in tokens] == pytest.approx(logprobs, abs=1e-4)
    assert tokens[0].text == " Paris"
    record = client.generations.get(generation.id).started
    assert record.environment.dtype == "bfloat16"
    # Packed weights give the same bits in bfloat16: nothing is to be said of them.
    assert record.environment.step_kernels == ""
    assert record.environment.weights_digest == client.model().weights_digest


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_client_reads_the_same_tokens(process: ServerProcess, name: str) -> None:
    expected = READERS["Client"]([process.target], NUM_TOKENS)[0].token_ids
    assert len(expected) == NUM_TOKENS
    (reading,) = READERS[name]([process.target], NUM_TOKENS)
    assert reading.describe_difference(expected) == ""


async def test_the_asynchronous_client_tells_why_as_the_other_does(
    process: ServerProcess, client: Client
) -> None:
    options: Any = {"max_new_tokens": 4, "num_candidates": 3, "temperature": 0.8, "seed": 5}
    async with AsyncClient(process.target) as other:
        await other.vocabulary()
        async with other.generate(PROMPT, **options) as generation:
            tokens = [token async for token in generation]
    with client.generate(PROMPT, **options) as twin:
        assert [_describe(token) for token in tokens] == [_describe(token) for token in twin]
    assert [len(token.candidates) for token in tokens] == [3] * 4


def _describe(token: Token) -> object:
    table = [(one.text, one.logprob, one.sampling_logprob) for one in token.candidates]
    return token.token_text, token.logprob, token.sampling_logprob, token.draw, table


async def test_the_metrics_count_what_the_streams_had(client: Client, metrics_url: str) -> None:
    tokens: list[Token] = []
    for number in range(3):
        with client.generate(PROMPT, **make_options(5 + number)) as generation:
            tokens += generation
    # Those of other tests, too, and nothing else.
    rows = list(client.generations.list())
    recorded = [token for row in rows for token in client.generations.steps(row.generation_id)]
    assert len(recorded) >= len(tokens) == 18
    label = '{model="smol"}'
    expected = {
        f"whence_generations_started_total{label}": len(rows),
        f"whence_generations_finished_total{label}": len(rows),
        f"whence_tokens_prompt_total{label}": sum(row.num_prompt_tokens for row in rows),
        f"whence_tokens_generated_total{label}": len(recorded),
        f"whence_step_surprise_count{label}": len(recorded),
        f"whence_step_surprise_sum{label}": -math.fsum(token.logprob or 0.0 for token in recorded),
        f"whence_step_entropy_sum{label}": math.fsum(token.entropy or 0.0 for token in recorded),
    }
    found: dict[str, float] = {}
    async with asyncio.timeout(30):
        while found != pytest.approx(expected, rel=1e-4):
            now = await _read_metrics(metrics_url)
            found = {name: now.get(name, 0.0) for name in expected}


async def _read_metrics(url: str) -> dict[str, float]:
    """Return the sums of the samples by name and model."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            model = sample.labels.get("gen_ai_request_model", "")
            name = f'{sample.name}{{model="{model}"}}'
            found[name] = found.get(name, 0.0) + sample.value
    return found


def test_sources_are_weighed_by_the_heads_that_were_measured(
    client: Client, head_weights: Path
) -> None:
    content = head_weights.read_bytes()
    weighed = json.loads(content)
    assert weighed["weights_digest"] == client.model().weights_digest
    assert [len(layer) for layer in weighed["head_weights"]] == [9] * 30
    options: Any = {"max_new_tokens": 1, "greedy": True, "detail": "internals"}
    with client.generate(PROMPT, **options) as generation:
        (token,) = generation
    assert generation.started is not None
    method = generation.started.source_method
    assert method.endswith(f";head-weights=sha256:{hashlib.sha256(content).hexdigest()}")
    assert token.internals is not None
    shares = [source.share for source in token.internals.sources]
    assert shares == sorted(shares, reverse=True)
    assert token.internals.sources[0].text in {" France", " capital", " is"}


def test_a_model_without_a_training_record_is_named_by_the_digests_of_the_served_one(
    real_model: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["verify-model", str(real_model), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["verdict"]) == (2, "cannot_be_checked")
    assert "no lineage.binpb" in report["reason"]
    served = client.model()
    assert report["model_digest"] == served.model_digest
    assert report["tokenizer_digest"] == served.tokenizer_digest
    assert (report["num_files"], report["findings"]) == (len(served.files), [])
