"""`whence-server train`: from texts to a served model, through kills, changes and full disks."""

import asyncio
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stopping_training
import torch
from stopping_training import run_and_kill
from tiny_training import events_in, same_bits, steps_in
from training_server import training_server
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, TrainingArguments

from whence import AsyncClient
from whence.v1.training_pb2 import TrainingEvent, TrainingState
from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engines.transformers import loading
from whence_server.engines.transformers.digests import (
    digest_files,
    digest_model_files,
    digest_weights,
)
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.weights import list_model_files, list_weight_files
from whence_server.training.recording.surroundings import collect_determinism_settings
from whence_server.training.train.train import continue_from, train

SETTINGS = {
    "vocab_size": 300,
    "block_size": 16,
    "max_steps": 12,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "save_steps": 4,
    "threads": 1,
    # Dropout on, so that a random state that is not restored shows.
    "config_override": ("n_embd=24", "n_layer=1", "n_head=2", "resid_pdrop=0.1"),
}
WORDS = ["the", "a", "one", "naïve", "model", "text", "你好", "of"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("texts")
    words = random.Random(5)
    for number in range(6):
        sentence = " ".join(words.choice(WORDS) for _ in range(60))
        (directory / f"{number}.txt").write_text(sentence)
    return directory


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    trained = train({**SETTINGS, "texts": (str(texts),), "output": str(output)})
    assert trained.directory == output
    assert trained.loss is not None
    return output


def weights(directory: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return dict(model.state_dict())


def killed(point: str, step: int, output: Path, texts: Path) -> None:
    given = {**SETTINGS, "texts": (str(texts),), "output": str(output)}
    assert run_and_kill(point, step, **given) == -signal.SIGKILL


@contextmanager
def waiting(point: str, step: int, command: str) -> Iterator[subprocess.Popen[str]]:
    """A training that waits for a line; one is given to it at the end, and its end awaited."""
    with subprocess.Popen(
        [sys.executable, stopping_training.__file__, point, str(step), "wait", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if not any(line == "waits\n" for line in process.stdout):
            pytest.fail(process.stderr.read()[-3000:])
        yield process
        if process.stdin is not None and not process.stdin.closed:
            process.communicate("\n", timeout=120)


def test_the_model_is_whole_and_on_record(whole: Path, texts: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    events = events_in(whole)
    started, dataset = events[0].started, events[1].dataset
    assert (started.name, started.architecture) == ("whole", "GPT2LMHeadModel")
    assert not started.HasField("parent")
    assert (dataset.kind, dataset.num_documents, dataset.block_size) == ("documents", 6, 16)
    documents = events[2].documents.documents
    for document, path in zip(documents, sorted(texts.iterdir()), strict=True):
        assert document.source == str(path)
        assert document.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    steps = steps_in(whole)
    assert [step.step for step in steps] == list(range(1, 13))
    assert all(len(step.ranks[0].example_ids) == 4 for step in steps[:2])
    assert steps[-1].loss < steps[0].loss
    checkpoints = [e.checkpoint for e in events if e.WhichOneof("event") == "checkpoint"]
    assert [c.path for c in checkpoints] == [
        *(f"checkpoints/checkpoint-{step}" for step in (4, 8, 12)),
        ".",
    ]
    final = checkpoints[-1]
    names = list_model_files(whole, list_weight_files(whole), with_code=False)
    assert final.model_digest == digest_model_files(digest_files(whole, names))
    assert final.weights_digest == digest_weights(model.state_dict())
    for checkpoint in checkpoints[:3]:
        saved = AutoModelForCausalLM.from_pretrained(whole / checkpoint.path)
        assert checkpoint.weights_digest == digest_weights(saved.state_dict())


def test_a_server_loads_exactly_what_is_on_record(whole: Path) -> None:
    options = EngineOptions(
        model=str(whole),
        model_name="whole",
        dtype="auto",
        device="cpu",
        num_threads=1,
        max_batch_size=4,
        max_cache_tokens=1024,
        prefill_chunk_tokens=64,
        trust_remote_code=False,
        log_level="error",
        digest_cache="",
    )
    info = loading.load(options).info
    started, final = events_in(whole)[0].started, events_in(whole)[-2].checkpoint
    assert final.path == "."
    assert info.model_digest == final.model_digest
    assert info.weights_digest == final.weights_digest
    assert info.tokenizer_digest == started.tokenizer_digest


def test_an_example_s_pieces_hold_the_text_that_was_trained_on(whole: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(whole)
    events = events_in(whole)
    documents = [Path(d.source).read_bytes() for d in events[2].documents.documents]
    examples = events[3].examples
    places = list(
        zip(examples.document_indices, examples.begin_bytes, examples.end_bytes, strict=True)
    )
    first = places[: examples.num_pieces[0]]
    text = b"".join(documents[d][begin:end] for d, begin, end in first).decode()
    assert len(tokenizer(text).input_ids) in (15, 16, 17)
    assert documents[0].startswith(text.encode()[:10])


@pytest.mark.parametrize(
    ("point", "step", "resumed_step"),
    [("after step", 6, 4), ("after step", 9, 8), ("before optimizer saved", 8, 4)],
)
def test_a_killed_training_goes_on_to_the_same_bits(
    point: str, step: int, resumed_step: int, whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed(point, step, output, texts)
    half = output / "checkpoints" / "checkpoint-8"
    assert half.exists() == (step >= 8)
    train({"output": str(output), "resume": True})
    assert same_bits(weights(output), weights(whole))
    events = events_in(output)
    attempts = [e.attempt_started for e in events if e.WhichOneof("event") == "attempt_started"]
    assert [a.resumed_step for a in attempts] == [0, resumed_step]
    made = [s.step for s in steps_in(output)]
    assert made == [*range(1, step + 1), *range(resumed_step + 1, 13)]
    checkpoints = [e.checkpoint for e in events if e.WhichOneof("event") == "checkpoint"]
    assert [c.step for c in checkpoints] == [4, 8, 12, 12]
    # File by file the same model: tokenizer and configuration know nothing of the kill.
    (*_, uninterrupted) = [
        e.checkpoint for e in events_in(whole) if e.WhichOneof("event") == "checkpoint"
    ]
    assert checkpoints[-1].model_digest == uninterrupted.model_digest
    # Once complete, there is nothing to do.
    assert train({"output": str(output), "resume": True}).loss is None


def test_a_training_killed_before_its_first_checkpoint_begins_again(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed("after step", 2, output, texts)
    train({"output": str(output), "resume": True})
    assert same_bits(weights(output), weights(whole))
    assert [s.step for s in steps_in(output)] == [1, 2, *range(1, 13)]


def test_a_training_killed_at_the_beginning_of_its_record_begins_again(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed("before begin", 0, output, texts)
    assert (output / "lineage.binpb").stat().st_size == 0
    with pytest.raises(ConfigurationError, match="stopped before its record began; start it again"):
        train({"output": str(output), "resume": True})
    killed("after begin", 0, output, texts)
    assert len(events_in(output)) == 1
    train({"output": str(output), "resume": True})
    assert same_bits(weights(output), weights(whole))
    kinds = [event.WhichOneof("event") for event in events_in(output)]
    assert kinds[:5] == ["started", "dataset", "documents", "examples", "attempt_started"]
    assert kinds.count("started") == kinds.count("attempt_started") == 1


@pytest.mark.parametrize("point", ["after save_model", "after saved_model"])
def test_a_training_killed_before_its_model_or_its_end_was_on_record_puts_it_there(
    point: str, whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed(point, 0, output, texts)
    assert (output / "config.json").is_file()
    is_on_record = any(event.checkpoint.path == "." for event in events_in(output))
    assert is_on_record == (point == "after saved_model")
    train({"output": str(output), "resume": True})
    *_, saved, ended = events_in(output)
    final, expected = saved.checkpoint, events_in(whole)[-2].checkpoint
    assert (final.path, final.step) == (".", 12)
    assert ended.attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert final.model_digest == expected.model_digest
    assert [s.step for s in steps_in(output)] == list(range(1, 13))


def test_who_watches_a_training_gets_its_final_model_before_the_end(
    texts: Path, tmp_path: Path
) -> None:
    given = {**SETTINGS, "texts": (str(texts),), "output": str(tmp_path / "run")}

    async def watched(process: subprocess.Popen[str]) -> list[TrainingEvent]:
        seen: list[TrainingEvent] = []
        async with training_server(tmp_path) as server, AsyncClient(server.target) as client:
            run_id = events_in(tmp_path / "run")[0].started.training_run_id
            async for response in client.training_runs.watch(run_id, after_position=0):
                if not seen:
                    assert process.stdin is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                seen += response.events
        return seen

    with waiting("after step", 12, f"train({given!r})") as process:
        seen = asyncio.run(watched(process))
    assert seen[-2].checkpoint.path == "."
    assert seen[-1].attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert seen == events_in(tmp_path / "run")


def test_a_training_that_goes_on_is_not_resumed_beside_it(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    given = {**SETTINGS, "texts": (str(texts),), "output": str(output)}
    # Half of the second checkpoint is there, and of that nothing is on record yet.
    with waiting("before optimizer saved", 8, f"train({given!r})") as process:
        before = sorted(output.rglob("*"))
        assert output / "checkpoints" / "checkpoint-8" / "model.safetensors" in before
        with pytest.raises(LineageError, match="is being written by another process"):
            train({"output": str(output), "resume": True})
        assert sorted(output.rglob("*")) == before
    assert process.returncode == 0
    assert same_bits(weights(output), weights(whole))


def test_what_is_on_record_is_moved_aside_and_only_once_the_texts_are_the_same(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    own, output = tmp_path / "texts", tmp_path / "run"
    shutil.copytree(texts, own)
    train({**SETTINGS, "texts": (str(own),), "output": str(output)})
    (output / "config.json").unlink()
    checkpoints = output / "checkpoints"
    damaged = checkpoints / "checkpoint-12" / "scheduler.pt"
    damaged.write_bytes(b"damaged")
    resume = {"output": str(output), "resume": True}
    (own / "3.txt").rename(tmp_path / "3.txt")
    with pytest.raises(LineageError, match=r"/3\.txt is gone"):
        train(resume)
    assert damaged.is_file()
    (tmp_path / "3.txt").rename(own / "3.txt")
    train(resume)
    moved = checkpoints / "discarded-1" / "checkpoint-12"
    assert (moved / "scheduler.pt").read_bytes() == b"damaged"
    assert (moved / "model.safetensors").is_file()
    assert damaged.read_bytes() != b"damaged"
    assert same_bits(weights(output), weights(whole))
    assert [s.step for s in steps_in(output)] == [*range(1, 13), *range(9, 13)]


def test_replay_between_checkpoints_gives_their_digests(whole: Path, tmp_path: Path) -> None:
    checkpoints = {
        e.checkpoint.step: e.checkpoint
        for e in events_in(whole)
        if e.WhichOneof("event") == "checkpoint"
    }
    for first, last in ((4, 8), (0, 4)):
        start = whole / checkpoints[first].path if first else None
        model = continue_from(whole / "lineage.binpb", start, last, tmp_path)
        assert digest_weights(model.state_dict()) == checkpoints[last].weights_digest
    assert not list(tmp_path.rglob("lineage.binpb"))


def test_what_is_not_the_run_on_record_is_refused(
    whole: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "texts"
    shutil.copytree(texts, own)
    output = tmp_path / "run"
    given: dict[str, Any] = {**SETTINGS, "max_steps": 4, "output": str(output)}
    train({**given, "texts": (str(own),)})
    (output / "config.json").unlink()  # as if it had not come to its end
    resume = {"output": str(output), "resume": True}

    with pytest.raises(ConfigurationError, match="--seed was 0, is 1"):
        train({**resume, "seed": 1})
    (own / "3.txt").write_text("changed")
    with pytest.raises(LineageError, match=r"have changed .*/3\.txt has SHA-256"):
        train(resume)
    (own / "3.txt").unlink()
    with pytest.raises(LineageError, match=r"/3\.txt is gone"):
        train(resume)
    shutil.copy(texts / "3.txt", own / "3.txt")
    (own / "6.txt").write_text("new")
    with pytest.raises(LineageError, match=r"/6\.txt is new"):
        train(resume)
    (own / "6.txt").unlink()
    config = output / "checkpoints" / "checkpoint-4" / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace("GPT2LMHeadModel", "LlamaForCausalLM"))
    with pytest.raises(LineageError, match=r"checkpoint of a LlamaForCausalLM; .* a GPT2LMHead"):
        train(resume)
    config.write_text(kept)
    # Nothing of all this was recorded, and the run can still be finished.
    train(resume)
    assert (output / "config.json").is_file()

    assert main(["train", "--output", str(output), str(own)]) == 2
    assert "it has the record of a run" in capsys.readouterr().err
    assert main(["train", "--output", str(own), str(own)]) == 2
    assert "it is not an empty directory" in capsys.readouterr().err
    assert main(["train", "--output", str(tmp_path / "none"), "--resume"]) == 2
    assert "has no run on record" in capsys.readouterr().err


def test_a_checkpoint_can_be_gone_on_from(whole: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    given = {"texts": (str(texts),), "output": str(output), "block_size": 16, "max_steps": 1}
    train({**given, "from_model": str(whole), "threads": 1})
    parent = events_in(output)[0].started.parent
    final = [e.checkpoint for e in events_in(whole) if e.WhichOneof("event") == "checkpoint"][-1]
    assert parent.source == str(whole)
    assert parent.model_digest == final.model_digest
    assert parent.weights_digest == final.weights_digest
    assert parent.training_run_id == events_in(whole)[0].started.training_run_id
    assert events_in(output)[0].started.initial_weights_digest == parent.weights_digest


def test_a_beginning_that_is_another_now_is_refused(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    from_model, tokenizer = tmp_path / "from", tmp_path / "tokenizer"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(from_model)
    for place in (from_model, tokenizer):
        AutoTokenizer.from_pretrained(whole).save_pretrained(place)
    given = {"texts": (str(texts),), "block_size": 16, "max_steps": 1, "threads": 1}
    first, second = tmp_path / "first", tmp_path / "second"
    train({**given, "output": str(first), "from_model": str(from_model)})
    small = {"config_override": ("n_embd=24", "n_layer=1", "n_head=2")}
    train({**given, **small, "output": str(second), "tokenizer": str(tokenizer)})
    for run in (first, second):
        continue_from(run / "lineage.binpb", None, 1, tmp_path / "again")

    model = AutoModelForCausalLM.from_pretrained(from_model)
    model.transformer.wte.weight.data[0, 0] += 1
    model.save_pretrained(from_model)
    with pytest.raises(LineageError, match=r"weights cannot be reproduced: .*/from has the"):
        continue_from(first / "lineage.binpb", None, 1, tmp_path / "again")
    config = tokenizer / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    with pytest.raises(LineageError, match=r"tokenizer has changed .*/tokenizer has the digest"):
        continue_from(second / "lineage.binpb", None, 1, tmp_path / "again")
    # Nor does a run that was killed before its first checkpoint go on from them.
    shutil.rmtree(first / "checkpoints")
    (first / "config.json").unlink()
    with pytest.raises(LineageError, match="cannot be reproduced"):
        train({"output": str(first), "resume": True})


def test_a_resumed_run_with_other_threads_says_so(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    given = {**SETTINGS, "threads": 0, "max_steps": 4, "texts": (str(texts),)}
    torch.set_num_threads(1)
    train({**given, "output": str(output)})
    for num_threads, told in ((1, False), (2, True)):
        (output / "config.json").unlink()  # as if it had not come to its end
        torch.set_num_threads(num_threads)
        train({"output": str(output), "resume": True})
        assert ("resumed with 2 torch threads instead of 1" in caplog.text) is told


def test_a_variable_of_accelerates_is_refused_and_any_trainers_is_on_record(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigurationError, match="ACCELERATE_MIXED_PRECISION: "):
        train({**SETTINGS, "texts": (str(texts),), "output": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    found = collect_determinism_settings(arguments)
    assert found["bf16"] == "False"
    assert found["mixed_precision"] == found["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_what_a_given_configuration_has_otherwise_is_told(
    texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "config.json"
    GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=4000).save_pretrained(tmp_path)
    given = {"texts": (str(texts),), "output": str(tmp_path / "run"), "config": str(config)}
    train({**given, "vocab_size": 300, "block_size": 16, "max_steps": 1, "threads": 1})
    size = len(AutoTokenizer.from_pretrained(tmp_path / "run"))
    assert f"vocab_size is {size} instead of 4000" in caplog.text
    assert "eos_token_id is 0 instead of 50256" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model_type": "gtp2"},
            "--model-type 'gtp2': transformers .* has no kind of model with this name",
        ),
        ({"model_type": "t5"}, "'t5' model cannot generate text"),
        ({"config_override": ("layers=2",)}, "layers: a 'gpt2' model has no such field"),
        ({"config_override": ("n_head=5",)}, "the model cannot be created"),
        ({"config_override": ("n_positions=8",)}, "--block-size 16: .* context of 8 tokens"),
        ({"config_override": ("vocab_size=20",)}, r"a vocabulary of 20; the tokenizer has \d+"),
        ({"block_size": 5000}, "--block-size 5000: the texts have"),
        ({"config": "/nowhere"}, "--config /nowhere"),
        ({"tokenizer": "/nowhere"}, "/nowhere has no tokenizer"),
        ({"from_model": "/nowhere"}, "/nowhere"),
        ({"texts": ("/nowhere",)}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    given: dict[str, Any], message: str, texts: Path, tmp_path: Path
) -> None:
    given = {"texts": (str(texts),), "output": str(tmp_path / "run"), **given}
    if not given.keys() & {"from_model", "tokenizer"}:
        given["vocab_size"] = 300
    with pytest.raises(ConfigurationError, match=message):
        train({"block_size": 16, **given})
    assert not (tmp_path / "run").exists()


def test_another_architecture_trains_in_half_precision_with_evaluations(
    texts: Path, tmp_path: Path
) -> None:
    overrides = ("hidden_size=16", "intermediate_size=32", "num_hidden_layers=1")
    heads = ("num_attention_heads=2", "num_key_value_heads=1")
    output = tmp_path / "run"
    train(
        {
            **SETTINGS,
            "texts": (str(texts),),
            "output": str(output),
            "model_type": "llama",
            "config_override": (*overrides, *heads),
            "dtype": "bfloat16",
            "max_steps": 2,
            "warmup_steps": 1,
            "eval": (str(texts / "1.txt"),),
            "eval_steps": 1,
        }
    )
    events = events_in(output)
    assert events[0].started.architecture == "LlamaForCausalLM"
    evaluations = [e.evaluation for e in events if e.WhichOneof("event") == "evaluation"]
    assert [e.step for e in evaluations] == [1, 2]
    assert {t.dtype for e in events for t in e.checkpoint.tensors} == {"bfloat16"}
    # In the first step of a warm-up the learning rate is 0.
    assert [step.update_norms[0] > 0 for step in steps_in(output)] == [False, True]


def test_a_signal_interrupts_and_a_full_disk_ends_a_training_that_can_go_on(
    whole: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = [
        *("--vocab-size", "300", "--block-size", "16", "--max-steps", "12", "--batch-size", "2"),
        *("--gradient-accumulation", "2", "--learning-rate", "0.01", "--warmup-steps", "2"),
        *("--save-steps", "4", "--threads", "1"),
        *(word for o in SETTINGS["config_override"] for word in ("--config-override", o)),  # type: ignore[attr-defined]
    ]
    command = [sys.executable, "-m", "whence_server", "train", "--output", str(output), str(texts)]

    def small_files() -> None:
        # The optimizer's state is larger than this, the weights and the record are not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=small_files,
        env=environment,
    )
    assert run.returncode == 1, run.stderr[-3000:]
    assert "free space and resume with --resume" in run.stderr.splitlines()[-1]
    last = events_in(output)[-1]
    assert last.attempt_finished.state == TrainingState.TRAINING_STATE_FAILED
    assert not (output / "config.json").exists()

    resume = f"main(['train', '--output', {str(output)!r}, '--resume'])"
    with waiting("after step", 2, resume) as process:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "resume from the last checkpoint with --resume" in told
    last = events_in(output)[-1]
    assert (last.attempt_finished.attempt, last.attempt_finished.step) == (2, 2)
    assert last.attempt_finished.state == TrainingState.TRAINING_STATE_INTERRUPTED
    train({"output": str(output), "resume": True})
    assert same_bits(weights(output), weights(whole))
