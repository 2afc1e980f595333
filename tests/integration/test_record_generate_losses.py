"""`record_generate` while the server is away, restarts, or cannot be sent everything."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from record_server import RecordServer
from recorded_generate import COMMON, PROMPTS, read_all
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)
from waiting import wait_until

from whence.v1.generation_pb2 import FinishReason
from whence_hooks import recorder
from whence_hooks.transformers import record_generate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordServer]:
    with RecordServer(tmp_path_factory.mktemp("record")) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model("gpt2"))


def test_generation_goes_on_while_the_server_is_away_and_is_recorded_later(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    server = RecordServer(tmp_path)
    recording = record_generate(model, tokenizer, server.target, labels={"test": label})
    try:
        with recording:
            away = model.generate(**PROMPTS | COMMON)
            assert not recording.flush(0.2)
            server.start()
            assert recording.flush(30)
            server.stop()
            again = model.generate(**PROMPTS | COMMON)
            server.start()
            assert recording.flush(30)
        recorded = read_all(server, label)
    finally:
        server.__exit__()
    assert torch.equal(away, again)
    assert len(recorded) == 4
    reasons = {g.finished.finish_reason for g in recorded}
    assert reasons <= {
        FinishReason.FINISH_REASON_LENGTH,
        FinishReason.FINISH_REASON_END_OF_SEQUENCE,
    }


def test_restart_of_the_server_interrupts_the_running_generation_alone(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    with RecordServer(tmp_path) as server:
        with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:

            class Restart(LogitsProcessor):
                def __call__(
                    self, input_ids: torch.LongTensor, scores: torch.Tensor
                ) -> torch.Tensor:
                    if input_ids.shape[1] == 4:
                        assert recording.flush(30)
                        server.stop()
                        server.start()
                    return scores

            ids = torch.tensor([[5, 6]])
            result = model.generate(
                ids,
                max_new_tokens=6,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([Restart()]),
            )
            model.generate(ids, max_new_tokens=3, pad_token_id=0)
            assert recording.flush(30)
        cut, whole = read_all(server, label)
    assert result.shape == (1, 8)
    assert cut.finished.finish_reason == FinishReason.FINISH_REASON_INTERRUPTED
    assert list(cut.finished.sequences[0].token_ids) == result[0, 2:4].tolist()
    assert whole.finished.num_generated_tokens == 3


def test_lost_steps_are_counted_and_their_generation_is_on_record_as_failed(
    tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    server = RecordServer(tmp_path)
    recording = record_generate(
        model, tokenizer, server.target, labels={"test": label}, max_buffer_bytes=5_000
    )
    ids = torch.tensor([[5, 6]])
    try:
        with recording:
            result = model.generate(ids, max_new_tokens=40, pad_token_id=0)
            # Prompts for which the buffer has no room even when it is empty.
            model.generate(torch.full((64, 100), 5), max_new_tokens=2, pad_token_id=0)
            assert recording.num_lost_generations == 64
            assert recording.num_lost_steps > 0
            server.start()
            assert recording.flush(30)
        (generation,) = read_all(server, label)
    finally:
        server.__exit__()
    tokens = list(generation.finished.sequences[0].token_ids)
    assert tokens == result[0, 2 : 2 + len(tokens)].tolist()
    assert len(tokens) + recording.num_lost_steps == 40
    assert generation.finished.finish_reason == FinishReason.FINISH_REASON_FAILED
    assert generation.finished.failure.reason == "RECORD_INCOMPLETE"
    assert str(recording.num_lost_steps) in generation.finished.failure.message


def test_batch_that_no_message_holds_runs_unrecorded_and_is_counted(
    server: RecordServer,
    model: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recorder, "MAX_MESSAGE_BYTES", 300)
    with record_generate(model, tokenizer, server.target) as recording:
        result = model.generate(torch.full((1, 200), 5), max_new_tokens=2, pad_token_id=0)
        assert recording.num_lost_generations == 1
        assert recording.flush(30)
    assert result.shape == (1, 202)
    assert "more than 300 bytes" in caplog.text


def test_block_that_ends_during_a_generation_records_it_to_its_end(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    reached, go_on = threading.Event(), threading.Event()

    class Hold(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            reached.set()
            assert go_on.wait(60)
            return scores

    arguments = {
        "max_new_tokens": 4,
        "pad_token_id": 0,
        "num_beams": 2,
        "logits_processor": LogitsProcessorList([Hold()]),
    }
    thread = threading.Thread(target=lambda: model.generate(torch.tensor([[5, 6]]), **arguments))
    with record_generate(model, tokenizer, server.target, labels={"test": label}):
        thread.start()
        assert reached.wait(60)
    go_on.set()
    thread.join()
    assert "generate" not in vars(model)
    recorders = server.recorders._recorders
    server.run(wait_until(lambda: not any(r.batches for r in recorders.values())))
    (generation,) = read_all(server, label)
    assert generation.finished.num_generated_tokens == 4
