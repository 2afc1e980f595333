"""Digests, compared with an independent computation of their definition."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import torch

from whence_server.domain.model import FileDigest
from whence_server.engines.transformers.digests import (
    digest_files,
    digest_model_files,
    digest_state,
    digest_tensors,
    digest_weights,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_files_are_digested_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"x" * 3_000_000)
    (tmp_path / "a").write_bytes(b"")
    assert digest_files(tmp_path, ["b", "a"]) == [
        FileDigest("a", 0, sha256(b"")),
        FileDigest("b", 3_000_000, sha256(b"x" * 3_000_000)),
    ]


def test_model_digest_is_over_raw_digests_by_name() -> None:
    files = [FileDigest("b", 1, sha256(b"B")), FileDigest("a", 1, sha256(b"A"))]
    raw = bytes.fromhex(sha256(b"A")) + bytes.fromhex(sha256(b"B"))
    assert digest_model_files(files) == sha256(raw)


def test_weights_digest_is_as_defined() -> None:
    matrix = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    state = {"z": matrix.t(), "a": half, "tied": matrix, "scalar": torch.tensor(7)}
    state["untied"] = state["tied"]
    expected = b"".join(
        [
            b"a\0bfloat16\x002\0" + b"\xc0\x3f\x00\xc0",
            b"scalar\0int64\0\0" + np.int64(7).astype("<i8").tobytes(),
            b"tied\0float32\x002,3\0" + np.arange(6, dtype="<f4").tobytes(),
            b"z\0float32\x003,2\0" + np.array([0, 3, 1, 4, 2, 5], dtype="<f4").tobytes(),
        ]
    )
    assert digest_weights(state) == sha256(expected)


def test_weights_digest_sees_every_bit() -> None:
    weights = torch.zeros(4)
    before = digest_weights({"w": weights})
    weights[3] = -0.0
    assert digest_weights({"w": weights}) != before


def test_digest_state_equals_the_two_separate_digests() -> None:
    large = torch.arange(1 << 19, dtype=torch.float32).reshape(1 << 9, -1)
    state = {"large": large, "small": large[:2], "turned": large.t(), "tied": large}
    state |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(7)}
    assert digest_state(state) == (digest_weights(state), digest_tensors(state))


def test_tensor_digests_cover_elements_and_list_tied_tensors_once() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    state = {"b": weight, "a": weight.t(), "head": weight, "half": weight.to(torch.bfloat16)}
    by_name = {tensor.name: tensor for tensor in digest_tensors(state)}
    assert list(by_name) == ["a", "b", "half"]
    assert by_name["b"].sha256 == sha256(struct.pack("<4f", 1, 2, 3, 4))
    assert by_name["a"].sha256 == sha256(struct.pack("<4f", 1, 3, 2, 4))
    assert by_name["half"].sha256 == sha256(bytes.fromhex("803f004040408040"))
    assert (by_name["half"].dtype, by_name["half"].shape) == ("bfloat16", (2, 2))
