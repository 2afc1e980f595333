"""`whence-server weigh-heads`: from a model and texts to a file that it is served with."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import Harness, engine_options, greedy, prompt_of

from whence_server.cli import main
from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.engine.loading import load

TinyModel = Callable[..., Path]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("A model reads what stands there, word by word. " * 40)
    (folder / "two.txt").write_text("And it says what comes next, as far as it can. " * 40)
    return folder


def test_a_model_is_served_with_what_was_written(
    tiny_model: TinyModel, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "heads.json"
    directory = tiny_model("llama")
    status = main(["weigh-heads", str(directory), str(texts), "--output", str(path)])
    assert (status, str(path) in capsys.readouterr().out) == (0, True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    alike, weighed = (
        load(engine_options(directory, head_weights=given)) for given in ("", str(path))
    )
    assert json.loads(path.read_text())["weights_digest"] == alike.info.weights_digest
    assert weighed.info.internals.source_method.endswith(f";head-weights=sha256:{digest}")
    shares = []
    for loaded in (alike, weighed):
        harness = Harness(loaded)
        harness.admit("it", prompt_of(20, seed=1), greedy(4), TraceOptions(TraceDetail.INTERNALS))
        harness.run()
        internals = harness.steps["it", 0][-1].decision.internals
        assert internals is not None
        shares.append(internals.source_shares)
    assert shares[0] != shares[1]


def test_as_many_tokens_are_read_as_are_asked_for(
    tiny_model: TinyModel, texts: Path, tmp_path: Path
) -> None:
    few, all_of_them = tmp_path / "few.json", tmp_path / "all.json"
    model = str(tiny_model("gpt2"))
    for path, tokens in ((few, "256"), (all_of_them, "100000")):
        arguments = ["--output", str(path), "--max-tokens", tokens, "--dtype", "float32"]
        assert main(["weigh-heads", model, str(texts), *arguments]) == 0
    first, second = (json.loads(path.read_text()) for path in (few, all_of_them))
    assert first["weights_digest"] == second["weights_digest"]
    assert first["head_weights"] != second["head_weights"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("there already", "heads.json: there is such a file already"),
        ("no folder", "heads.json: cannot be written: No such file or directory"),
        ("no model", "is no directory"),
        ("no text", "nothing.txt"),
        ("short", "fewer than 256 tokens in all"),
        ("no sources", "the model gives no sources to weigh: "),
    ],
)
def test_what_cannot_be_done_is_said(
    tiny_model: TinyModel,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
    words: str,
) -> None:
    directory = tiny_model("bloom" if what == "no sources" else "gpt2")
    text, path = texts, tmp_path / "heads.json"
    if what == "there already":
        path.write_text("mine")
    elif what == "no folder":
        path = tmp_path / "nowhere" / "heads.json"
    elif what == "no model":
        directory = tmp_path / "nothing"
    elif what == "no text":
        text = tmp_path / "nothing.txt"
    elif what == "short":
        text = tmp_path / "short.txt"
        text.write_text("Short.")
    assert main(["weigh-heads", str(directory), str(text), "--output", str(path)]) == 2
    assert words in capsys.readouterr().err
    assert path.exists() == (what == "there already")
    assert not path.exists() or path.read_text() == "mine"


@pytest.mark.parametrize("tokens", ["255", "-1", "1e9", "many"])
def test_a_number_of_tokens_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weigh-heads", "m", "t", "--output", "f", "--max-tokens", tokens])
    assert ended.value.code == 2
    assert "expected a whole number from 256" in capsys.readouterr().err
