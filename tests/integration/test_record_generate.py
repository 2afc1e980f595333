"""`record_generate`: what `generate` returns is unchanged, and what is on record is what it did."""

import copy
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from record_server import RecordServer
from span_reading import assert_within_parents, attributes, named, spans_of
from telemetry_journal import MemoryJournal
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    pipeline,
)
from waiting import wait_until

from whence import Client
from whence.v1 import observation_pb2
from whence.v1.generation_pb2 import BeamRound, FinishReason, ResumeGenerationRequest
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.trace_pb2 import GetGenerationResponse
from whence_hooks import recorder
from whence_hooks.transformers import NotRecordableError, record_generate
from whence_server.engines.transformers.digests import digest_weights

PROMPTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [1, 1, 1, 40, 41]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]),
}
"""Two prompts; the second is padded on the left."""
LENGTHS = (5, 2)
EOS = 384
"""A token that the tiny model chooses early, so that rows end at different lengths."""
COMMON = {"max_new_tokens": 7, "pad_token_id": 0, "eos_token_id": EOS}
GREEDY = {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
SAMPLE = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_new_tokens": 3}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "sample": SAMPLE,
    "several": SAMPLE | {"num_return_sequences": 3},
    "beams": BEAMS,
    "beams-processed": BEAMS | {"repetition_penalty": 1.3, "length_penalty": 0.5},
}


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


