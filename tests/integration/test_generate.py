"""Generations over gRPC, compared with transformers and with the contract."""

import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from draws import compute_noise
from server_process import ServerProcess
from tiny_models import CHAT_TEMPLATE, PADDED_VOCABULARY
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, step_pb2

PROMPT = "The quick brown fox: naïve 😀"


class Generation:
    """A complete stream, by kinds of events."""

    def __init__(self, responses: Iterator[g.GenerateResponse]) -> None:
        self.steps: list[step_pb2.Step] = []
        self.prompt_steps: list[step_pb2.Step] = []
        offset = 0
        for response in responses:
            event = response.event
            if event.HasField("progress"):
                continue  # on a machine that is slow now
            assert event.first_offset == offset + 1
            offset = event.last_offset
            kind = event.WhichOneof("event")
            if kind == "started":
                self.started = event.started
            elif kind == "prompt_steps":
                self.prompt_steps += event.prompt_steps.steps
            elif kind == "steps":
                self.steps += event.steps.steps
            else:
                self.finished = event.finished
        for sequence in self.finished.sequences:
            steps = self.steps_of(sequence.sequence_index)
            assert "".join(s.text for s in steps) == sequence.text
            assert [s.token_id for s in steps] == list(sequence.token_ids)
            assert [s.index for s in steps] == list(range(len(steps)))
            assert sequence.logprob == pytest.approx(sum(s.logprob for s in steps), abs=1e-3)

    def steps_of(self, sequence_index: int) -> list[step_pb2.Step]:
        return [s for s in self.steps if s.sequence_index == sequence_index]

    def token_ids(self, sequence_index: int = 0) -> list[int]:
        return list(self.finished.sequences[sequence_index].token_ids)


def generate(channel: grpc.Channel, request: g.GenerateRequest) -> Generation:
    return Generation(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request))


@pytest.fixture(scope="module")
def reference(tiny_model: Callable[..., Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]):
    return AutoTokenizer.from_pretrained(tiny_model("gpt2"))


def test_greedy_equals_transformers(channel, reference, tokenizer) -> None:
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = reference.generate(ids, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :]
    result = generate(
        channel,
        g.GenerateRequest(prompt=PROMPT, decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=60)),
    )
    assert list(result.started.prompt_token_ids) == ids[0].tolist()
    assert result.token_ids() == expected.tolist()
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert result.finished.sequences[0].text == text
    assert result.started.prompt == PROMPT


def test_logprobs_are_those_of_a_plain_forward_pass(channel, reference) -> None:
    result = generate(
        channel,
        g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(
                sample=g.Sample(seed=3, temperature=0.7, top_k=20), max_new_tokens=40
            ),
            trace=g.TraceOptions(prompt=True, num_candidates=5),
        ),
    )
    prompt_ids = list(result.started.prompt_token_ids)
    ids = torch.tensor([prompt_ids + result.token_ids()])
    with torch.no_grad():
        logprobs = torch.log_softmax(reference(ids).logits[0].float(), -1)
    steps = [*result.prompt_steps, *result.steps]
    assert len(steps) == ids.shape[1]
    assert not steps[0].HasField("logprob")
    for position, step in enumerate(steps[1:]):
        row = logprobs[position]
        assert step.token_id == ids[0, position + 1]
        assert step.logprob == pytest.approx(row[step.token_id].item(), abs=1e-4)
        assert step.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
        assert step.rank == (row > row[step.token_id]).sum()
        top = row.topk(5)
        assert list(step.candidates.token_ids) == top.indices.tolist()
        assert list(step.candidates.logprobs) == pytest.approx(top.values.tolist(), abs=1e-4)
    assert "".join(s.text for s in result.prompt_steps) == PROMPT


SEED = 0xFEDCBA9876543210


