"""Bad input: each with its status and a message that says what would be right."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from google.protobuf import struct_pb2
from rpc_errors import Failure, failure_of
from server_process import ServerProcess
from tiny_models import PADDED_VOCABULARY, byte_level_tokenizer
from transformers import AutoModelForCausalLM

from whence.v1 import (
    generation_pb2 as g,
)
from whence.v1 import (
    generation_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def refused(channel: grpc.Channel, request: g.GenerateRequest, **options: float) -> Failure:
    with pytest.raises(grpc.RpcError) as caught:
        for _ in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, **options):
            pass
    return failure_of(caught.value)


@pytest.fixture(scope="module", autouse=True)
def undisturbed(server: ServerProcess) -> Iterator[None]:
    """A stream that runs through all of it, and must come out as if alone."""
    request = g.GenerateRequest(
        prompt="The quick",
        decoding=g.Decoding(sample=g.Sample(seed=5), max_new_tokens=150, ignore_eos=True),
    )
    texts: list[str] = []

    def stream() -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            *_, last = stub.Generate(request)
            texts.append(last.event.finished.sequences[0].text)

    stream()
    beside = threading.Thread(target=stream)
    beside.start()
    yield
    beside.join()
    stream()
    assert len(texts) == 3
    assert len(set(texts)) == 1


D = g.Decoding
S = g.Sample
TOO_LONG = [1] * 256
CASES: dict[str, tuple[g.GenerateRequest, dict[str, str]]] = {
    "no input": (g.GenerateRequest(), {"input": "one of"}),
    "empty prompt": (g.GenerateRequest(prompt=""), {"prompt": "must not be empty"}),
    "no tokens": (
        g.GenerateRequest(tokens=g.TokenInput()),
        {"tokens.token_ids": "at least one token"},
    ),
    "no messages": (
        g.GenerateRequest(chat=g.ChatInput()),
        {"chat.messages": "at least one message"},
    ),
    "template arguments that are no JSON": (
        g.GenerateRequest(
            chat=g.ChatInput(
                messages=[g.ChatMessage(role="user", content="x")],
                template_arguments=struct_pb2.Struct(
                    fields={"x": struct_pb2.Value(number_value=float("nan"))}
                ),
            )
        ),
        {"chat.template_arguments": "no JSON"},
    ),
    "more than the cache can ever hold": (
        g.GenerateRequest(
            prompt="x" * 40,
            decoding=D(sample=S(), num_return_sequences=64, max_new_tokens=100),
        ),
        {"decoding.max_new_tokens": "this server's holds 4096"},
    ),
    "prompt too long": (
        g.GenerateRequest(tokens=g.TokenInput(token_ids=TOO_LONG)),
        {"tokens.token_ids": "256 tokens; this server takes at most 255"},
    ),
    "id out of the vocabulary": (
        g.GenerateRequest(tokens=g.TokenInput(token_ids=[1, PADDED_VOCABULARY])),
        {"tokens.token_ids[1]": f"ids go up to {PADDED_VOCABULARY - 1}"},
    ),
    "an id out of the vocabulary, to report": (
        g.GenerateRequest(
            prompt="x", trace=g.TraceOptions(logprob_token_ids=[3, PADDED_VOCABULARY])
        ),
        {"trace.logprob_token_ids[1]": f"ids go up to {PADDED_VOCABULARY - 1}"},
    ),
    "an id to report twice": (
        g.GenerateRequest(prompt="x", trace=g.TraceOptions(logprob_token_ids=[3, 4, 3])),
        {"trace.logprob_token_ids[2]": "name it once"},
    ),
    "too many ids to report": (
        g.GenerateRequest(prompt="x", trace=g.TraceOptions(logprob_token_ids=range(129))),
        {"trace.logprob_token_ids": "129 ids; this server takes at most 128"},
    ),
    "several at once": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(sample=S(temperature=-1, top_p=0, min_p=2), max_new_tokens=0),
        ),
        {
            "decoding.sample.temperature": "from 1e-09 to 1e+09",
            "decoding.sample.top_p": "(0, 1]",
            "decoding.sample.min_p": "[0, 1]",
            "decoding.max_new_tokens": "at least 1",
        },
    ),
    "nan": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(
                sample=S(temperature=float("nan"), typical_p=2, epsilon_cutoff=1, eta_cutoff=-1),
                repetition_penalty=float("inf"),
            ),
        ),
        {
            "decoding.sample.temperature": "from 1e-09 to 1e+09",
            "decoding.sample.typical_p": "(0, 1]",
            "decoding.sample.epsilon_cutoff": "[0, 1)",
            "decoding.sample.eta_cutoff": "[0, 1)",
            "decoding.repetition_penalty": "from 0.01 to 100",
        },
    ),
    "nan and infinite bias": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(
                greedy=g.Greedy(),
                logit_bias={3: float("nan"), 4: float("inf"), PADDED_VOCABULARY + 7: 1.0},
            ),
        ),
        {
            "decoding.logit_bias[3]": "finite",
            "decoding.logit_bias[4]": "finite",
            f"decoding.logit_bias[{PADDED_VOCABULARY + 7}]": "no token",
        },
    ),
    "several greedy sequences": (
        g.GenerateRequest(prompt="x", decoding=D(greedy=g.Greedy(), num_return_sequences=2)),
        {"decoding.num_return_sequences": "ask for `sample`"},
    ),
    "too many sequences": (
        g.GenerateRequest(prompt="x", decoding=D(sample=S(), num_return_sequences=65)),
        {"decoding.num_return_sequences": "from 1 to 64"},
    ),
    "thousands of stop strings": (
        g.GenerateRequest(prompt="x", decoding=D(stop=[f"stop {i}" for i in range(5_000)])),
        {"decoding.stop": "at most 64"},
    ),
    "empty and endless stop strings": (
        g.GenerateRequest(prompt="x", decoding=D(stop=["", "x" * 2_000])),
        {"decoding.stop[0]": "not be empty", "decoding.stop[1]": "at most 1024"},
    ),
    "stop ids out of the vocabulary": (
        g.GenerateRequest(prompt="x", decoding=D(stop_token_ids=[99_999])),
        {"decoding.stop_token_ids[0]": "ids go up to"},
    ),
    "min above max": (
        g.GenerateRequest(prompt="x", decoding=D(min_new_tokens=9, max_new_tokens=8)),
        {"decoding.min_new_tokens": "more than max_new_tokens, 8"},
    ),
    "nothing forced": (
        g.GenerateRequest(prompt="x", decoding=D(forced=g.Forced())),
        {"decoding.forced.continuation": "one of"},
    ),
    "forced and penalised": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(forced=g.Forced(text="yes"), repetition_penalty=1.2, max_new_tokens=3),
        ),
        {
            "decoding.repetition_penalty": "does not go with `forced`",
            "decoding.max_new_tokens": "does not go with `forced`",
        },
    ),
    "forced beyond the context": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(forced=g.Forced(tokens=g.TokenInput(token_ids=[1] * 300))),
        ),
        {"decoding.forced.tokens": "has room for"},
    ),
    "too many candidates": (
        g.GenerateRequest(prompt="x", trace=g.TraceOptions(num_candidates=1_000)),
        {"trace.num_candidates": "at most 128"},
    ),
    "unknown detail": (
        g.GenerateRequest(prompt="x", trace=g.TraceOptions(detail=99)),  # type: ignore[arg-type]
        {"trace.detail": "no TraceDetail"},
    ),
    "one beam": (
        g.GenerateRequest(prompt="x", decoding=D(beam_search=g.BeamSearch(num_beams=1))),
        {"decoding.beam_search.num_beams": "from 2 to 64"},
    ),
    "beams by a default that there is not": (
        g.GenerateRequest(prompt="x", decoding=D(beam_search=g.BeamSearch())),
        {"decoding.beam_search.num_beams": "must be set"},
    ),
    "more beams returned than there are": (
        g.GenerateRequest(
            prompt="x", decoding=D(beam_search=g.BeamSearch(num_beams=2), num_return_sequences=3)
        ),
        {"decoding.num_return_sequences": "more than num_beams, 2"},
    ),
    "numbers by which scores would leave float32": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(
                sample=S(temperature=1e-10),
                repetition_penalty=3.4e38,
                logit_bias={5: -3.4e38, 6: 1.1e9},
                no_repeat_ngram_size=129,
            ),
        ),
        {
            "decoding.sample.temperature": "from 1e-09 to 1e+09",
            "decoding.repetition_penalty": "from 0.01 to 100",
            "decoding.logit_bias[5]": "from -1e+09 to 1e+09",
            "decoding.logit_bias[6]": "from -1e+09 to 1e+09",
            "decoding.no_repeat_ngram_size": "at most 128",
        },
    ),
    "a length to a power that float32 cannot hold": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(
                beam_search=g.BeamSearch(num_beams=2, length_penalty=-100), max_new_tokens=20
            ),
        ),
        {"decoding.beam_search.length_penalty": "from 1e-20 to 1e+20"},
    ),
    "an endless length penalty": (
        g.GenerateRequest(
            prompt="x",
            decoding=D(beam_search=g.BeamSearch(num_beams=2, length_penalty=float("inf"))),
        ),
        {"decoding.beam_search.length_penalty": "from -100 to 100"},
    ),
    "beams that stop at a string": (
        g.GenerateRequest(
            prompt="x", decoding=D(beam_search=g.BeamSearch(num_beams=2), stop=["a"])
        ),
        {"decoding.stop": "stop_token_ids"},
    ),
    "beams beyond the cache": (
        g.GenerateRequest(
            prompt="x", decoding=D(beam_search=g.BeamSearch(num_beams=40), max_new_tokens=200)
        ),
        {"decoding.max_new_tokens": "40 beams of"},
    ),
    "no UUID": (
        g.GenerateRequest(prompt="x", generation_id="mine"),
        {"generation_id": "must be a UUID"},
    ),
    "a wide label": (
        g.GenerateRequest(prompt="x", labels={"k": "v" * 500}),
        {"labels[k]": "at most 256"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_invalid_requests_name_field_and_rule(channel: grpc.Channel, name: str) -> None:
    request, expected = CASES[name]
    failure = refused(channel, request)
    assert failure.code is INVALID
    assert failure.fields.keys() == expected.keys(), failure.fields
    for field, words in expected.items():
        assert words in failure.fields[field]
        assert field in failure.message


def test_durations_out_of_range_are_refused(channel: grpc.Channel) -> None:
    request = g.GenerateRequest(prompt="x")
    request.disconnect_grace.FromSeconds(-1)
    request.max_duration.FromSeconds(0)
    failure = refused(channel, request)
    assert failure.fields.keys() == {"disconnect_grace", "max_duration"}


def test_unknown_model_is_not_found(channel: grpc.Channel) -> None:
    failure = refused(channel, g.GenerateRequest(prompt="x", model="another"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "'tiny'" in failure.message


def test_lone_surrogates_on_the_wire_are_refused(channel: grpc.Channel) -> None:
    surrogate = "\ud83d".encode("utf-8", "surrogatepass")
    raw = b"\x0a" + bytes([len(surrogate)]) + surrogate
    call = channel.unary_stream("/whence.v1.GenerationService/Generate")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(raw))
    failure = failure_of(caught.value)
    assert failure.code is INVALID
    assert "surrogate" in failure.message


def test_malformed_bytes_are_an_invalid_argument(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/whence.v1.TraceService/GetGeneration")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff")
    assert failure_of(caught.value).code is INVALID


def test_oversized_message_is_refused(channel: grpc.Channel) -> None:
    failure = refused(channel, g.GenerateRequest(prompt="x" * (5 << 20)))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(4 << 20) in failure.message


def test_a_call_after_its_deadline_fails(channel: grpc.Channel) -> None:
    failure = refused(channel, g.GenerateRequest(prompt="x"), timeout=0.0)
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED


UNKNOWN_ID = str(uuid.uuid4())


@pytest.mark.parametrize(
    "call",
    [
        lambda c: list(
            generation_pb2_grpc.GenerationServiceStub(c).ResumeGeneration(
                g.ResumeGenerationRequest(generation_id=UNKNOWN_ID)
            )
        ),
        lambda c: generation_pb2_grpc.GenerationServiceStub(c).CancelGeneration(
            g.CancelGenerationRequest(generation_id=UNKNOWN_ID)
        ),
        lambda c: trace_pb2_grpc.TraceServiceStub(c).GetGeneration(
            trace_pb2.GetGenerationRequest(generation_id=UNKNOWN_ID)
        ),
        lambda c: trace_pb2_grpc.TraceServiceStub(c).ListSteps(
            trace_pb2.ListStepsRequest(generation_id=UNKNOWN_ID)
        ),
        lambda c: trace_pb2_grpc.TraceServiceStub(c).DeleteGeneration(
            trace_pb2.DeleteGenerationRequest(generation_id=UNKNOWN_ID)
        ),
    ],
    ids=["resume", "cancel", "get", "steps", "delete"],
)
def test_unknown_generation_is_not_found(
    channel: grpc.Channel, call: Callable[[grpc.Channel], object]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel)
    failure = failure_of(caught.value)
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert failure.reason == "GENERATION_NOT_FOUND"
    assert UNKNOWN_ID in failure.message


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (trace_pb2.ListGenerationsRequest(page_token="nonsense"), "page_token"),
        (trace_pb2.ListGenerationsRequest(page_size=-1), "page_size"),
    ],
    ids=["token", "size"],
)
def test_invalid_page_fields_are_refused(
    channel: grpc.Channel, request_message: trace_pb2.ListGenerationsRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        trace_pb2_grpc.TraceServiceStub(channel).ListGenerations(request_message)
    assert failure_of(caught.value).fields.keys() == {field}


def test_an_invalid_page_of_steps_is_refused(channel: grpc.Channel) -> None:
    started = next(
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(
            g.GenerateRequest(prompt="x", decoding=D(max_new_tokens=1))
        )
    ).event.started
    for token in ("nonsense", "after:" + "9" * 5_000, "after:-1"):
        with pytest.raises(grpc.RpcError) as caught:
            trace_pb2_grpc.TraceServiceStub(channel).ListSteps(
                trace_pb2.ListStepsRequest(generation_id=started.generation_id, page_token=token)
            )
        assert failure_of(caught.value).fields.keys() == {"page_token"}


def test_a_malformed_watch_position_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(
            trace_pb2_grpc.TraceServiceStub(channel).WatchGenerations(
                trace_pb2.WatchGenerationsRequest(after_position="nonsense")
            )
        )
    assert failure_of(caught.value).fields.keys() == {"after_position"}


def test_a_model_whose_logits_are_nan(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """One token's embedding is broken: who meets it fails, alone."""
    directory = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = float("nan")
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    with ServerProcess(directory, tmp_path / "data") as process:
        with grpc.insecure_channel(process.target) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            decoding = D(
                sample=S(seed=1), max_new_tokens=40, ignore_eos=True, logit_bias={77: -100.0}
            )
            healthy = stub.Generate(
                g.GenerateRequest(tokens=g.TokenInput(token_ids=[5, 6]), decoding=decoding)
            )
            broken = list(
                stub.Generate(
                    g.GenerateRequest(tokens=g.TokenInput(token_ids=[5, 77]), decoding=decoding)
                )
            )
            finished = broken[-1].event.finished
            assert finished.finish_reason == g.FINISH_REASON_FAILED
            assert finished.failure.reason == "NON_FINITE_LOGITS"
            assert finished.failure.code == grpc.StatusCode.INTERNAL.value[0]
            assert finished.num_generated_tokens == 0
            last = list(healthy)[-1].event.finished
            assert last.finish_reason == g.FINISH_REASON_LENGTH
            assert last.num_generated_tokens == 40
