"""Tokenizers of recorded models: what the server runs of another process's file."""

import hashlib
import json
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import BPE

from whence.v1 import record_pb2
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.recorded import RecordedModel, RecordedPrompt
from whence_server.generation.recording.batches import decode_prompts
from whence_server.generation.recording.tokenizers import Tokenizers
from whence_server.rpc.record_messages import convert_model
from whence_server.text.sequence import Piece
from whence_server.text.tokenizer import TextTokenizer

# Each further "a" multiplies the time to find that no "b" follows, until the library panics.
SLOW = decoders.Replace(Regex("(a|a|aa)+$b"), "x")


async def load(decoder: Any) -> TextTokenizer:
    tokenizer = Tokenizer(BPE({"a" * 24: 0, "\u2581b": 1}, []))
    tokenizer.decoder = decoder
    content = tokenizer.to_str().encode()
    return await Tokenizers().load(describe(content), content)


def describe(content: bytes) -> RecordedModel:
    return convert_model(
        record_pb2.RecordedModel(
            model_number=1,
            name="m",
            vocabulary_size=2,
            tokenizer_sha256=hashlib.sha256(content).hexdigest(),
            tokenizer_bytes=len(content),
        )
    )


@pytest.mark.parametrize("decoder", [SLOW, decoders.Sequence([decoders.Fuse(), SLOW])])
async def test_regular_expression_of_a_decoder_is_never_run(decoder: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a decoder with a regular expression"):
        await load(decoder)


async def test_patterns_that_are_texts_are_run() -> None:
    tokenizer = await load(decoders.Replace("\u2581", " "))
    assert "".join(piece.text for piece in tokenizer.split_prompt([1, 1])) == " b b"


@pytest.mark.parametrize("content", [b"[]", b"7", b"{", json.dumps({"decoder": None}).encode()])
async def test_other_json_is_no_tokenizer(content: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no tokenizer\.json"):
        await Tokenizers().load(describe(content), content)


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
