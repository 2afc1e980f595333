"""`record_generate` in a service: errors, copies, nested blocks, refusals, digests and spans."""

import copy
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from record_server import RecordServer
from recorded_generate import (
    COMMON,
    PROMPTS,
    read_all,
    record_one,
)
from span_reading import assert_within_parents, attributes, named, spans_of
from telemetry_journal import MemoryJournal
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)

from whence.v1.generation_pb2 import FinishReason
from whence_hooks.transformers import NotRecordableError, record_generate
from whence_server.engines.transformers.digests import digest_weights


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


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("secret"), FinishReason.FINISH_REASON_FAILED),
        (KeyboardInterrupt(), FinishReason.FINISH_REASON_CANCELLED),
    ],
)
def test_error_inside_generate_is_raised_and_on_record(
    server: RecordServer, model: Any, tokenizer: Any, error: BaseException, reason: int
) -> None:
    class Fail(LogitsProcessor):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 7:
                raise error
            return scores

    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        with pytest.raises(type(error)):
            model.generate(**PROMPTS | COMMON, logits_processor=LogitsProcessorList([Fail()]))
        assert recording.flush(30)
    for generation in read_all(server, label):
        assert generation.finished.finish_reason == reason
        assert len(generation.finished.sequences[0].token_ids) == 2
        if reason == FinishReason.FINISH_REASON_FAILED:
            assert generation.finished.failure.reason == "GENERATE_RAISED"
            assert "secret" not in str(generation)


def test_copies_of_a_recorded_model_generate_by_their_own_weights(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for copied in copies:
            with torch.no_grad():
                copied.transformer.wte.weight.copy_(copied.transformer.wte.weight.flip(0))
        outputs = [copied.generate(ids, max_new_tokens=4, pad_token_id=0) for copied in copies]
        own = model.generate(ids, max_new_tokens=4, pad_token_id=0)
        assert recording.flush(30)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], own)
    (generation,) = read_all(server, label)
    assert list(generation.finished.sequences[0].token_ids) == own[0, 3:].tolist()


def test_nested_blocks_record_each_generation_once(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    outer = record_generate(model, tokenizer, server.target, labels={"test": label, "at": "outer"})
    inner = record_generate(model, tokenizer, server.target, labels={"test": label, "at": "inner"})
    ids = torch.tensor([[5, 6]])
    with outer:
        model.generate(ids, max_new_tokens=2, pad_token_id=0)
        with inner:
            model.generate(ids, max_new_tokens=3, pad_token_id=0)
        model.generate(ids, max_new_tokens=4, pad_token_id=0)
        assert outer.flush(30)
    recorded = [
        (g.started.labels["at"], g.finished.num_generated_tokens) for g in read_all(server, label)
    ]
    assert recorded == [("outer", 2), ("inner", 3), ("outer", 4)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_beams": 2, "do_sample": True}, "beam_sample"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"custom_generate": lambda model, input_ids, **kwargs: input_ids}, "custom_generate"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name_or_skipped(
    server: RecordServer,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    call = {"max_new_tokens": 3, "pad_token_id": 0} | arguments
    with record_generate(model, tokenizer, server.target):
        with pytest.raises(NotRecordableError, match=named):
            model.generate(ids, **call)
    label = str(uuid.uuid4())
    with record_generate(
        model, tokenizer, server.target, labels={"test": label}, skip_unsupported=True
    ) as recording:
        torch.manual_seed(1)
        skipped = model.generate(ids, **call)
        assert recording.flush(30)
    torch.manual_seed(1)
    assert torch.equal(skipped, model.generate(ids, **call))
    assert named in caplog.text
    assert read_all(server, label) == []


def test_weights_have_the_digest_that_a_served_model_has(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    _, (generation, _) = record_one(server, model, tokenizer)
    environment = generation.started.environment
    assert environment.weights_digest == digest_weights(model.state_dict())
    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        ids = torch.tensor([[5, 6]])
        model.generate(ids, max_new_tokens=2, pad_token_id=0)
        assert recording.flush(30)
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1
        model.generate(ids, max_new_tokens=2, pad_token_id=0)
        assert recording.flush(30)
        with torch.no_grad():
            model.lm_head.weight[0, 0] -= 1
    before, after = (g.started.environment.weights_digest for g in read_all(server, label))
    assert before == environment.weights_digest
    assert after not in {"", before}


def test_spans_hang_below_the_current_span_of_the_service(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    parent = trace.SpanContext(
        trace_id=0x1234, span_id=0x5678, is_remote=False, trace_flags=trace.TraceFlags(1)
    )
    position = server.journal.position
    with trace.use_span(trace.NonRecordingSpan(parent)):
        _, recorded = record_one(server, model, tokenizer)
    assert {int(g.started.trace_id, 16) for g in recorded} == {0x1234}

    async def encode() -> list[Span]:
        entries = await server.journal.read_committed(position)
        offsets = {entry.generation_id: entry.offset for entry in entries if entry.offset}
        return await spans_of(MemoryJournal(entries=entries, offsets=offsets))

    spans = server.run(encode())
    assert_within_parents(spans)
    roots = named(spans, "whence.v1.RecordService/RecordGenerations")
    assert [int.from_bytes(root.parent_span_id) for root in roots] == [0x5678] * 2
    assert {int.from_bytes(span.trace_id) for span in spans} == {0x1234}
    num_tokens = sum(g.finished.num_generated_tokens for g in recorded)
    chosen = [span for span in spans if "whence.token.id" in attributes(span)]
    assert len(chosen) == num_tokens
