"""`whence-server weigh-heads`: from a model and texts to a file that it is served with."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import Harness, engine_options, greedy, prompt_of
from transformers import AutoTokenizer

from whence_server.cli import main
from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.internals import fitting
from whence_server.engines.transformers.internals.weighing import compute_stream_weights
from whence_server.engines.transformers.loading import load

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


def test_pieces_are_evenly_spread_over_the_texts(
    tiny_model: TinyModel, texts: Path, tmp_path: Path
) -> None:
    directory, path = tiny_model("gpt2"), tmp_path / "heads.json"
    arguments = ["--output", str(path), "--max-tokens", "1000"]
    assert main(["weigh-heads", str(directory), str(texts), *arguments]) == 0
    loaded = load(engine_options(directory))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [
        token_id
        for name in ("one.txt", "two.txt")
        for token_id in [*tokenizer((texts / name).read_text()).input_ids, tokenizer.eos_token_id]
    ]
    size = min(256, loaded.info.max_context_length)
    blocks = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
    count = 1000 // size
    assert len(blocks) > count
    chosen = [blocks[i * len(blocks) // count] for i in range(count)]
    assert json.loads(path.read_text())["head_weights"] == compute_stream_weights(
        loaded.model, chosen
    )


def test_heads_fitted_to_ablations_are_served(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights read little: tokens with a small effect count too.
    monkeypatch.setattr(fitting, "LEAST_EFFECT", 0.0)
    texts, path = tmp_path / "texts", tmp_path / "heads.json"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"Number {number} follows number {number - 1}. " * 9)
    directory = tiny_model("gpt2")
    arguments = ["--output", str(path), "--fit", "--seed", "3"]
    assert main(["weigh-heads", str(directory), str(texts), *arguments]) == 0
    document = json.loads(path.read_text())
    assert document["method"].startswith("ablations/1;seed=3;pieces=")
    loaded = load(engine_options(directory, head_weights=str(path)))
    assert ";head-weights=sha256:" in loaded.info.internals.source_method
    again = tmp_path / "again.json"
    arguments = ["--output", str(again), "--fit", "--seed", "3"]
    assert main(["weigh-heads", str(directory), str(texts), *arguments]) == 0
    assert json.loads(again.read_text()) == document


def test_models_with_mixed_weight_types_are_refused(
    tiny_model: TinyModel, texts: Path, tmp_path: Path
) -> None:
    directory, path = tiny_model("gpt2"), tmp_path / "heads.json"
    arguments = ["--output", str(path), "--dtype", "bfloat16"]
    assert main(["weigh-heads", str(directory), str(texts), *arguments]) == 0
    load(engine_options(directory, head_weights=str(path), dtype="bfloat16"))
    with pytest.raises(ConfigurationError, match="it is for weights with digest"):
        load(engine_options(directory, head_weights=str(path), dtype="float32"))


def test_files_that_are_no_text_can_be_left_out(
    tiny_model: TinyModel, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (texts / "picture.png").write_bytes(b"\0\1\2")
    command = ["weigh-heads", str(tiny_model("gpt2")), str(texts), "--output"]
    assert main([*command, str(tmp_path / "a.json")]) == 2
    assert "picture.png" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b.json"), "--unusable", "skip"]) == 0
    assert "left out: " in (said := capsys.readouterr().err)
    assert "picture.png" in said


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("there already", "heads.json exists"),
        ("no folder", "nowhere is not a directory"),
        ("a folder", "texts exists"),
        ("no model", "nothing is not a directory; give the directory of a model"),
        ("no end of text", "has no end-of-sequence token"),
        ("no text", "nothing.txt"),
        ("short", "fewer than 256 tokens; give more text"),
        ("no sources", "the model gives no sources to weigh: "),
        ("too short to fit", "0 tokens of the texts, in 0 pieces, depend on their context"),
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
    elif what == "a folder":
        path = texts
    elif what == "no end of text":
        directory = tmp_path / "model"
        shutil.copytree(tiny_model("gpt2"), directory)
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (directory / name).is_file():
                settings = json.loads((directory / name).read_text())
                settings.pop("eos_token", None)
                (directory / name).write_text(json.dumps(settings))
    elif what == "no folder":
        path = tmp_path / "nowhere" / "heads.json"
    elif what == "no model":
        directory = tmp_path / "nothing"
    elif what == "no text":
        text = tmp_path / "nothing.txt"
    elif what in {"short", "too short to fit"}:
        text = tmp_path / "short.txt"
        text.write_text("Short.")
    fit = ["--fit"] if what == "too short to fit" else []
    assert main(["weigh-heads", str(directory), str(text), "--output", str(path), *fit]) == 2
    assert words in capsys.readouterr().err
    assert path.exists() == (what in {"there already", "a folder"})
    assert not path.is_file() or path.read_text() == "mine"


@pytest.mark.parametrize("tokens", ["255", "-1", "1e9", "many", "99999999999"])
def test_a_number_of_tokens_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weigh-heads", "m", "t", "--output", "f", "--max-tokens", tokens])
    assert ended.value.code == 2
    assert "expected a whole number from 256 to 1000000000" in capsys.readouterr().err
