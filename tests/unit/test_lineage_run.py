"""State of a run read from its record, and reading of steps and documents on demand."""

import hashlib
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lineage_records import START_NS, RecordBuilder

from whence.v1 import training_pb2 as pb
from whence_server.domain.errors import DocumentChangedError, DocumentNotFoundError, LineageError
from whence_server.lineage.documents import read_document_text
from whence_server.lineage.lookup import Place, read_event_at, read_events_at
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.steps import StepIndex, StepRange
from whence_server.lineage.whole import measure_torn_end, read_run, read_verified_run

TEXTS = [b"one", b"two two", b"", b"four\n", b"two two", b"six" * 100, b"seven"]


@pytest.fixture
def record(tmp_path: Path):
    with RecordBuilder(tmp_path / "run") as builder:
        builder.documents(tmp_path / "corpus.txt", TEXTS)
        builder.examples([[(0, 0, 3), (1, 0, 2)], [(1, 2, 7)], [(3, 0, 5), (5, 0, 9)], []])
        yield builder


def opened(builder: RecordBuilder) -> TrainingRun:
    run = TrainingRun.open(builder.path)
    assert run is not None
    return run


def numbers(run: TrainingRun, **wanted: object) -> list[tuple[int, int]]:
    refs = run.steps.select(StepRange(**wanted))
    steps = [event.step for event in read_events_at(run.path, [ref.place for ref in refs])]
    return [(step.step, step.attempt) for step in steps]


def test_a_run_is_folded_as_its_record_grows(record: RecordBuilder) -> None:
    run = opened(record)
    assert (run.id, run.read_newest_step(), run.ended) == (record.id, None, False)
    record.attempt().steps(range(1, 13)).evaluation(10).checkpoint(10)
    run.refresh()
    newest = run.read_newest_step()
    assert newest is not None
    assert (newest.step, newest.num_tokens_seen) == (12, 192)
    assert (run.num_entries, run.head) == (record.position, record.head)
    assert [c.step for c in run.checkpoints] == [10]
    assert not run.checkpoints[0].tensors
    assert run.checkpoints[0].files
    # The newest thing is step 12: the attempt's start, and 12 ms.
    assert run.last_time_ns == START_NS + 10**9 + 10**8 + 12_000_000
    record.attempt(resumed_step=10)
    run.refresh()
    assert run.steps.num_superseded == 2
    newest = run.read_newest_step()
    assert newest is not None
    assert newest.step == 10
    record.steps([11]).finish(11, pb.TRAINING_STATE_INTERRUPTED)
    run.refresh()
    assert (run.state, run.ended) == (pb.TRAINING_STATE_INTERRUPTED, True)
    assert [ending.attempt for ending in run.endings] == [2]
    record.attempt(resumed_step=11)
    run.refresh()
    assert (run.state, len(run.attempts)) == (pb.TRAINING_STATE_RUNNING, 3)
    # Read anew, it is the same.
    again = opened(record)
    assert vars(again.steps) == vars(run.steps)
    assert again.last_time_ns == run.last_time_ns


def test_steps_are_selected_by_range_stride_and_attempt(record: RecordBuilder) -> None:
    record.attempt().steps(range(1, 8)).attempt(resumed_step=4).steps(range(5, 7))
    run = opened(record)
    assert numbers(run) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert numbers(run, first=3, last=5) == [(3, 1), (4, 1), (5, 2)]
    assert numbers(run, stride=4) == [(1, 1), (5, 2), (6, 2)]
    assert numbers(run, first=2, stride=3) == [(2, 1), (5, 2), (6, 2)]
    assert numbers(run, last=100, stride=100) == [(1, 1), (6, 2)]
    assert numbers(run, first=7) == []
    assert numbers(run, first=4, include_superseded=True) == [
        (4, 1), (5, 1), (5, 2), (6, 1), (6, 2), (7, 1),
    ]  # fmt: skip
    after = run.steps.select(StepRange(include_superseded=True), after=(5, 1))
    assert [(ref.number, ref.attempt) for ref in after] == [(5, 2), (6, 1), (6, 2), (7, 1)]


