"""Tokenizers of recorded models: what the server runs of another process's file."""

import hashlib
import json
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from panics import BAD_NORMALIZER, make_panic
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import BPE

from whence.v1 import record_pb2
from whence.v1.generation_pb2 import FINISH_REASON_UNSPECIFIED
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.errors import Code, InvalidRequestError, RecordersFullError
from whence_server.domain.generation import Failure
from whence_server.domain.limits import Limits
from whence_server.domain.recorded import MAX_TOKENIZER_BYTES, RecordedModel, RecordedPrompt
from whence_server.generation.recording.batches import ReadyModel, RecordedBatch, decode_prompts
from whence_server.generation.recording.recorders import Recorder
from whence_server.generation.recording.shares import check_tokenizers
from whence_server.generation.recording.tokenizers import Tokenizers
from whence_server.generation.recording.trial import PADDING_ROWS
from whence_server.rpc.record_messages import convert_model
from whence_server.rpc.record_servicer import RecordServicer
from whence_server.text.sequence import Piece
from whence_server.text.tokenizer import TextTokenizer

# Each further "a" multiplies the time to find that no "b" follows, until the library panics.
SLOW = decoders.Replace(Regex("(a|a|aa)+$b"), "x")


async def load(decoder: Any) -> TextTokenizer:
    return await load_tokens({"a" * 24: 0, "\u2581b": 1}, decoder)


async def load_tokens(vocabulary: dict[str, int], decoder: Any) -> TextTokenizer:
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoder
    content = tokenizer.to_str().encode()
    return await Tokenizers().load(describe(content), content)


def describe(content: bytes, vocabulary_size: int = 2) -> RecordedModel:
    return convert_model(
        record_pb2.RecordedModel(
            model_number=1,
            name="m",
            vocabulary_size=vocabulary_size,
            tokenizer_sha256=hashlib.sha256(content).hexdigest(),
            tokenizer_bytes=max(len(content), 1),
        )
    )