@pytest.fixture(scope="module")
def loaded_real_model(real_model: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(real_model)


def read_all(server: RecordServer, label: str) -> list[GetGenerationResponse]:
    """Return the generations with a label, in the order of their prompts."""
    with Client(server.target) as client:
        found = [
            client.generations.get(row.generation_id)
            for row in client.generations.list(labels={"test": label})
        ]
    return sorted(
        found, key=lambda g: (g.started.start_time.ToNanoseconds(), g.started.recorded.prompt_index)
    )


def read_steps(server: RecordServer, generation_id: str) -> dict[tuple[int, int], Any]:
    with Client(server.target) as client:
        steps = [token.step for token in client.generations.steps(generation_id)]
    return {(step.sequence_index, step.index): step for step in steps}


def read_rounds(server: RecordServer, generation_id: str) -> list[BeamRound]:
    with grpc.insecure_channel(server.target) as channel:
        replay = GenerationServiceStub(channel).ResumeGeneration(
            ResumeGenerationRequest(generation_id=generation_id)
        )
        return [r.event.beam_round for r in replay if r.event.HasField("beam_round")]


def record_one(
    server: RecordServer, model: Any, tokenizer: Any, **arguments: Any
) -> tuple[Any, list[GetGenerationResponse]]:
    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        result = model.generate(**PROMPTS | COMMON | arguments)
        assert recording.flush(30)
    return result, read_all(server, label)


def generate_scored(model: Any, **arguments: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(3)
    result = model.generate(
        **PROMPTS,
        **COMMON | arguments,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    return result, torch.get_rng_state()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_output_and_random_state_are_bitwise_those_without_the_hook(
    server: RecordServer, model: Any, tokenizer: Any, strategy: str
) -> None:
    plain, state_after_plain = generate_scored(model, **STRATEGIES[strategy])
    with record_generate(model, tokenizer, server.target):
        recorded, state_after_recorded = generate_scored(model, **STRATEGIES[strategy])

    assert torch.equal(plain.sequences, recorded.sequences)
    assert torch.equal(state_after_plain, state_after_recorded)
    for one, other in ((plain.scores, recorded.scores), (plain.logits, recorded.logits)):
        assert len(one) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert "generate" not in vars(model)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_record_has_the_tokens_and_probabilities_that_generate_returns(
    server: RecordServer, model: Any, tokenizer: Any, strategy: str
) -> None:
    arguments = STRATEGIES[strategy]
    torch.manual_seed(3)
    result, recorded = record_one(
        server,
        model,
        tokenizer,
        **arguments,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    num_returned = arguments.get("num_return_sequences", 1)
    num_beams = arguments.get("num_beams", 1)
    assert [g.started.recorded.num_prompts for g in recorded] == [2, 2]
    for prompt, generation in enumerate(recorded):
        started = generation.started
        ids = PROMPTS["input_ids"][prompt, -LENGTHS[prompt] :].tolist()
        assert list(started.prompt_token_ids) == ids
        assert started.prompt == tokenizer.decode(ids)
        steps = read_steps(server, started.generation_id)
        for sequence in range(num_returned):
            row = prompt * num_returned + sequence
            tokens = result.sequences[row, 5:].tolist()
            if EOS in tokens:
                tokens = tokens[: tokens.index(EOS) + 1]
            got = generation.finished.sequences[sequence]
            assert list(got.token_ids) == tokens
            assert got.text == tokenizer.decode(tokens, skip_special_tokens=True)
            ended = tokens[-1] == EOS
            assert got.finish_reason == (
                FinishReason.FINISH_REASON_END_OF_SEQUENCE
                if ended
                else FinishReason.FINISH_REASON_LENGTH
            )
            if num_beams > 1:
                assert got.score == pytest.approx(float(result.sequences_scores[row]), abs=1e-5)
            for index, token_id in enumerate(tokens):
                source = int(result.beam_indices[row, index]) if num_beams > 1 else row
                check_step(
                    steps[sequence, index],
                    token_id,
                    result.logits[index][source],
                    result.scores[index][source],
                )


def check_step(step: Any, token_id: int, logits: torch.Tensor, scores: torch.Tensor) -> None:
    own, processed = torch.log_softmax(logits, -1), torch.log_softmax(scores, -1)
    top = own.topk(8)
    assert step.token_id == token_id
    assert step.logprob == pytest.approx(float(own[token_id]), abs=1e-5)
    assert step.sampling_logprob == pytest.approx(float(processed[token_id]), abs=1e-5)
    assert step.rank == int((logits > logits[token_id]).sum())
    assert step.entropy == pytest.approx(float(-(own.exp() * own).nansum()), abs=1e-4)
    assert step.sampling_entropy == pytest.approx(
        float(-(processed.exp() * processed).nansum()), abs=1e-4
    )
    assert list(step.candidates.token_ids) == top.indices.tolist()
    assert list(step.candidates.logprobs) == pytest.approx(top.values.tolist(), abs=1e-5)
    assert list(step.candidates.sampling_logprobs) == pytest.approx(
        processed[top.indices].tolist(), abs=1e-5
    )
    assert not step.HasField("draw")
    if step.HasField("processors"):
        effects = step.processors
        assert effects.num_kept[-1] == int((scores > -torch.inf).sum())
        assert effects.token_logprobs[-1] == pytest.approx(step.sampling_logprob, abs=1e-5)
        assert all(0 <= mass <= 1 for mass in effects.removed_mass)


def test_effects_name_every_processor_in_order(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    class Forbid(LogitsProcessor):
        """A processor of the service's own, which writes to the scores that it is given."""

        def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, :10] = -torch.inf
            return scores

    _, recorded = record_one(
        server, model, tokenizer, **SAMPLE, logits_processor=LogitsProcessorList([Forbid()])
    )
    # transformers makes two processors of min_new_tokens.
    names = ["min_length", "min_new_tokens", "Forbid", "temperature", "top_k", "top_p"]
    assert list(recorded[0].started.processor_names) == names
    vocabulary = model.config.vocab_size
    for index in range(2):
        step = read_steps(server, recorded[0].started.generation_id)[0, index]
        kept = list(step.processors.num_kept)
        # min_new_tokens forbids the end of the sequence; top_k leaves 40.
        assert kept[:5] == [*[vocabulary - 1] * 2, *[vocabulary - 11] * 2, 40]
        # The model's own distribution, although Forbid overwrote its scores.
        own = sum(torch.tensor(step.candidates.logprobs).exp().tolist())
        assert 0 < own < 1
        removed = step.processors.removed_mass
        assert removed[1] == removed[3] == 0
        assert removed[2] > 0


def test_settings_in_effect_are_on_record_without_a_seed(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    _, (generation, _) = record_one(server, model, tokenizer, **SAMPLE)
    decoding = generation.started.effective_decoding
    assert decoding.max_new_tokens == 7
    assert decoding.min_new_tokens == 3
    assert decoding.sample.temperature == pytest.approx(0.7)
    assert (decoding.sample.top_k, decoding.sample.top_p) == (40, pytest.approx(0.9))
    assert not decoding.sample.HasField("seed")
    grades = generation.started.observation
    assert grades.seed == observation_pb2.SEED_ORIGIN_UNKNOWN
    assert grades.draw == observation_pb2.DRAW_ORIGIN_ENGINE
    assert grades.weights == observation_pb2.WEIGHTS_ORIGIN_CLAIMED
    assert generation.started.recorded.library.startswith("whence-hooks/")
    timing = read_steps(server, generation.started.generation_id)[0, 1].timing
    assert timing.batch_size == 2
    assert timing.context_length == LENGTHS[0] + 1


def test_rounds_of_a_beam_search_lead_to_the_returned_sequences(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        model.generate(**PROMPTS | COMMON | BEAMS)
        assert recording.flush(30)
    for generation in read_all(server, label):
        rounds = read_rounds(server, generation.started.generation_id)
        hypotheses: list[tuple[list[int], float]] = [([], 0.0)]
        finished = []
        for played in rounds:
            kept = []
            for c in played.continuations:
                tokens, score = hypotheses[c.parent]
                extended = ([*tokens, c.token_id], score + c.logprob)
                assert c.score == pytest.approx(extended[1], abs=1e-4)
                if c.kept:
                    kept.append(extended)
                if c.finished:
                    finished.append(extended[0])
            hypotheses = kept
        assert hypotheses == []
        returned = [list(s.token_ids) for s in generation.finished.sequences]
        assert all(tokens in finished for tokens in returned)


def test_generations_of_several_threads_and_models_are_recorded_apart(
    server: RecordServer, model: Any, tokenizer: Any, tiny_model: Callable[..., Path]
) -> None:
    other = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    label = str(uuid.uuid4())
    results: dict[int, Any] = {}
    with (
        record_generate(
            model, tokenizer, server.target, labels={"test": label}, model_name="one"
        ) as first,
        record_generate(
            other, tokenizer, server.target, labels={"test": label}, model_name="other"
        ) as second,
    ):

        def work(number: int) -> None:
            chosen = (model, other)[number % 2]
            ids = torch.tensor([[10 + number, 20, 30]])
            results[10 + number] = chosen.generate(ids, max_new_tokens=5, pad_token_id=0)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert first.flush(30)
        assert second.flush(30)
    recorded = read_all(server, label)
    assert sorted(g.started.model for g in recorded) == ["one"] * 3 + ["other"] * 3
    for generation in recorded:
        expected = results[generation.started.prompt_token_ids[0]]
        (sequence,) = generation.finished.sequences
        assert list(sequence.token_ids) == expected[0, 3:].tolist()


def test_pipeline_and_streamer_work_unchanged(
    server: RecordServer, model: Any, tokenizer: Any
) -> None:
    label = str(uuid.uuid4())
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    plain = generator("The quick brown", **arguments)
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        recorded = generator("The quick brown", **arguments)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        ids = tokenizer("The quick brown", return_tensors="pt")
        thread = threading.Thread(
            target=model.generate, kwargs={**ids, **arguments, "streamer": streamer}
        )
        thread.start()
        streamed = "".join(streamer)
        thread.join()
        assert recording.flush(30)
    assert recorded == plain
    texts = [g.finished.sequences[0].text for g in read_all(server, label)]
    assert texts == [streamed, streamed]
    assert plain[0]["generated_text"].endswith(streamed)


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


@pytest.mark.parametrize("strategy", ["greedy", "several", "beams"])
def test_output_of_the_real_model_is_bitwise_that_without_the_hook(
    server: RecordServer, loaded_real_model: tuple[Any, Any], strategy: str
) -> None:
    model, tokenizer = loaded_real_model
    text = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        text, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    arguments = {"max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True}
    label = str(uuid.uuid4())
    torch.manual_seed(5)
    plain = model.generate(**inputs, **arguments | STRATEGIES[strategy])
    state = torch.get_rng_state()
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        torch.manual_seed(5)
        recorded = model.generate(**inputs, **arguments | STRATEGIES[strategy])
        assert torch.equal(torch.get_rng_state(), state)
        assert recording.flush(60)
    assert torch.equal(plain.sequences, recorded.sequences)
    assert all(map(torch.equal, plain.scores, recorded.scores))
    (generation,) = read_all(server, label)
    length = inputs["input_ids"].shape[1]
    for sequence, ids in zip(generation.finished.sequences, plain.sequences, strict=True):
        tokens = ids[length : length + len(sequence.token_ids)].tolist()
        assert list(sequence.token_ids) == tokens
        assert sequence.text == tokenizer.decode(tokens, skip_special_tokens=True)


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
