"""`record_generate`: what `generate` returns is unchanged, and what is on record is what it did."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from record_server import RecordServer
from recorded_generate import (
    COMMON,
    EOS,
    LENGTHS,
    PROMPTS,
    read_all,
    read_rounds,
    read_steps,
    record_one,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    pipeline,
)

from whence.v1 import observation_pb2
from whence.v1.generation_pb2 import FinishReason
from whence_hooks.transformers import record_generate

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
