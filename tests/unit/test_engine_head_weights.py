"""Files of head weights: valid ones, and the message for each fault."""

import json
from pathlib import Path

import pytest

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.internals.head_weights import (
    read_head_weights,
    write_head_weights,
)

DIGEST = "a" * 64


def written(directory: Path, weights: object, digest: str = DIGEST) -> str:
    path = directory / "heads.json"
    path.write_text(json.dumps({"weights_digest": digest, "head_weights": weights}))
    return str(path)


def test_a_file_with_a_number_for_each_head_is_read(tmp_path: Path) -> None:
    weights = [[1, 0.5], [0, 2.0]]
    assert read_head_weights(written(tmp_path, weights), DIGEST).values == weights


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([[1.0, 1.0], [1.0]], "a list for each layer, all of one length"),
        ([1.0, 1.0], "a list for each layer"),
        ([], "a list for each layer"),
        ({}, "a list for each layer"),
        ([[1.0, -0.5]], "head_weights[0][1] is -0.5"),
        ([[float("nan"), 1.0]], "head_weights[0][0] is nan"),
        ([[float("inf"), 1.0]], "head_weights[0][0] is inf"),
        ([["1", 1.0]], "head_weights[0][0] is '1'"),
        ([[True, 1.0]], "head_weights[0][0] is True"),
        ([[1e308, 1.0]], "head_weights[0][0] is 1e+308"),
        ([[1.0, 1e-50]], "head_weights[0][1] is 1e-50"),
        ([[10**400]], "head_weights[0][0] is 1000"),
        ([[0.0, 0.0]], "above 0"),
        ([[]], "above 0"),
    ],
)
def test_invalid_numbers_are_refused(tmp_path: Path, weights: object, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_head_weights(written(tmp_path, weights), DIGEST)
    assert says in refused.value.message
    assert "heads.json" in refused.value.message


def test_head_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="b" * 64):
        read_head_weights(written(tmp_path, [[1.0]], digest="b" * 64), DIGEST)


@pytest.mark.parametrize("content", ["no json", "[]", '{"head_weights": [[1]]}', None])
def test_malformed_files_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"--head-weights .*bad\.json"):
        read_head_weights(str(path), DIGEST)


def test_a_written_file_can_be_read_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    write_head_weights(path, DIGEST, [[1.0, 0.25]], "by hand")
    with pytest.raises(ConfigurationError, match=r"heads\.json exists already"):
        write_head_weights(path, DIGEST, [[0.5, 1.0]], "by hand")
    assert read_head_weights(str(path), DIGEST).values == [[1.0, 0.25]]
    assert json.loads(path.read_text())["method"] == "by hand"
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        write_head_weights(tmp_path / "nowhere" / "heads.json", DIGEST, [[1.0]], "by hand")
    assert list(tmp_path.iterdir()) == [path]