@given(
    made=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8)), max_size=6),
    wanted=st.builds(
        StepRange, st.integers(0, 12), st.integers(0, 14), st.integers(0, 5), st.booleans()
    ),
)
def test_steps_are_those_of_a_list_kept_in_full(
    made: list[tuple[int, int]], wanted: StepRange
) -> None:
    index = StepIndex()
    counting: dict[int, tuple[int, int]] = {}
    superseded: list[tuple[int, int]] = []
    for attempt, (resumed_step, num_steps) in enumerate(made, 1):
        begin = min(resumed_step, max(counting, default=0))
        index.supersede_beyond(begin)
        superseded.extend(counting.pop(number) for number in [n for n in counting if n > begin])
        for number in range(begin + 1, begin + num_steps + 1):
            index.add(number, attempt, Place(number * 100 + attempt, number * 100 + attempt + 7, 0))
            counting[number] = (number, attempt)
    chosen = sorted([*counting.values(), *(superseded if wanted.include_superseded else [])])
    first = wanted.first or min((n for n, _ in chosen), default=0)
    within = [s for s in chosen if s[0] >= first and (not wanted.last or s[0] <= wanted.last)]
    last = max((n for n, _ in within), default=0)
    stride = max(wanted.stride, 1)
    expected = [s for s in within if (s[0] - first) % stride == 0 or s[0] == last]
    found = list(index.select(wanted))
    assert [(ref.number, ref.attempt) for ref in found] == expected
    assert {n for n in range(60) if index.find(n)} == set(counting)
    assert all(
        index.find(n) == ref for n, ref in ((r.number, r) for r in index.select(StepRange()))
    )
    assert all(ref.place.begin_byte == ref.number * 100 + ref.attempt for ref in found)
    assert (len(index), index.num_superseded) == (len(counting), len(superseded))


def test_checkpoints_after_the_resumed_step_are_superseded(
    record: RecordBuilder,
) -> None:
    record.attempt().steps(range(1, 8)).checkpoint(4).checkpoint(6, path="a/b")
    record.attempt(resumed_step=4).steps(range(5, 7)).checkpoint(6).finish(6).checkpoint(6, ".")
    run = opened(record)
    assert [(c.step, c.attempt) for c in run.checkpoints] == [(4, 1), (6, 1), (6, 2), (6, 2)]
    assert [c.path for c in run.list_counting_checkpoints()] == [
        "checkpoint-4",
        "checkpoint-6",
        ".",
    ]
    assert [run.is_superseded(c) for c in run.checkpoints] == [False, True, False, False]
    assert run.resolve_directory(run.checkpoints[1]) == record.path.parent / "a" / "b"
    assert [run.read_num_tokens_seen(step) for step in (0, 1, 6, 7)] == [0, 16, 96, 0]
    (whole, *_) = read_run(record.path, with_tensors=True).checkpoints
    assert [tensor.name for tensor in whole.tensors] == ["w"]


def test_bytes_after_the_last_whole_entry_are_reported(record: RecordBuilder) -> None:
    run = opened(record)
    assert measure_torn_end(run) == (0, False)
    octets = record.path.read_bytes()
    with record.path.open("ab") as file:
        file.write(b"\x7f\x01")
    assert measure_torn_end(run) == (2, True), "the builder holds the record"
    record.path.write_bytes(octets)
    record.attempt().close()
    assert measure_torn_end(run) == (0, False)
    assert len(run.attempts) == 1, "what was written meanwhile is read"
    with record.path.open("ab") as file:
        file.write(b"\x7f\x01")
    assert measure_torn_end(run) == (2, False)
    record.path.unlink()
    with pytest.raises(LineageError, match="cannot be read: No such file"):
        measure_torn_end(run)


def test_a_step_takes_little_memory() -> None:
    index = StepIndex()
    for number in range(1, 10_001):
        index.add(number, 1, Place(number * 300, number * 300 + 299, 0))
    arrays = [value for value in vars(index).values() if hasattr(value, "itemsize")]
    assert sum(map(sys.getsizeof, arrays)) < 10_000 * 48


def test_documents_and_examples_are_looked_up(record: RecordBuilder) -> None:
    training_set = opened(record).training_set
    for index, text in enumerate(TEXTS):
        document = training_set.read_document(index)
        assert read_document_text(document) == text
        assert training_set.find_document(hashlib.sha256(text).hexdigest()) == TEXTS.index(text)
    everything = list(training_set.read_documents())
    assert everything == [training_set.read_document(index) for index in range(len(TEXTS))]
    assert training_set.read_pieces(0) == [(0, 0, 3), (1, 0, 2)]
    assert training_set.read_pieces(2) == [(3, 0, 5), (5, 0, 9)]
    for asked in (
        lambda: training_set.read_document(len(TEXTS)),
        lambda: training_set.find_document("00" * 32),
        lambda: training_set.read_pieces(3),
        lambda: training_set.read_pieces(4),
        lambda: training_set.compute_audit_path(len(TEXTS)),
    ):
        with pytest.raises(DocumentNotFoundError):
            asked()