def test_every_draw_can_be_recomputed(channel) -> None:
    result = generate(
        channel,
        g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(
                sample=g.Sample(seed=SEED, temperature=1.3, top_k=12, top_p=0.9),
                max_new_tokens=100,
                num_return_sequences=3,
                ignore_eos=True,
            ),
            trace=g.TraceOptions(num_candidates=12),
        ),
    )
    assert result.started.effective_decoding.sample.seed == SEED
    assert list(result.started.processor_names) == ["temperature", "top_k", "top_p"]
    recomputed = 0
    for step in result.steps:
        assert step.draw.noise == pytest.approx(compute_noise(SEED, step, step.token_id), rel=1e-6)
        alive = {
            i: lp
            for i, lp in zip(
                step.candidates.token_ids, step.candidates.sampling_logprobs, strict=True
            )
            if lp > -math.inf
        }
        if len(alive) != step.processors.num_kept[-1]:
            continue
        assert sum(math.exp(lp) for lp in alive.values()) == pytest.approx(1, abs=1e-4)
        race = sorted((math.log(compute_noise(SEED, step, i)) - lp, i) for i, lp in alive.items())
        if len(race) > 1:
            assert step.draw.margin == pytest.approx(race[1][0] - race[0][0], abs=1e-4)
            if step.draw.margin < 1e-4:
                continue
            assert step.draw.runner_up_token_id == race[1][1]
        assert race[0][1] == step.token_id
        recomputed += 1
    assert recomputed > 200


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(channel) -> None:
    def request(seed: int) -> g.GenerateRequest:
        return g.GenerateRequest(
            prompt=PROMPT[: 5 + seed],
            decoding=g.Decoding(sample=g.Sample(seed=seed), max_new_tokens=50, ignore_eos=True),
        )

    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    together = [Generation(call) for call in [stub.Generate(request(i)) for i in range(12)]]
    assert max(s.timing.batch_size for r in together for s in r.steps) > 4
    for seed, beside in enumerate(together):
        alone = generate(channel, request(seed))
        assert {s.timing.batch_size for s in alone.steps} == {1}
        steps = zip(alone.steps, beside.steps, strict=True)
        for mine, theirs in steps:
            if mine.token_id != theirs.token_id:
                # Beyond a draw this close, float noise may decide: contract's stated margin.
                assert mine.draw.margin < 1e-4
                break


def test_samples_follow_the_processed_distribution(channel, reference) -> None:
    """First tokens of 640 samples against `generate`'s own processed scores, by chi-square."""
    decoding = g.Decoding(
        sample=g.Sample(temperature=1.5, top_k=8), max_new_tokens=1, num_return_sequences=64
    )
    counts: Counter[int] = Counter()
    for seed in range(10):
        decoding.sample.seed = seed
        result = generate(channel, g.GenerateRequest(prompt=PROMPT, decoding=decoding))
        counts.update(s.token_ids[0] for s in result.finished.sequences)
    scores = reference.generate(
        torch.tensor([list(result.started.prompt_token_ids)]),
        do_sample=True,
        temperature=1.5,
        top_k=8,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
    ).scores[0][0]
    expected = torch.softmax(scores, -1) * 640
    drawable = torch.nonzero(expected).flatten().tolist()
    assert set(counts) <= set(drawable)
    chi_square = sum((counts[i] - expected[i].item()) ** 2 / expected[i].item() for i in drawable)
    # The 0.9999 quantile of chi-square with 7 degrees of freedom.
    assert chi_square < 29.9


def test_tokens_do_not_depend_on_the_trace_detail(channel) -> None:
    def run(**trace: object) -> Generation:
        request = g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(
                sample=g.Sample(seed=9, top_p=0.9), max_new_tokens=40, repetition_penalty=1.1
            ),
            trace=g.TraceOptions(**trace),
        )
        return generate(channel, request)

    runs = [
        run(detail=g.TRACE_DETAIL_TOKENS),
        run(detail=g.TRACE_DETAIL_DECISIONS, num_candidates=0),
        run(detail=g.TRACE_DETAIL_DECISIONS, num_candidates=50),
    ]
    assert len({tuple(r.token_ids()) for r in runs}) == 1
    assert len({tuple(s.logprob for s in r.steps) for r in runs}) == 1
    assert len({tuple(s.sampling_logprob for s in r.steps) for r in runs}) == 1
    # Tracing the prompt multiplies all its positions by the head at once: float noise, no more.
    prompted = run(detail=g.TRACE_DETAIL_DECISIONS, prompt=True)
    assert prompted.token_ids() == runs[0].token_ids()
    assert [s.logprob for s in prompted.steps] == pytest.approx(
        [s.logprob for s in runs[0].steps], abs=1e-5
    )
    bare = runs[0].steps[0]
    assert not bare.HasField("entropy")
    assert not bare.HasField("candidates")
    assert not bare.HasField("draw")