@pytest.mark.parametrize("decoder", [SLOW, decoders.Sequence([decoders.Fuse(), SLOW])])
async def test_regular_expression_of_a_decoder_is_never_run(decoder: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a decoder with a regular expression"):
        await load(decoder)


async def test_patterns_that_are_texts_are_run() -> None:
    tokenizer = await load(decoders.Replace("\u2581", " "))
    assert "".join(piece.text for piece in tokenizer.split_prompt([1, 1])) == " b b"


@pytest.mark.parametrize(
    ("vocabulary_size", "fits"), [(2 + PADDING_ROWS, True), (3 + PADDING_ROWS, False)]
)
async def test_rows_are_bounded_by_the_tokens_and_padding(vocabulary_size: int, fits: bool) -> None:
    content = Tokenizer(BPE({"a": 0, "b": 1}, [])).to_str().encode()
    loading = Tokenizers().load(describe(content, vocabulary_size), content)
    if fits:
        assert len((await loading).list_vocabulary()) == vocabulary_size
        return
    with pytest.raises(InvalidRequestError, match="a tokenizer of 2 tokens it may be at most 8194"):
        await loading


def make_recorder(owner: str, num_models: int, *, tokenizer_bytes: int) -> Recorder:
    recorder = Recorder("test/1", 0, owner)
    for number in range(num_models):
        model = describe(b"")
        tokenizer = cast("TextTokenizer", SimpleNamespace())
        recorder.models[number] = ReadyModel(model.info, tokenizer, tokenizer_bytes)
    return recorder


def test_tokenizers_in_memory_are_bounded_for_each_caller_and_in_all() -> None:
    alice = make_recorder("alice", 4, tokenizer_bytes=MAX_TOKENIZER_BYTES)
    with pytest.raises(RecordersFullError, match="tokenizers of this caller's recorders") as caught:
        check_tokenizers([alice], "alice", 1)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    check_tokenizers([alice], "bob", MAX_TOKENIZER_BYTES)
    others = [make_recorder(name, 4, tokenizer_bytes=MAX_TOKENIZER_BYTES) for name in "bcd"]
    with pytest.raises(RecordersFullError, match="tokenizers of all recorders"):
        check_tokenizers([alice, *others], "eve", 1)


def test_tokenizer_that_models_share_counts_once() -> None:
    recorder = make_recorder("alice", 1, tokenizer_bytes=MAX_TOKENIZER_BYTES)
    recorder.models |= dict.fromkeys(range(1, 60), recorder.models[0])
    check_tokenizers([recorder], "alice", MAX_TOKENIZER_BYTES)


async def test_decoder_that_blows_up_its_tokens_is_refused() -> None:
    long = decoders.Sequence([decoders.Replace("a", "a" * 1_000) for _ in range(2)])
    with pytest.raises(InvalidRequestError, match=r"makes 72000003 bytes of text"):
        await load_tokens({"a" * 24 * 3: 0, "bcd": 1}, long)


@pytest.mark.parametrize("content", [b"[]", b"7", b"{", json.dumps({"decoder": None}).encode()])
async def test_other_json_is_no_tokenizer(content: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no tokenizer\.json"):
        await Tokenizers().load(describe(content), content)


# The library cuts a token within a character, and aborts the process that it runs in.
CUT = {
    "type": "BPE",
    "vocab": {"\u00e9": 0, "b": 1, "\u00e9b": 2},
    "merges": ["b \u00e9"],
    "continuing_subword_prefix": "#",
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalizer": BAD_NORMALIZER}, "Cannot parse precompiled_charsmap"),
        ({"model": CUT}, "SIGABRT"),
    ],
)
async def test_tokenizer_on_which_the_library_panics_is_refused(
    changes: dict[str, Any], told: str
) -> None:
    good = Tokenizer(BPE({"a": 0}, [])).to_str()
    content = json.dumps(json.loads(good) | changes).encode()
    tokenizers = Tokenizers()
    with pytest.raises(InvalidRequestError, match=rf"is no tokenizer\.json.*{told}"):
        await tokenizers.load(describe(content), content)
    assert tokenizers.find(describe(content)) is None
    await tokenizers.load(describe(good.encode()), good.encode())


@pytest.mark.parametrize(("num_tokens", "in_thread"), [(8, False), (1_000_000, True)])
async def test_long_prompts_do_not_block_the_event_loop(num_tokens: int, in_thread: bool) -> None:
    threads = []

    def split_prompt(token_ids: Sequence[int]) -> list[Piece]:
        threads.append(threading.get_ident())
        return [Piece(f"{len(token_ids)} tokens", 0, 0, None)]

    tokenizer = cast("TextTokenizer", SimpleNamespace(split_prompt=split_prompt))
    prompts = [RecordedPrompt(str(i), (i,) * (num_tokens // 2)) for i in range(2)]
    assert await decode_prompts(tokenizer, prompts) == [f"{num_tokens // 2} tokens"] * 2
    assert [thread != threading.get_ident() for thread in threads] == [in_thread] * 2


async def test_panic_while_a_batch_is_recorded_refuses_the_batch_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def panic(*_arguments: object) -> None:
        raise make_panic()

    failures: list[Failure] = []
    batch: Any = SimpleNamespace(
        start=SimpleNamespace(
            num_rows=1,
            processor_names=(),
            trace=TraceOptions(),
            decoding=Decoding(Strategy.GREEDY, 1),
        ),
        model=SimpleNamespace(vocabulary_size=2),
        record_step=panic,
        fail=failures.append,
    )
    recorder = Recorder("test/1", 0)
    recorder.batches = {1: batch, 2: cast("RecordedBatch", SimpleNamespace())}
    parts: Any = SimpleNamespace()
    servicer = RecordServicer(parts, parts, Limits(), parts)
    step = record_pb2.BatchStep(
        batch_number=1, rows=[0], token_ids=[1], finish_reasons=[FINISH_REASON_UNSPECIFIED]
    )
    await servicer.put_on_record(recorder, record_pb2.RecordGenerationsRequest(step=step), "step")
    assert [failure.reason for failure in failures] == ["RECORD_INVALID"]
    assert list(recorder.batches) == [2]
    assert [refusal.batch_number for refusal in recorder.take_refusals()] == [1]
    assert "the tokenizer of a recorder fails" in caplog.text