def test_a_digest_across_two_others_is_no_document(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.documents(tmp_path / "a.txt", TEXTS)
        training_set = opened(builder).training_set
    straddling = (
        training_set.documents.get_digest(0)[16:] + training_set.documents.get_digest(1)[:16]
    )
    assert training_set.documents.find(straddling) is None


def test_a_training_set_without_documents_says_so(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.append(dataset=pb.TrainingDataset(kind="stream"))
        run = opened(builder)
    with pytest.raises(DocumentNotFoundError, match="kind 'stream'"):
        run.training_set.read_document(0)


@pytest.mark.parametrize("change", ["flipped", "shorter", "gone", "directory", "pipe"])
def test_a_changed_document_is_not_given(
    record: RecordBuilder, tmp_path: Path, change: str
) -> None:
    source = tmp_path / "corpus.txt"
    document = opened(record).training_set.read_document(5)
    octets = source.read_bytes()
    source.unlink()
    if change == "flipped":
        source.write_bytes(octets.replace(b"six", b"sex", 1))
    elif change == "shorter":
        source.write_bytes(octets[:20])
    elif change == "directory":
        source.mkdir()
    elif change == "pipe":
        os.mkfifo(source)
    with pytest.raises(DocumentChangedError, match=r"corpus\.txt no longer has the text"):
        read_document_text(document)


def test_digest_of_a_changed_text_is_in_the_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    found = hashlib.sha256(b"s").hexdigest()
    for end_byte, in_log in ((1, found), (20, "has 1 bytes")):
        planted = pb.TrainingDocument(source=str(secret), end_byte=end_byte, sha256="00" * 32)
        caplog.clear()
        with pytest.raises(DocumentChangedError) as raised:
            read_document_text(planted)
        assert in_log in caplog.text
        assert in_log not in str(raised.value)
        assert found not in str(raised.value.__dict__)


def test_a_relative_source_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    planted = pb.TrainingDocument(
        source="a.txt", end_byte=3, sha256=hashlib.sha256(b"one").hexdigest()
    )
    with pytest.raises(DocumentChangedError, match="its path is not absolute"):
        read_document_text(planted)


def test_other_documents_of_a_changed_source_are_still_given(
    record: RecordBuilder, tmp_path: Path
) -> None:
    source = tmp_path / "corpus.txt"
    source.write_bytes(source.read_bytes().replace(b"six", b"sex", 1))
    assert read_document_text(opened(record).training_set.read_document(1)) == b"two two"


def test_a_merkle_root_that_the_documents_do_not_have_is_refused(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.documents(tmp_path / "a.txt", TEXTS)
        builder.append(dataset=pb.TrainingDataset(kind="documents", merkle_root="00" * 32))
        run = opened(builder)
    with pytest.raises(LineageError, match="0000 is on record"):
        run.training_set.compute_audit_path(0)
    with pytest.raises(LineageError, match="its 7 documents have the Merkle root"):
        read_verified_run(builder.path)


def test_missing_documents_are_noticed(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.append(documents=pb.TrainingDocuments(first_index=3))
    with pytest.raises(LineageError, match=r"entry 2: item 3 .* missing"):
        TrainingRun.open(builder.path)


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 1025, 2047, 2050])
def test_reader_begins_at_any_position(tmp_path: Path, position: int) -> None:
    with RecordBuilder(tmp_path) as builder:
        builder.attempt().steps(range(1, 2050))
        run = opened(builder)
        reader = run.create_reader_after(position)
        assert 0 <= position - reader.position < 1024
        builder.steps([2050])
        positions = [event.position for event in reader.read_all()]
    assert positions[-1] == 2052
    assert positions == list(range(positions[0], 2053))
    assert positions[0] <= position + 1


def test_a_record_that_was_replaced_has_no_such_entry(record: RecordBuilder) -> None:
    record.attempt().steps([1])
    run = opened(record)
    assert run.steps.newest is not None
    record.path.write_bytes(b"\0" * record.path.stat().st_size)
    with pytest.raises(LineageError, match="is not the record that was read before"):
        read_event_at(run.path, run.steps.newest.place)


def test_a_look_up_finds_a_changed_entry(record: RecordBuilder, tmp_path: Path) -> None:
    record.attempt().steps([1], loss=0.5)
    run = opened(record)
    newest = run.steps.newest
    assert newest is not None
    octets = record.path.read_bytes()
    for before, after, look_up in (
        (
            struct.pack("<d", 0.5),
            struct.pack("<d", 0.25),
            lambda: read_event_at(run.path, newest.place),
        ),
        (b"corpus.txt", b"secret.txt", lambda: run.training_set.read_document(0)),
    ):
        assert before in octets
        record.path.write_bytes(octets.replace(before, after))
        with pytest.raises(LineageError, match="gone, or has changed"):
            look_up()
    record.path.write_bytes(octets)
    assert read_event_at(run.path, newest.place).step.loss == 0.5


def test_record_with_an_incomplete_first_entry_has_no_run(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path) as builder:
        whole = builder.path.read_bytes()
    builder.path.write_bytes(whole[:-1])
    assert TrainingRun.open(builder.path) is None
    with pytest.raises(LineageError, match="no whole entry"):
        read_run(builder.path)
