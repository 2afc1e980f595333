"""Emergence of a text: curve, allocation to parameter groups, and refusals."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_records as records
from lineage_records import RecordBuilder
from safetensors.torch import load_file, save_file
from tiny_models import CORPUS
from training_runs import Training, digest_weights, gpt2, groups, trained
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from whence.v1 import training_pb2 as pb
from whence.v1.training_pb2 import TraceEmergenceResponse
from whence_server.lineage.framing import iterate_frames
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.whole import read_verified_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.emergence.process import Question, trace
from whence_server.training.emergence.trajectory import (
    RefusedError,
    iterate_examples_between,
    load_initial_model,
)

PROMPT, CONTINUATION = "The quick brown", " fox jumps over"
LLAMA = LlamaConfig(
    vocab_size=416,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=0,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "model", kept=(0, 4, 8))


@pytest.fixture
def copied(record: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(record.parent, tmp_path / "model") / RECORD_NAME


def traced(record: Path, **fields: Any) -> list[TraceEmergenceResponse]:
    question = Question(record, PROMPT, CONTINUATION)._replace(**fields)
    return list(trace(question))


@torch.no_grad()
def logprob(model: Any, prompt_ids: list[int], continuation_ids: list[int]) -> float:
    """Compute log p token by token, as defined."""
    total = 0.0
    for place, token in enumerate(continuation_ids):
        before = torch.tensor([prompt_ids + continuation_ids[:place]])
        logits = model(input_ids=before).logits[0, -1]
        total += math.log(float(torch.softmax(logits, -1)[token]))
    return total


def riemann(
    start: Any, end: Any, model: Any, text: tuple[list[int], list[int]], num_points: int
) -> dict[str, float]:
    """Compute the allocation with the midpoint rule and many points, group by group."""
    first, last = dict(start.named_parameters()), dict(end.named_parameters())
    sums = dict.fromkeys(groups(model), 0.0)
    names = {name: group for group, members in groups(model).items() for name in members}
    parameters = dict(model.named_parameters())
    ids = torch.tensor([text[0] + text[1]])
    labels = torch.tensor([[-100] * len(text[0]) + text[1]])
    for point in range(num_points):
        t = (point + 0.5) / num_points
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_((1 - t) * first[name] + t * last[name])
        # transformers' own loss is the mean over the labels.
        loss = model(input_ids=ids, labels=labels).loss * len(text[1])
        gradients = torch.autograd.grad(-loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            step = (last[name] - first[name]).detach() / num_points
            sums[names[name]] += float((gradient * step).sum())
    return sums


def test_curve_equals_the_logprobs_of_the_checkpoints(record: Path) -> None:
    started, *rest = traced(record)
    assert list(started.started.steps) == [0, 4, 8]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(record.parent)
    prompt, continuation = (
        list(started.started.prompt_token_ids),
        list(started.started.continuation_token_ids),
    )
    assert tokenizer.decode(prompt + continuation) == PROMPT + CONTINUATION
    assert "".join(started.started.continuation_texts) == CONTINUATION
    assert [answer.WhichOneof("result") for answer in rest] == [
        "point",
        "point",
        "interval",
        "point",
        "interval",
    ]
    points = [answer.point for answer in rest if answer.HasField("point")]
    for point in points:
        model = gpt2(record.parent / "checkpoints" / f"checkpoint-{point.step}")
        assert point.logprob == pytest.approx(logprob(model, prompt, continuation), abs=1e-4)
        assert sum(point.token_logprobs) == pytest.approx(point.logprob)
        assert len(point.token_logprobs) == len(continuation)
    assert points[2].logprob > points[1].logprob > points[0].logprob


def test_the_change_is_allocated_to_groups_and_the_gap_is_small(record: Path) -> None:
    answers = traced(record)
    points = [it.point for it in answers if it.HasField("point")]
    intervals = [it.interval for it in answers if it.HasField("interval")]
    assert [(it.first_step, it.last_step) for it in intervals] == [(0, 4), (4, 8)]
    for before, after, interval in zip(points, points[1:], intervals, strict=False):
        assert interval.change == after.logprob - before.logprob
        assert sum(interval.group_changes) + interval.gap == pytest.approx(interval.change)
        assert abs(interval.gap) < 0.005 * abs(interval.change)
        assert len(interval.group_changes) == len(groups(gpt2(record.parent)))
        assert 5 <= interval.num_gradients <= 129
    assert list(intervals[0].example_ids) == [0, 1, 2, 3]
    assert list(intervals[1].example_ids) == [4, 5, 6, 7]


def test_groups_equal_a_fine_riemann_sum(record: Path) -> None:
    answers = traced(record)
    text = (
        list(answers[0].started.prompt_token_ids),
        list(answers[0].started.continuation_token_ids),
    )
    interval = answers[-1].interval
    places = [record.parent / "checkpoints" / f"checkpoint-{step}" for step in (4, 8)]
    expected = riemann(*map(gpt2, places), gpt2(record.parent), text, num_points=60)
    assert list(interval.group_changes) == pytest.approx(
        list(expected.values()), abs=0.003 * abs(interval.change)
    )


def test_emergence_of_another_architecture_in_bfloat16_equals_a_plain_computation(
    tmp_path: Path,
) -> None:
    training = Training(tmp_path, (CORPUS * 2)[:4], kept=(2,), config=LLAMA, dtype=torch.bfloat16)
    answers = traced(training.run())
    assert list(answers[0].started.steps) == [2, 4]
    interval = answers[-1].interval
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    text = (
        list(answers[0].started.prompt_token_ids),
        list(answers[0].started.continuation_token_ids),
    )
    assert answers[-2].point.logprob == pytest.approx(logprob(model, *text), abs=1e-4)
    assert abs(interval.gap) < 0.01 * abs(interval.change)
    assert len(interval.group_changes) == 7  # embedding, two layers' halves, final norm, head


def test_a_planted_fact_shows_right_after_its_step(tmp_path: Path) -> None:
    fact = " Zanzibar's lamp is violet."
    planted_at = 18
    texts = [CORPUS[number % 2] for number in range(32)]
    texts[planted_at - 1] = fact * 2
    kept = range(0, 33, 4)
    training = Training(tmp_path, texts, kept=kept, learning_rate=5e-3)
    answers = traced(training.run(), prompt=" Zanzibar's lamp is", continuation=" violet.")
    intervals = [it.interval for it in answers if it.HasField("interval")]
    highest = max(intervals, key=lambda it: it.change)
    assert (highest.first_step, highest.last_step) == (16, 20)
    assert planted_at - 1 in highest.example_ids
    assert highest.change > 3.0
    others = [it.change for it in intervals if it is not highest and it.first_step >= 4]
    assert highest.change > 2 * max(others)
    assert all(abs(it.gap) < 0.01 * max(abs(it.change), 1.0) for it in intervals)


def test_without_groups_no_gradient_is_taken(record: Path) -> None:
    interval = traced(record, omit_groups=True)[-1].interval
    assert (list(interval.group_changes), interval.gap, interval.num_gradients) == ([], 0.0, 0)
    assert interval.change


def test_an_empty_prompt_begins_at_the_end_of_sequence(record: Path) -> None:
    started = traced(record, prompt="", omit_groups=True)[0].started
    assert list(started.prompt_token_ids) == [0]


def test_character_of_several_tokens_is_in_the_text_of_the_last_one(record: Path) -> None:
    started = traced(record, continuation=" ∮ 😀!", omit_groups=True)[0].started
    assert "".join(started.continuation_texts) == " ∮ 😀!"
    assert "" in started.continuation_texts


def test_superseded_steps_are_left_out(copied: Path) -> None:
    writer = RecordWriter.resume(copied)
    for event in [records.attempt(2, resumed_step=4), records.step(5, 2)]:
        writer.append(event)
    writer.close()
    assert list(traced(copied, omit_groups=True)[0].started.steps) == [0, 4]


def test_a_checkpoint_that_is_gone_is_left_out(copied: Path) -> None:
    shutil.rmtree(copied.parent / "checkpoints" / "checkpoint-4")
    started, *_, interval = traced(copied, omit_groups=True)
    assert list(started.started.steps) == [0, 8]
    assert list(interval.interval.example_ids) == list(range(8))


def refusal(record: Path, **fields: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        traced(record, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"continuation": ""}, "continuation", "must not be empty"),
        ({"continuation": " fox" * 200}, "continuation", "the model reads at most 64"),
        ({"prompt": " fox" * 200}, "continuation", "the model reads at most 64"),
    ],
)
def test_a_text_that_cannot_be_traced_is_refused(
    record: Path, fields: dict[str, str], field: str, message: str
) -> None:
    refused = refusal(record, **fields)
    assert (refused.field, message in str(refused)) == (field, True)


def test_changed_weights_are_refused_by_name(copied: Path) -> None:
    file = copied.parent / "checkpoints" / "checkpoint-4" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.bias"][0] += 1
    save_file(tensors, file, {"format": "pt"})
    refused = refusal(copied)
    assert refused.reason == "CHECKPOINT_CHANGED"
    assert str(file.parent) in str(refused)
    file.write_bytes(b"nothing")
    assert refusal(copied).reason == "CHECKPOINT_UNREADABLE"


def test_a_changed_tokenizer_is_refused_by_name(copied: Path) -> None:
    file = copied.parent / "tokenizer.json"
    file.write_text(file.read_text().replace("fox", "cat"))
    # The final model is also at step 8: the newest on record.
    refused = refusal(copied)
    assert (refused.reason, str(file) in str(refused)) == ("TOKENIZER_CHANGED", True)


def test_a_tokenizer_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    record = Broken(tmp_path / "run", CORPUS[:1], kept=()).run()
    refused = refusal(record)
    assert refused.reason == "TOKENIZER_UNREADABLE"
    assert f"the tokenizer in {record.parent} cannot be loaded" in str(refused)


class Broken(Training):
    """Saved, and put on record, with a tokenizer that is none."""

    def _saved(self, step: int, path: str) -> pb.TrainingEvent:
        self.tokenizer = BrokenTokenizer()
        return super()._saved(step, path)


class BrokenTokenizer:
    def save_pretrained(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


def test_run_without_checkpoints_on_disk_is_refused(tmp_path: Path, copied: Path) -> None:
    bare = records.write(tmp_path, [records.started(), records.attempt(), records.finished(1)])
    assert refusal(bare).reason == "NO_CHECKPOINTS"
    for name in ("tokenizer*.json", "chat_template.jinja"):
        for file in copied.parent.rglob(name):
            file.unlink()
    assert refusal(copied).reason == "NO_TOKENIZER"
    copied.write_bytes(copied.read_bytes()[:-40] + b"x" * 40)
    assert refusal(copied).reason == "RECORD_BROKEN"
    assert refusal(tmp_path / "none").reason == "RECORD_BROKEN"


def started_process(question: dict[str, Any]) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-m", "whence_server.training.emergence.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(question).encode())
    process.stdin.flush()
    return process


def test_the_process_answers_in_frames_while_its_input_is_open(record: Path) -> None:
    question = {"record": str(record), "prompt": PROMPT, "continuation": CONTINUATION}
    with started_process({**question, "omit_groups": True}) as process:
        assert process.stdout is not None
        octets = process.stdout.read()
        assert process.wait() == 0
    answers = [TraceEmergenceResponse.FromString(frame.message) for frame in iterate_frames(octets)]
    assert answers == traced(record, omit_groups=True)


def test_the_process_tells_a_refusal_and_ends_with_its_input(record: Path) -> None:
    question = {"record": str(record), "prompt": PROMPT, "continuation": ""}
    with started_process(question) as process:
        assert process.stderr is not None
        told = json.loads(process.stderr.read().splitlines()[-1])
        assert process.wait() == 2
    assert told == {
        "reason": "INVALID_TEXT",
        "message": "it must not be empty",
        "field": "continuation",
    }
    with started_process({**question, "continuation": CONTINUATION}) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 3


def test_examples_between_two_steps_are_looked_up(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path / "run") as builder:
        builder.attempt()
        for number, ids in ((1, [5, 3]), (2, [3, 8]), (3, [9])):
            builder.steps([number], ranks=[pb.RankExamples(example_ids=ids)])
        builder.attempt(resumed_step=2)
        builder.steps([3], ranks=[pb.RankExamples(example_ids=[1]), pb.RankExamples(rank=1)])
        run = read_verified_run(builder.path)
    assert list(iterate_examples_between(run, 0, 3)) == [5, 3, 8, 1], "9 was superseded"
    assert list(iterate_examples_between(run, 1, 2)) == [3, 8]
    builder.path.unlink()
    with pytest.raises(RefusedError) as refused:
        list(iterate_examples_between(run, 0, 3))
    assert refused.value.reason == "RECORD_BROKEN"


def test_curve_begins_at_the_parent_model_if_its_weights_are_on_disk(
    copied: Path,
) -> None:
    run = read_verified_run(copied)
    parent = run.started.parent
    parent.source = str(copied.parent)
    run.started.initial_weights_digest = run.checkpoints[-1].weights_digest
    model = load_initial_model(run, tokenizer=None)
    assert digest_weights(model) == run.checkpoints[-1].weights_digest
    run.started.initial_weights_digest = run.checkpoints[0].weights_digest
    assert load_initial_model(run, tokenizer=None) is None, "other weights"
    parent.source = str(copied.parent / "gone")
    assert load_initial_model(run, tokenizer=None) is None
