"""The demo's model: trained once, whole or not at all, and loadable as any other model is."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence.v1.training_pb2 import TrainingState
from whence_server.demo import model as demo
from whence_server.demo.cache import find_cache_dir
from whence_server.demo.corpus import ensure_corpus_folder, load_documents, unwrap
from whence_server.demo.model import ensure_demo_model, ensure_head_weights
from whence_server.demo.recipe import SETTINGS, compute_key
from whence_server.lineage.reader import RECORD_NAME, RecordReader
from whence_server.training.train import train as training
from whence_server.training.train.train import TrainingResult

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "config_override": ("n_layer=1", "n_head=2", "n_embd=32"),
    "block_size": 32,
    "max_steps": 30,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
}

# Makes half a model, says so, and goes on for ever.
TRAINS_FOR_EVER = """
import sys, time, types
from pathlib import Path
from whence_server.demo.model import ensure_demo_model

def train(given):
    Path(given["output"]).mkdir()
    (Path(given["output"]) / "half").touch()
    print("training", flush=True)
    time.sleep(600)

training = types.ModuleType("training")
training.train = train
sys.modules["whence_server.training.train.train"] = training
ensure_demo_model(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "whence"


@pytest.fixture(scope="module")
def directory(cache_dir: Path) -> Path:
    return ensure_demo_model(cache_dir, settings=TINY)


def test_the_demo_model_loads_with_every_weight(directory: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.architectures == ["GPT2LMHeadModel"]
    assert model.config.vocab_size == 512
    assert (directory / "model.safetensors").is_file()
    assert (directory / "tokenizer.json").is_file()
    assert not (directory / "training_args.bin").exists()


def test_the_demo_model_has_learned_from_the_corpus(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(next(iter(load_documents().values())), return_tensors="pt").input_ids[:, :32]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < torch.log(torch.tensor(512.0)) - 0.5  # what knowing nothing costs


def test_tokenizer_gives_back_any_text(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = 'The "for" statement, naïve “quotes”, 你好 😀\n\tindented'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0


def test_end_of_text_ends_a_generation(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0


def test_chat_goes_on_after_what_was_said(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "system", "content": "A."}, {"role": "user", "content": "B."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "A.\n\nB.\n\n"
    without = tokenizer.apply_chat_template(messages, tokenize=False)
    assert without == "A.\n\nB."


def test_second_call_does_not_train_again(
    directory: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", _never)
    assert ensure_demo_model(cache_dir, settings=TINY) == directory


def test_the_demo_models_training_is_on_record(directory: Path, cache_dir: Path) -> None:
    events = [recorded.event for recorded in RecordReader(directory / RECORD_NAME).read_all()]
    assert events[0].started.name == "demo"
    corpus = ensure_corpus_folder(cache_dir)
    read = [d.source for e in events for d in e.documents.documents]
    assert read == sorted(str(corpus / f"{name}.txt") for name in load_documents())
    assert sum(event.WhichOneof("event") == "step" for event in events) == 30
    states = [
        e.attempt_finished.state for e in events if e.WhichOneof("event") == "attempt_finished"
    ]
    assert states == [TrainingState.TRAINING_STATE_COMPLETED]
    # Where it was written under another name is not where it lies.
    assert events[-2].checkpoint.path == "."
    assert (directory / "checkpoints" / "checkpoint-30").is_dir()


def test_the_demo_models_heads_are_weighed_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ensure_head_weights(directory)
    weights = json.loads(path.read_text())["head_weights"]
    assert [len(row) for row in weights] == [2]
    monkeypatch.setattr(demo, "weigh_heads", _never)
    assert ensure_head_weights(directory) == path


def test_same_recipe_gives_the_same_weights(directory: Path, tmp_path: Path) -> None:
    again = ensure_demo_model(tmp_path, settings=TINY)
    assert again.name == directory.name
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (directory / name).read_bytes()


def test_another_recipe_is_another_model() -> None:
    assert compute_key({**SETTINGS, "seed": 1}) != compute_key() == compute_key()


def test_paragraphs_are_unwrapped_and_what_was_broken_on_purpose_is_not() -> None:
    full = "The statement is used to iterate over the elements of a sequence, and"
    assert unwrap(f"{full}\nthen ends.\n\n\n\nNext.") == f"{full} then ends.\n\nNext."
    for kept in (
        "A heading\n*********\n\n   for i in x:\n       print(i)\n",
        "+-----------------------------------------------------------------------+\n| cell",
        "x = 1        # a comment that goes up to the very end of its own line\n# and on",
        f"{full}\n\nA new paragraph.",
    ):
        assert unwrap(kept) == kept.removesuffix("\n")


def test_failed_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(given: dict[str, Any]) -> TrainingResult:
        Path(given["output"]).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(tmp_path, settings=TINY)
    assert [path for path in tmp_path.glob("demo-model-*") if path.is_dir()] == []


def test_killed_training_leaves_no_model_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _training_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / f"demo-model-{compute_key()}").exists()

    monkeypatch.setattr(training, "train", _write_config)
    directory = ensure_demo_model(tmp_path)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    assert [path for path in tmp_path.glob("demo-model-*") if path.is_dir()] == [directory]


def test_one_of_two_processes_trains(tmp_path: Path) -> None:
    with _training_process(tmp_path) as first, _process(tmp_path) as second:
        assert second.stderr is not None
        assert second.stdout is not None
        assert "waiting" in second.stderr.readline()
        # As if the first had finished: the second takes what there is.
        (tmp_path / f"demo-model-{compute_key()}").mkdir()
        first.kill()
        assert second.wait() == 0
        assert second.stdout.read() == ""


def test_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert find_cache_dir() == Path("/somewhere/whence")
    monkeypatch.setenv("HOME", "/home/ada")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert find_cache_dir() == Path("/home/ada/.cache/whence")


def test_a_cached_model_needs_no_training_stack(directory: Path, cache_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from whence_server.demo.model import ensure_demo_model\n"
        f"print(ensure_demo_model(Path({str(cache_dir)!r}), settings={TINY!r}))\n"
        "print({'torch', 'transformers'} & sys.modules.keys())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [str(directory), "set()"]


@contextmanager
def _training_process(cache_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of its training."""
    with _process(cache_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        yield process


@contextmanager
def _process(cache_dir: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TRAINS_FOR_EVER, str(cache_dir)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _never(given: dict[str, Any]) -> TrainingResult:
    raise AssertionError("trained again")


def _write_config(given: dict[str, Any]) -> TrainingResult:
    directory = Path(given["output"])
    directory.mkdir()
    (directory / "config.json").touch()
    return TrainingResult(directory, 0.0)