def test_internals_are_recorded_and_do_not_change_tokens(channel) -> None:
    def run(detail: int, **trace: object):
        return generate(
            channel,
            g.GenerateRequest(
                prompt=PROMPT,
                decoding=g.Decoding(sample=g.Sample(seed=5), max_new_tokens=12, ignore_eos=True),
                trace=g.TraceOptions(detail=detail, **trace),
            ),
        )

    seen, plain = run(g.TRACE_DETAIL_INTERNALS, prompt=True), run(g.TRACE_DETAIL_DECISIONS)
    assert seen.started.effective_trace.detail == g.TRACE_DETAIL_INTERNALS
    assert seen.started.source_method == "value-norm-attention/2"
    assert not seen.started.unavailable
    assert not plain.started.source_method
    assert not any(step.HasField("internals") for step in seen.prompt_steps)
    for step in seen.steps:
        internals = step.internals
        assert max(internals.source_positions) < step.timing.context_length - 1
        assert sum(internals.source_shares) + internals.self_share <= 1 + 1e-5
        assert len(internals.layer_shares) == len(internals.layer_leaders) == 3
        assert max(internals.layer_leaders) <= len(step.candidates.token_ids)
    bare = run(g.TRACE_DETAIL_INTERNALS).steps
    for step, other in zip(bare, plain.steps, strict=True):
        assert not other.HasField("internals")
        for part in ("internals", "timing"):
            step.ClearField(part)
            other.ClearField(part)
        assert step == other


def test_internals_without_candidates_have_a_reason_for_missing_layers(channel) -> None:
    result = generate(
        channel,
        g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(max_new_tokens=2),
            trace=g.TraceOptions(detail=g.TRACE_DETAIL_INTERNALS, num_candidates=0),
        ),
    )
    assert result.started.effective_trace.detail == g.TRACE_DETAIL_INTERNALS
    assert "candidates" in result.started.unavailable["layers"]
    assert all(step.internals.HasField("self_share") for step in result.steps)
    assert not any(step.internals.layer_shares for step in result.steps)


def test_forced_continuations_are_scored(channel, reference) -> None:
    text = " jumps over the lazy dog — “quoted” 😀"
    result = generate(
        channel, g.GenerateRequest(prompt=PROMPT, decoding=g.Decoding(forced=g.Forced(text=text)))
    )
    assert result.finished.sequences[0].text == text
    assert result.finished.finish_reason == g.FINISH_REASON_LENGTH
    ids = torch.tensor([[*result.started.prompt_token_ids, *result.token_ids()]])
    with torch.no_grad():
        logprobs = torch.log_softmax(reference(ids).logits[0].float(), -1)
    for i, step in enumerate(result.steps):
        position = len(result.started.prompt_token_ids) + i - 1
        assert step.logprob == pytest.approx(logprobs[position, step.token_id].item(), abs=1e-4)
        assert not step.HasField("draw")
        assert not step.HasField("sampling_logprob")


def test_text_ends_before_a_stop_string(channel) -> None:
    sample = g.Sample(seed=4, temperature=1.2)
    free = generate(
        channel,
        g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(sample=sample, max_new_tokens=80, ignore_eos=True),
        ),
    ).finished.sequences[0]
    stop = free.text[40:44]
    stopped = generate(
        channel,
        g.GenerateRequest(
            prompt=PROMPT,
            decoding=g.Decoding(sample=sample, max_new_tokens=80, ignore_eos=True, stop=[stop]),
        ),
    )
    sequence = stopped.finished.sequences[0]
    assert sequence.text == free.text[: free.text.index(stop)]
    assert (sequence.finish_reason, sequence.stop) == (g.FINISH_REASON_STOP, stop)
    assert sequence.token_ids == free.token_ids[: len(sequence.token_ids)]
    ends = [s.text_end_byte for s in stopped.steps]
    assert ends == sorted(ends)
    assert ends[-1] >= len(sequence.text.encode())


