"""A generation of another process beside those of a server that serves the same model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence import Client, Token
from whence.v1 import observation_pb2
from whence_hooks.transformers import record_generate

PROMPT = [5, 6, 7, 8]
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 12,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
}


@pytest.fixture(scope="module")
def generation_id(server: ServerProcess, tiny_model: Callable[..., Path]) -> str:
    """Id of a greedy generation that this process made and recorded."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    with record_generate(model, tokenizer, server.target, labels={"by": "hook"}) as recording:
        model.generate(torch.tensor([PROMPT]), do_sample=False, pad_token_id=0, **SETTINGS)
        assert recording.flush(60)
    with Client(server.target) as client:
        (row,) = client.generations.list(labels={"by": "hook"})
    return row.generation_id


def test_it_has_the_identity_of_the_served_model(server: ServerProcess, generation_id: str) -> None:
    with Client(server.target) as client:
        started, served = client.generations.get(generation_id).started, client.model()
    assert started.environment.weights_digest == served.weights_digest
    assert started.model_digest == served.model_digest
    assert started.tokenizer_digest == served.tokenizer_digest
    # Any caller could send the digest of the served weights.
    assert started.observation.weights == observation_pb2.WEIGHTS_ORIGIN_CLAIMED
    assert started.observation.draw == observation_pb2.DRAW_ORIGIN_NONE


def test_its_steps_are_those_that_the_server_records_for_the_same_request(
    server: ServerProcess, generation_id: str
) -> None:
    with Client(server.target) as client:
        hooked = list(client.generations.steps(generation_id))
        with client.generate(PROMPT, greedy=True, **SETTINGS) as generation:
            own: list[Token] = list(generation)
        names = client.generations.get(generation_id).started.processor_names
        assert names == client.generations.get(generation.id).started.processor_names
    assert [token.token_id for token in hooked] == [token.token_id for token in own]
    for one, other in zip((t.step for t in hooked), (t.step for t in own), strict=True):
        assert (one.text, one.text_begin_byte, one.text_end_byte) == (
            other.text,
            other.text_begin_byte,
            other.text_end_byte,
        )
        assert one.rank == other.rank
        assert list(one.candidates.token_ids) == list(other.candidates.token_ids)
        assert list(one.processors.num_kept) == list(other.processors.num_kept)
        for field in ("logprob", "sampling_logprob", "entropy", "sampling_entropy"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-4)
        for message, field in (
            ("candidates", "logprobs"),
            ("candidates", "sampling_logprobs"),
            ("processors", "removed_mass"),
            ("processors", "token_logprobs"),
        ):
            ours = list(getattr(getattr(one, message), field))
            assert ours == pytest.approx(list(getattr(getattr(other, message), field)), abs=1e-4)
        assert one.timing.context_length == other.timing.context_length


def test_the_command_and_the_page_show_it(
    server: ServerProcess, generation_id: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "whence.cli", "generations", "show", generation_id),
            *("--steps", "--html", str(page), "--target", server.target),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert generation_id in shown.stdout
    assert "repetition_penalty" in shown.stdout
    assert generation_id in page.read_text(encoding="utf-8")
