"""Library of runs: search, damaged records, and links from models."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from lineage_records import (
    MODEL_DIGEST,
    SPAN_ID,
    TRACE_ID,
    WEIGHTS_DIGEST,
    RecordBuilder,
    loaded_model,
    run_id,
)

from whence.v1 import model_pb2 as pb
from whence.v1.training_pb2 import RankExamples
from whence_server.domain.errors import ConfigurationError, TrainingRunNotFoundError
from whence_server.domain.model import AdapterInfo, FileDigest, ModelInfo, NamedAdapter
from whence_server.lineage.library import RunLibrary
from whence_server.lineage.reader import RecordedEvent, RecordReader
from whence_server.lineage.run import TrainingRun


def record(directory: Path, number: int, num_steps: int = 3) -> Path:
    with RecordBuilder(directory, number) as builder:
        builder.attempt().steps(range(1, num_steps + 1))
    return builder.path


async def ids(library: RunLibrary) -> list[str]:
    return await library.query_all(lambda runs: [run.id for run in runs])


async def num_steps(library: RunLibrary, number: int) -> int:
    return await library.query(run_id(number), lambda run: len(run.steps))


async def test_runs_are_found_beside_the_model_and_two_levels_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "out" / "checkpoints" / "checkpoint-9"
    model.mkdir(parents=True)
    record(tmp_path / "out", 1)
    runs = tmp_path / "runs"
    record(runs, 2)
    record(runs / "a", 3)
    record(runs / "a" / "b", 4)
    record(runs / "a" / "b" / "c", 5)
    record(runs / ".hidden", 6)
    record(runs / "checkpoint-3", 7)
    library = RunLibrary([runs, tmp_path / "not-there"], str(model))
    assert await ids(library) == [run_id(n) for n in (4, 3, 2, 1)]
    record(runs / "later", 8)
    assert await num_steps(library, 8) == 3
    with pytest.raises(TrainingRunNotFoundError) as caught:
        await num_steps(library, 5)
    assert caught.value.metadata == {"training_run_id": run_id(5)}
    shutil.rmtree(runs / "later")
    assert run_id(8) not in await ids(library)
    with pytest.raises(TrainingRunNotFoundError):
        await num_steps(library, 8)
    # Said once, however often it was looked for.
    assert caplog.messages == [
        f"{tmp_path / 'not-there'} cannot be searched for training runs: No such file or directory"
    ]


async def test_a_hub_id_has_no_records_beside_it(tmp_path: Path) -> None:
    assert await ids(RunLibrary(model="owner/model")) == []


async def test_a_record_is_read_once_and_then_as_far_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    take = RecordReader.read

    def counted(reader: RecordReader) -> list[RecordedEvent]:
        events = take(reader)
        read.extend(event.position for event in events)
        return events

    monkeypatch.setattr(RecordReader, "read", counted)
    with RecordBuilder(tmp_path / "a") as builder:
        library = RunLibrary([tmp_path])
        builder.attempt().steps([1])
        assert await num_steps(library, 1) == 1
        builder.steps([2, 3])
        for _ in range(3):
            assert await num_steps(library, 1) == 3
            assert await ids(library) == [run_id(1)]
    assert read == list(range(1, builder.position + 1))


async def test_closing_the_library_does_not_wait_for_a_long_record(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.attempt().steps(range(1, 100), ranks=[RankExamples(example_ids=range(30_000))])
    whole = TrainingRun.open(builder.path)
    assert whole is not None
    stopped = TrainingRun.open(builder.path, lambda: True)
    assert stopped is not None
    assert 0 < stopped.num_entries < whole.num_entries


async def test_broken_records_are_named_once_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / "good", 1)
    broken = record(tmp_path / "broken", 2)
    octets = bytearray(broken.read_bytes())
    octets[-40] ^= 1
    broken.write_bytes(octets)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "lineage.binpb").touch()
    library = RunLibrary([tmp_path])
    for _ in range(3):
        assert await ids(library) == [run_id(1)]
    named = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(named) == 1
    assert f"{broken} is not an intact record: entry" in named[0]
    # Mended, it is there.
    octets[-40] ^= 1
    broken.write_bytes(octets)
    os.utime(broken, ns=(1, 1))
    assert await ids(library) == [run_id(2), run_id(1)]


async def test_longest_copy_of_a_record_is_used_then_the_one_beside_checkpoints(
    tmp_path: Path,
) -> None:
    with RecordBuilder(tmp_path / "b-original") as builder:
        builder.attempt().steps([1]).checkpoint(1)
        (tmp_path / "a-copy").mkdir()
        shutil.copy(builder.path, tmp_path / "a-copy" / "lineage.binpb")
        (tmp_path / "b-original" / "checkpoint-1").mkdir()
        library = RunLibrary([tmp_path])

        async def path() -> Path:
            return await library.query(run_id(1), lambda run: run.path)

        assert await ids(library) == [run_id(1)]
        assert await path() == builder.path
        (tmp_path / "a-copy" / "checkpoint-1").mkdir()
        builder.steps([2])
    assert await ids(library) == [run_id(1)]
    assert await path() == builder.path


@pytest.mark.parametrize("by", ["model_digest", "weights_digest"])
async def test_a_model_is_linked_by_its_digests(
    tmp_path: Path, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RecordBuilder(tmp_path / "model", 1) as builder:
        builder.attempt().steps(range(1, 9)).checkpoint(4)
        digests = {"model_digest": MODEL_DIGEST, "weights_digest": WEIGHTS_DIGEST}
        builder.checkpoint(8, ".", **digests).finish(8)
        head = builder.head
    record(tmp_path / "other", 2)
    library = RunLibrary([tmp_path / "other"])
    model = loaded_model(
        tmp_path / "model", **{"model_digest": "", "weights_digest": "", by: digests[by]}
    )
    ref = await library.link(model)
    assert ref is not None
    assert (ref.training_run_id, ref.step, ref.record_head) == (run_id(1), 8, head)
    assert (ref.trace_id, ref.span_id) == (TRACE_ID, SPAN_ID)
    assert f"was made by the training run {run_id(1)} at step 8" in caplog.text


async def test_a_model_that_was_changed_after_training_is_not_linked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RecordBuilder(tmp_path / "model", 1) as builder:
        builder.attempt().checkpoint(4)
    model = loaded_model(tmp_path / "model", model_digest="99" * 32, weights_digest="88" * 32)
    assert await RunLibrary().link(model) is None
    (said,) = caplog.messages
    for part in (str(builder.path), run_id(1), "99" * 32, "88" * 32, "changed after the training"):
        assert part in said


async def test_a_model_without_digests_is_not_linked_to_a_checkpoint_without(
    tmp_path: Path,
) -> None:
    with RecordBuilder(tmp_path / "model", 1) as builder:
        builder.attempt().checkpoint(4, model_digest="", weights_digest="")
    model = loaded_model(tmp_path / "model", model_digest="", weights_digest="")
    assert await RunLibrary().link(model) is None


BASE = {"config.json": "0a" * 32, "model.safetensors": "0b" * 32}
ADAPTER = {"adapter_config.json": "0c" * 32, "adapter_model.safetensors": "0d" * 32}
SERVED_ADAPTER = ADAPTER | {f"base/{name}": digest for name, digest in BASE.items()}


def digests(files: Mapping[str, str]) -> list[pb.FileDigest]:
    return [pb.FileDigest(path=name, sha256=digest) for name, digest in files.items()]


def model_with_adapter(directory: Path, files: Mapping[str, str]) -> ModelInfo:
    """A model as the engine reports it, whose own digests cover its base too."""
    return loaded_model(
        directory,
        model_digest="99" * 32,
        weights_digest="88" * 32,
        files=[FileDigest(name, 1, digest) for name, digest in files.items()],
        adapter=AdapterInfo("LORA", "77" * 32, "base", ""),
    )


@pytest.mark.parametrize("place", ["", "mine/"])
@pytest.mark.parametrize("served", [SERVED_ADAPTER, ADAPTER | BASE], ids=["apart", "beside"])
async def test_an_adapter_is_linked_by_its_files_on_the_base_on_record(
    tmp_path: Path, served: Mapping[str, str], place: str
) -> None:
    saved = digests({place + name: digest for name, digest in ADAPTER.items()})
    with RecordBuilder(tmp_path, base_files=digests(BASE)) as builder:
        builder.attempt().checkpoint(4).checkpoint(8, ".", files=saved)
    ref = await RunLibrary().link(model_with_adapter(tmp_path, served))
    assert ref is not None
    assert (ref.training_run_id, ref.step) == (run_id(1), 8)


@pytest.mark.parametrize("changed", SERVED_ADAPTER)
async def test_a_changed_adapter_or_another_base_is_not_linked(
    tmp_path: Path, changed: str
) -> None:
    with RecordBuilder(tmp_path, base_files=digests(BASE)) as builder:
        builder.attempt().checkpoint(4, files=digests(ADAPTER))
    model = model_with_adapter(tmp_path, SERVED_ADAPTER | {changed: "ee" * 32})
    assert await RunLibrary().link(model) is None


async def test_an_adapter_is_not_linked_where_its_base_is_not_on_record(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.attempt().checkpoint(4, files=digests(ADAPTER))
    assert await RunLibrary().link(model_with_adapter(tmp_path, SERVED_ADAPTER)) is None


def model_with_named_adapter(directory: Path, **changes: object) -> ModelInfo:
    """A model as the engine reports it, with an adapter that requests can name."""
    adapter = NamedAdapter(
        name="tone",
        identity=AdapterInfo("LORA", "77" * 32, "base", MODEL_DIGEST),
        weights_digest="66" * 32,
        files=tuple(FileDigest(name, 1, digest) for name, digest in ADAPTER.items()),
        directory=str(directory / "adapter"),
    )
    return loaded_model(
        directory / "base",
        files=[FileDigest(name, 1, digest) for name, digest in BASE.items()],
        loaded_files=("model.safetensors",),
        adapters=(dataclasses.replace(adapter, **changes),),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("by", ["files", "weights"])
async def test_a_named_adapter_is_linked_to_the_run_beside_it(tmp_path: Path, by: str) -> None:
    fields = {"files": digests(ADAPTER)} if by == "files" else {"weights_digest": "66" * 32}
    with RecordBuilder(tmp_path / "adapter", base_files=digests(BASE)) as builder:
        builder.attempt().checkpoint(4).checkpoint(8, ".", **fields)
    model = model_with_named_adapter(tmp_path)
    [linked] = await RunLibrary().link_adapters(model)
    assert linked.training_run is not None
    assert (linked.training_run.training_run_id, linked.training_run.step) == (run_id(1), 8)
    assert dataclasses.replace(linked, training_run=None) == model.adapters[0]


async def test_a_named_adapter_without_its_run_on_record_is_not_linked(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path / "adapter", base_files=digests(BASE)) as builder:
        builder.attempt().checkpoint(4, files=digests(ADAPTER | {"adapter_config.json": "ee" * 32}))
    [linked] = await RunLibrary().link_adapters(model_with_named_adapter(tmp_path))
    assert linked.training_run is None
    assert await RunLibrary().link_adapters(loaded_model(tmp_path)) == ()


async def test_a_named_adapter_that_was_trained_on_other_weights_is_refused(
    tmp_path: Path,
) -> None:
    other = digests(BASE | {"model.safetensors": "ee" * 32})
    with RecordBuilder(tmp_path / "adapter", base_files=other) as builder:
        builder.attempt().checkpoint(4, files=digests(ADAPTER))
    with pytest.raises(ConfigurationError) as caught:
        await RunLibrary().link_adapters(model_with_named_adapter(tmp_path))
    message = caught.value.message
    assert message.startswith(f"--adapter tone={tmp_path / 'adapter'}: the training run")
    assert f"whose model.safetensors has the SHA-256 {'ee' * 32}" in message
    assert f"that of the served model is {BASE['model.safetensors']}" in message


async def test_a_named_adapter_whose_base_cannot_be_compared_is_not_linked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RecordBuilder(tmp_path / "adapter") as builder:
        builder.attempt().checkpoint(4, files=digests(ADAPTER))
    [linked] = await RunLibrary().link_adapters(model_with_named_adapter(tmp_path))
    assert linked.training_run is None
    assert "has no files of its base on record" in caplog.text