def test_stop_token_ids_and_minimum_length(channel) -> None:
    greedy = g.Decoding(greedy=g.Greedy(), max_new_tokens=30, ignore_eos=True)
    free = generate(channel, g.GenerateRequest(prompt=PROMPT, decoding=greedy)).token_ids()
    stop_id = free[5]
    greedy.stop_token_ids.append(stop_id)
    stopped = generate(channel, g.GenerateRequest(prompt=PROMPT, decoding=greedy))
    assert stopped.token_ids() == free[: free.index(stop_id) + 1]
    assert stopped.finished.finish_reason == g.FINISH_REASON_STOP
    greedy.min_new_tokens = 20
    longer = generate(channel, g.GenerateRequest(prompt=PROMPT, decoding=greedy))
    assert len(longer.token_ids()) >= 20
    assert stop_id not in longer.token_ids()[:20]


def test_a_full_context_ends_a_generation(channel) -> None:
    result = generate(
        channel,
        g.GenerateRequest(
            tokens=g.TokenInput(token_ids=[5] * 250),
            decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=1_000, ignore_eos=True),
        ),
    )
    assert result.started.effective_decoding.max_new_tokens == 6
    assert len(result.token_ids()) == 6
    assert result.finished.finish_reason == g.FINISH_REASON_LENGTH


def test_chat_uses_the_models_template(channel, tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a token?"},
    ]
    result = generate(
        channel,
        g.GenerateRequest(
            chat=g.ChatInput(messages=[g.ChatMessage(**m) for m in messages]),
            decoding=g.Decoding(max_new_tokens=3),
        ),
    )
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=CHAT_TEMPLATE
    )
    assert result.started.prompt == rendered
    assert result.started.operation == "chat"


def test_ids_beyond_the_tokenizer_decode_to_empty_text(channel) -> None:
    padded = PADDED_VOCABULARY - 1
    result = generate(
        channel,
        g.GenerateRequest(
            tokens=g.TokenInput(token_ids=[5, padded]),
            decoding=g.Decoding(
                forced=g.Forced(tokens=g.TokenInput(token_ids=[padded, 40, padded]))
            ),
            trace=g.TraceOptions(prompt=True),
        ),
    )
    assert [s.text for s in result.steps][::2] == ["", ""]
    assert result.steps[1].text


def test_equal_requests_with_one_id_are_one_generation(channel) -> None:
    request = g.GenerateRequest(
        prompt=PROMPT,
        generation_id=str(uuid.uuid4()),
        decoding=g.Decoding(sample=g.Sample(), max_new_tokens=30),
    )
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    calls = [stub.Generate(request) for _ in range(3)]
    results = [Generation(call) for call in calls]
    results.append(Generation(stub.Generate(request)))
    assert len({r.finished.SerializeToString() for r in results}) == 1
    assert len({r.started.SerializeToString() for r in results}) == 1
    request.decoding.max_new_tokens = 31
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request))
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


def test_model_info_identifies_the_model(channel, reference, server: ServerProcess) -> None:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    model = stub.GetModel(model_pb2.GetModelRequest()).model
    assert model.model == "tiny"
    assert model.state == model_pb2.MODEL_STATE_READY
    assert model.architecture == "GPT2LMHeadModel"
    assert model.num_parameters == reference.num_parameters()
    assert (model.num_layers, model.vocabulary_size, model.max_context_length) == (3, 416, 256)
    assert model.batched
    assert len(model.model_digest) == len(model.weights_digest) == len(model.tokenizer_digest) == 64
    assert list(model.loaded_files) == ["model.safetensors"]
    result = generate(channel, g.GenerateRequest(prompt="x", decoding=g.Decoding(max_new_tokens=1)))
    assert result.started.model_digest == model.model_digest
    assert result.started.environment.weights_digest == model.weights_digest
    vocabulary = [
        token
        for response in stub.GetVocabulary(model_pb2.GetVocabularyRequest())
        for token in response.tokens
    ]
    assert len(vocabulary) == PADDED_VOCABULARY
    assert vocabulary[-1] == b""
