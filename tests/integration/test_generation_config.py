"""A model's generation_config.json, compared with `generate` on the same directory.

`generate` reads the file itself and gets no other settings. The engine gets the settings that the
server resolves for a request with all fields unset.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from engine_harness import (
    BeamHarness,
    as_in_transformers,
    loaded_model,
    prompt_of,
    reference_greedy,
)
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.domain.decoding import (
    Decoding,
    DecodingRequest,
    Strategy,
    TraceOptions,
)
from whence_server.domain.errors import ConfigurationError, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.processors import list_processor_names
from whence_server.engines.transformers.generation_config import check_file, read_defaults
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.generation.resolve import resolve_decoding
from whence_server.text.tokenizer import TextTokenizer

VOCABULARY = 416
NEVER_ENDS = {"eos_token_id": None, "max_new_tokens": 14}
PROMPTS = [prompt_of(19, seed=2), [7]]


@pytest.fixture(scope="module")
def loaded(tiny_model: Callable[..., Path]) -> LoadedModel:
    return loaded_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def tokenizer(loaded: LoadedModel) -> TextTokenizer:
    return TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)


class Configured:
    """A model with its own generation_config.json, for the server and for transformers."""

    def __init__(
        self, loaded: LoadedModel, tokenizer: TextTokenizer, directory: Path, **fields: Any
    ) -> None:
        (directory / "generation_config.json").write_text(json.dumps(fields))
        check_file(directory)
        self.config = GenerationConfig.from_pretrained(directory)
        self.loaded, self.tokenizer = loaded, tokenizer
        defaults = read_defaults(self.config, VOCABULARY, directory)
        self.info = dataclasses.replace(loaded.info, defaults=defaults)

    def decoding(self, num_prompt_tokens: int, **request: Any) -> Decoding:
        return resolve_decoding(
            DecodingRequest(**request),
            num_prompt_tokens=num_prompt_tokens,
            model=self.info,
            limits=Limits(),
            tokenizer=self.tokenizer,
        )

    def ids(self, prompt: list[int]) -> list[list[int]]:
        """Return all sequences of the engine."""
        harness = BeamHarness(self.loaded)
        decoding = self.decoding(len(prompt))
        # A neighbour that is not configured, so that settings of one row stay with it.
        harness.admit("neighbour", prompt_of(31, seed=5), Decoding(Strategy.GREEDY, 9))
        harness.admit("it", prompt, decoding)
        harness.run()
        assert not harness.failed
        if decoding.strategy is Strategy.BEAM_SEARCH:
            return harness.winners("it")
        return [harness.ids("it", i) for i in range(decoding.num_return_sequences)]

    def generate(self, prompt: list[int], **settings: Any) -> Any:
        model = self.loaded.model
        before, model.generation_config = model.generation_config, self.config
        try:
            with as_in_transformers(model):
                return model.generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                    **settings,
                )
        finally:
            model.generation_config = before

    def expected(self, prompt: list[int]) -> list[list[int]]:
        """Return all sequences of `generate`, without padding."""
        sequences = self.generate(prompt)[:, len(prompt) :].tolist()
        return [_until(ids, self.config.eos_token_id) for ids in sequences]


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.fixture
def configured(
    loaded: LoadedModel, tokenizer: TextTokenizer, tmp_path: Path
) -> Callable[..., Configured]:
    def make(**fields: Any) -> Configured:
        return Configured(loaded, tokenizer, tmp_path, **fields)

    return make


@pytest.fixture(scope="module")
def free(loaded: LoadedModel) -> list[list[int]]:
    """Continuations by `generate` of each of PROMPTS, without a generation config."""
    return [reference_greedy(loaded.model, prompt, **NEVER_ENDS) for prompt in PROMPTS]


GREEDY: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "nothing": lambda free: {},
    "suppress_tokens": lambda free: {"suppress_tokens": [*free[:4], 5000]},
    "begin_suppress_tokens": lambda free: {"begin_suppress_tokens": free[:2]},
    "bad_words_ids": lambda free: {"bad_words_ids": [free[2:4], [free[6]], free[8:11]]},
    "sequence_bias": lambda free: {"sequence_bias": [[free[1:3], -40.0], [[free[5]], 9.5]]},
    "sequence_bias that forbids": lambda free: {"sequence_bias": [[free[:2], float("-inf")]]},
    "forced_bos_token_id": lambda free: {"forced_bos_token_id": 77},
    "forced bos, and suppressed": lambda free: {
        "forced_bos_token_id": 77,
        "begin_suppress_tokens": list(range(0, 400, 2)),
    },
    "forced_eos_token_id": lambda free: {"forced_eos_token_id": 99},
    "forced eos of several": lambda free: {"forced_eos_token_id": [98, 99]},
    "forced eos, and suppressed": lambda free: {
        "forced_eos_token_id": [98, 99],
        "suppress_tokens": [98],
    },
    "eos_token_id": lambda free: {"eos_token_id": free[7]},
    "min_new_tokens": lambda free: {"eos_token_id": free[4], "min_new_tokens": 10},
    "min_length": lambda free: {"eos_token_id": free[4], "min_length": 26},
    "min_length under min_new_tokens": lambda free: {
        "eos_token_id": free[4],
        "min_length": 26,
        "min_new_tokens": 6,
    },
    "max_length": lambda free: {"max_new_tokens": None, "max_length": 27},
    "max_length under max_new_tokens": lambda free: {"max_length": 12},
    "repetition_penalty": lambda free: {"repetition_penalty": 1.6},
    "no_repeat_ngram_size": lambda free: {"no_repeat_ngram_size": 2},
    "a size that is off": lambda free: {"no_repeat_ngram_size": -1},
    "renormalize_logits": lambda free: {"renormalize_logits": True, "repetition_penalty": 1.6},
    "samplers' settings without sampling": lambda free: {"temperature": 0.0, "top_p": 0.1},
    "all at once": lambda free: {
        "sequence_bias": [[free[1:3], -40.0]],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[free[6]]],
        "eos_token_id": free[4],
        "min_new_tokens": 12,
        "forced_bos_token_id": 77,
        "forced_eos_token_id": 99,
        "suppress_tokens": free[:2],
        "begin_suppress_tokens": free[:6],
        "renormalize_logits": True,
    },
    "nulls": lambda free: dict.fromkeys(
        ("top_k", "temperature", "num_beams", "do_sample", "early_stopping", "suppress_tokens")
    ),
}


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize("case", GREEDY)
def test_greedy_ids_are_those_of_generate(
    configured: Callable[..., Configured], free: list[list[int]], case: str
) -> None:
    for prompt, continuation in zip(PROMPTS, free, strict=True):
        model = configured(**NEVER_ENDS | GREEDY[case](continuation))
        assert model.ids(prompt) == model.expected(prompt), (case, len(prompt))


BEAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early_stopping": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 2.0},
    "length_penalty": {"length_penalty": -1.0},
    "num_return_sequences": {"num_return_sequences": 3},
    "renormalize_logits": {"renormalize_logits": True, "repetition_penalty": 1.8},
    "forced": {"forced_bos_token_id": 77, "forced_eos_token_id": 99},
    "suppressed": {"suppress_tokens": list(range(0, 300, 3)), "begin_suppress_tokens": [1, 7, 10]},
    "biased": {"sequence_bias": [[[t], 2.5] for t in range(0, 300, 5)], "min_length": 20},
}


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize("case", BEAMS)
def test_beams_are_those_of_generate(
    configured: Callable[..., Configured], free: list[list[int]], case: str
) -> None:
    for prompt, continuation in zip(PROMPTS, free, strict=True):
        fields = {"num_beams": 4, "eos_token_id": continuation[9], "max_new_tokens": 14}
        model = configured(**fields, **BEAMS[case])
        assert model.ids(prompt) == model.expected(prompt), (case, len(prompt))


SAMPLING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_k off": {"top_k": 0},
    "top_k": {"top_k": 7},
    "temperature": {"temperature": 0.6},
    "top_h": {"top_h": 0.4, "temperature": 1.7},
    "top_h before top_k": {"top_h": 0.9, "top_k": 3},
    "top_p": {"top_p": 0.7},
    "top_p that is off": {"top_p": 1.5},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.6, "top_k": 0},
    "cutoffs": {"epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
    "cutoffs that are off": {"epsilon_cutoff": 0.0, "eta_cutoff": 1.0},
    "renormalize_logits": {"renormalize_logits": True, "temperature": 2.0},
    "penalties": {"suppress_tokens": [3, 4], "sequence_bias": [[[9], 3.0]], "temperature": 1.3},
    "forced": {"forced_eos_token_id": [98, 99]},
}


@pytest.mark.parametrize("case", SAMPLING)
def test_distributions_are_those_of_generate(
    configured: Callable[..., Configured], case: str
) -> None:
    model = configured(do_sample=True, max_new_tokens=1, eos_token_id=None, **SAMPLING[case])
    for prompt in PROMPTS:
        decoding = dataclasses.replace(model.decoding(len(prompt)), seed=11)
        assert decoding.strategy is Strategy.SAMPLE
        harness = BeamHarness(model.loaded)
        harness.admit("it", prompt, decoding, TraceOptions(num_candidates=128))
        harness.run()
        [step] = harness.steps["it", 0]
        output = model.generate(prompt, output_scores=True, return_dict_in_generate=True)
        expected = torch.log_softmax(output.scores[0][0], -1)
        assert step.decision.candidates is not None
        ids = step.decision.candidates.token_ids
        torch.testing.assert_close(
            torch.tensor(step.decision.candidates.sampling_logprobs),
            expected[ids],
            rtol=0,
            atol=1e-4,
        )
        assert step.decision.sampling_logprob == pytest.approx(
            float(expected[step.decision.token_id]), abs=1e-4
        )
        if step.decision.effects is not None:
            assert step.decision.effects.num_kept[-1] == int(expected.isfinite().sum())


def test_processors_are_named_in_the_order_of_generate(
    configured: Callable[..., Configured],
) -> None:
    fields: dict[str, Any] = {
        "do_sample": True,
        "eos_token_id": 0,
        "sequence_bias": [[[1], 1.0]],
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[5, 6]],
        "min_new_tokens": 2,
        "forced_bos_token_id": 4,
        "forced_eos_token_id": 3,
        "suppress_tokens": [8],
        "begin_suppress_tokens": [9],
        "temperature": 0.7,
        "top_h": 0.9,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.95,
        "epsilon_cutoff": 0.001,
        "eta_cutoff": 0.001,
        "renormalize_logits": True,
    }
    model = configured(**fields)
    prepared, _ = model.loaded.model._prepare_generation_config(model.config)
    prepared.max_length, prepared.min_length = 30, None
    prepared._eos_token_tensor = torch.tensor([0])
    theirs = model.loaded.model._get_logits_processor(prepared, 1, device="cpu")
    names = [
        type(processor).__name__.removesuffix("LogitsProcessor").removesuffix("LogitsWarper")
        for processor in theirs
    ]
    alike = {
        "NoBadWords": "bad_words",
        "MinNewTokensLength": "min_new_tokens",
        "ForcedBOSToken": "forced_bos_token",
        "ForcedEOSToken": "forced_eos_token",
        "SuppressTokensAtBegin": "begin_suppress_tokens",
        "NoRepeatNGram": "no_repeat_ngram",
        "SequenceBias": "sequence_bias",
        "RepetitionPenalty": "repetition_penalty",
        "SuppressTokens": "suppress_tokens",
        "Temperature": "temperature",
        "TopH": "top_h",
        "TopK": "top_k",
        "TopP": "top_p",
        "MinP": "min_p",
        "Typical": "typical_p",
        "Epsilon": "epsilon_cutoff",
        "Eta": "eta_cutoff",
        "LogitNormalization": "renormalize_logits",
    }
    assert list(list_processor_names(model.decoding(1))) == [alike[name] for name in names]


def test_request_fields_override_the_config(
    configured: Callable[..., Configured],
) -> None:
    model = configured(
        do_sample=True,
        num_return_sequences=2,
        top_k=9,
        max_length=40,
        min_length=20,
        stop_strings=["a", "b"],
        bad_words_ids=[[5, 6]],
        sequence_bias=[[[1], 1.0]],
        suppress_tokens=[8],
        top_h=0.5,
    )
    unset = model.decoding(12)
    assert (unset.max_new_tokens, unset.min_new_tokens, unset.stop) == (28, 8, ("a", "b"))
    assert (unset.num_return_sequences, unset.top_k, unset.bad_word_ids) == (2, 9, ((5, 6),))
    chosen = model.decoding(
        12,
        strategy=Strategy.GREEDY,
        max_new_tokens=60,
        min_new_tokens=0,
        stop=("c",),
        bad_words=("fox",),
        logit_bias=((3, 1.0),),
    )
    assert (chosen.max_new_tokens, chosen.min_new_tokens, chosen.stop) == (60, 0, ("c",))
    assert chosen.num_return_sequences == 1
    assert (5, 6) not in chosen.bad_word_ids
    assert chosen.configured.sequence_biases == ()
    assert chosen.configured.suppress_token_ids == (8,)
    assert list_processor_names(chosen) == ("logit_bias", "bad_words", "suppress_tokens")
    forced = model.decoding(12, strategy=Strategy.FORCED, forced="The fox")
    assert list_processor_names(forced) == ()
    assert (forced.stop, forced.bad_word_ids) == ((), ())


def test_a_prompt_that_fills_max_length_is_refused_as_by_generate(
    configured: Callable[..., Configured],
) -> None:
    model = configured(max_length=9, eos_token_id=None)
    prompt = prompt_of(9, seed=1)
    with pytest.raises(ValueError, match="max_length"):
        model.generate(prompt)
    with pytest.raises(InvalidRequestError) as caught:
        model.decoding(len(prompt))
    [violation] = caught.value.violations
    assert violation.field == "decoding.max_new_tokens"
    assert "sets max_length to 9" in violation.description
    assert model.decoding(len(prompt), max_new_tokens=5).max_new_tokens == 5


def test_a_sampling_fault_of_the_config_names_the_config(
    configured: Callable[..., Configured],
) -> None:
    model = configured(temperature=0.0)
    assert model.decoding(5).strategy is Strategy.GREEDY
    with pytest.raises(InvalidRequestError) as caught:
        model.decoding(5, strategy=Strategy.SAMPLE)
    [violation] = caught.value.violations
    assert violation.field == "decoding.sample.temperature"
    assert "the model's generation config" in violation.description
    with pytest.raises(InvalidRequestError) as caught:
        model.decoding(5, strategy=Strategy.SAMPLE, temperature=0.0)
    assert "generation config" not in caught.value.violations[0].description


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 2},
        {"sequence_bias": [[[3], 2]]},
        {"do_sample": True, "temperature": 2},
        {"do_sample": True, "top_k": -1},
        {"do_sample": True, "top_p": -0.1},
        {"eos_token_id": []},
    ],
)
def test_what_generate_fails_at_ends_the_start(
    loaded: LoadedModel, tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    config = GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises((ValueError, IndexError), match=r"float|top_k|top_p|out of bounds"):
        loaded.model.generate(torch.tensor([[7]]), generation_config=config, max_new_tokens=1)
    *_, name = fields
    with pytest.raises(ConfigurationError, match=f"{name} is "):
        check_file(tmp_path)


@pytest.mark.parametrize(
    "fields", [{"repetition_penalty": 1}, {"do_sample": True, "temperature": 1}]
)
def test_a_neutral_whole_number_is_taken_as_by_generate(
    configured: Callable[..., Configured], fields: dict[str, Any]
) -> None:
    model = configured(max_new_tokens=2, **fields)
    model.generate(PROMPTS[0])
    assert model.ids(PROMPTS[0])


def test_a_whole_temperature_that_only_a_sampling_request_meets_is_told_as_the_configs(
    configured: Callable[..., Configured],
) -> None:
    model = configured(temperature=2)
    with pytest.raises(InvalidRequestError, match="temperature"):
        model.decoding(5, strategy=Strategy.SAMPLE)
    assert model.decoding(5, strategy=Strategy.SAMPLE, temperature=0.5).temperature == 0.5


def test_a_server_says_what_it_applied(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("The quick brown fox", return_tensors="pt").input_ids
    free = model.generate(ids, max_new_tokens=40, eos_token_id=None, pad_token_id=0)
    text = tokenizer.decode(free[0, ids.shape[1] :])
    fields = {
        "stop_strings": [text[30:34], "nowhere in it"],
        "suppress_tokens": [int(free[0, ids.shape[1] + 1])],
        "max_length": 60,
        "eos_token_id": None,
    }
    path = directory / "generation_config.json"
    path.write_text(json.dumps(fields))
    model = AutoModelForCausalLM.from_pretrained(directory)
    with (
        ServerProcess(directory, tmp_path / "data") as process,
        grpc.insecure_channel(process.target) as channel,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        events = [e.event for e in stub.Generate(g.GenerateRequest(prompt="The quick brown fox"))]
    expected = model.generate(ids, tokenizer=tokenizer, pad_token_id=0)[0, ids.shape[1] :]
    started, finished = events[0].started, events[-1].finished
    [sequence] = finished.sequences
    stopped = [stop for stop in fields["stop_strings"] if stop in tokenizer.decode(expected)]
    whole = tokenizer.decode(expected)
    assert sequence.text == (whole.partition(stopped[0])[0] if stopped else whole)
    assert list(sequence.token_ids) == expected.tolist()
    assert list(started.effective_decoding.stop) == fields["stop_strings"]
    assert list(started.configured_decoding.suppress_token_ids) == fields["suppress_tokens"]
    assert list(started.processor_names) == ["suppress_tokens"]
    assert started.effective_decoding.max_new_tokens == 60 - ids.shape[1]
