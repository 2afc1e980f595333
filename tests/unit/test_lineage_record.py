"""Writer and reader of a training run's record."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.v1.training_pb2 import LineageEntry, TrainingEvent, TrainingRunStarted, TrainingStep
from whence_server.domain.errors import LineageError
from whence_server.lineage.framing import FramingError, frame_message, iterate_frames
from whence_server.lineage.reader import RecordReader
from whence_server.lineage.writer import RecordWriter

RUN = "0a8f3c6e-5a51-4c1e-9d1c-5d3f8a1f2b4c"


def started() -> TrainingEvent:
    return TrainingEvent(started=TrainingRunStarted(training_run_id=RUN, name="run"))


def step(number: int) -> TrainingEvent:
    return TrainingEvent(step=TrainingStep(step=number, loss=1.0 / number))


def written(path: Path, num_steps: int) -> RecordWriter:
    writer = RecordWriter.create(path, started())
    for number in range(1, num_steps + 1):
        writer.append(step(number))
    return writer


@given(st.lists(st.binary(max_size=300)), st.integers(0, 2000))
def test_only_whole_frames_are_returned(messages: list[bytes], cut: int) -> None:
    whole = b"".join(map(frame_message, messages))
    given_back = list(iterate_frames(whole[:cut]))
    assert [frame.message for frame in given_back] == messages[: len(given_back)]
    assert all(frame.end <= cut for frame in given_back)
    if cut >= len(whole):
        assert len(given_back) == len(messages)


def test_invalid_length_is_refused() -> None:
    with pytest.raises(FramingError, match="ten bytes"):
        list(iterate_frames(b"\xff" * 11))
    with pytest.raises(FramingError, match="a message has the length"):
        list(iterate_frames(b"\xff\xff\xff\xff\x7f"))


def test_what_was_appended_is_read_back_with_the_documented_chain(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 3)
    writer.close()
    events = RecordReader(path).read_all()
    assert [event.position for event in events] == [1, 2, 3, 4]
    assert [event.event.step.step for event in events[1:]] == [1, 2, 3]
    # The chain as training.proto has it, from the file's own bytes.
    head = hashlib.sha256(b"whence lineage v1" + RUN.encode()).digest()
    for frame in iterate_frames(path.read_bytes()):
        entry = LineageEntry.FromString(frame.message)
        head = hashlib.sha256(head + hashlib.sha256(entry.event).digest()).digest()
        assert entry.hash == head
    assert writer.head == head


def test_reader_continues_at_its_position_and_leaves_an_incomplete_entry(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    written(path, 2).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    reader = RecordReader(path)
    assert len(reader.read_all()) == 2
    assert reader.read() == []
    path.write_bytes(whole)
    assert [event.event.step.step for event in reader.read()] == [2]


def test_entry_larger_than_the_read_buffer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 1)
    large = TrainingEvent(started=TrainingRunStarted(config_json="x" * 5000))
    writer.append(large)
    writer.append(step(2))
    writer.close()
    reader = RecordReader(path)
    events = []
    while batch := reader.read(max_bytes=100):
        events += batch
    assert [event.position for event in events] == [1, 2, 3, 4]
    assert events[2].event == large


def test_a_reader_gives_what_is_appended_later(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 1)
    reader = RecordReader(path)
    assert len(reader.read()) == 2
    writer.append(step(2))
    assert [event.event.step.step for event in reader.read()] == [2]
    writer.close()


def test_resuming_moves_an_incomplete_entry_to_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    written(path, 2).close()
    path.write_bytes(path.read_bytes()[:-1])
    torn = path.read_bytes()
    writer = RecordWriter.resume(path)
    assert (writer.training_run_id, writer.position) == (RUN, 2)
    (aside,) = tmp_path.glob("*.torn")
    assert path.read_bytes() + aside.read_bytes() == torn
    writer.append(step(2))
    writer.close()
    assert [event.event.step.step for event in RecordReader(path).read_all()[1:]] == [1, 2]


@pytest.mark.parametrize("byte", [10, 20, 100, -1])
def test_a_flipped_byte_is_found(tmp_path: Path, byte: int) -> None:
    path = tmp_path / "lineage.binpb"
    written(path, 5).close()
    octets = bytearray(path.read_bytes())
    octets[byte] ^= 1
    path.write_bytes(octets)
    with pytest.raises(LineageError, match="not an intact record: entry"):
        RecordReader(path).read_all()


def test_enlarged_length_ends_reading_and_resuming_loses_no_bytes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lineage.binpb"
    written(path, 5).close()
    whole = path.read_bytes()
    second = next(iterate_frames(whole)).end
    longer = whole[:second] + b"\xff\x7f" + whole[second + 1 :]
    path.write_bytes(longer)
    assert len(RecordReader(path).read_all()) == 1
    # Less than that is left: it looks as if an entry had been begun.
    RecordWriter.resume(path).close()
    (torn,) = tmp_path.glob("*.torn")
    assert path.read_bytes() + torn.read_bytes() == longer


def test_a_removed_and_a_moved_entry_are_found(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    written(path, 3).close()
    entries = [frame_message(frame.message) for frame in iterate_frames(path.read_bytes())]
    path.write_bytes(b"".join([entries[0], *entries[2:]]))
    with pytest.raises(LineageError, match="entry 2: its position is 3, and 2 was expected"):
        RecordReader(path).read_all()
    path.write_bytes(b"".join([*entries[1:], entries[0]]))
    with pytest.raises(LineageError, match="entry 1: it is not the start of a run"):
        RecordReader(path).read_all()


def test_only_one_process_writes_and_none_writes_over_a_record(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 1)
    with pytest.raises(LineageError, match="being written by another process"):
        RecordWriter.resume(path)
    writer.close()
    with pytest.raises(LineageError, match="it is the record of another run"):
        RecordWriter.create(path, started())
    with pytest.raises(LineageError, match="cannot be opened: No such file"):
        RecordWriter.resume(tmp_path / "none" / "lineage.binpb")


def test_a_record_that_was_not_begun_can_be_begun_and_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    for left in (b"", frame_message(b"half")[:-1]):
        path.write_bytes(left)
        writer = RecordWriter.resume(path)
        assert writer.position == 0
        with pytest.raises(LineageError, match="no whole entry"):
            writer.append(step(1))
        writer.close()
        path.write_bytes(left)
        written(path, 1).close()
        assert len(RecordReader(path).read_all()) == 2
        assert sum(aside.stat().st_size for aside in tmp_path.glob("*.torn")) == len(left)


def interrupting(monkeypatch: pytest.MonkeyPatch, num_bytes: int, error: BaseException) -> None:
    """Make the next write end after `num_bytes` bytes, by a signal or by a full disk."""
    pwrite = os.pwrite

    def interrupted(descriptor: int, octets: bytes, offset: int) -> int:
        pwrite(descriptor, octets[:num_bytes], offset)
        monkeypatch.setattr(os, "pwrite", pwrite)
        raise error

    monkeypatch.setattr(os, "pwrite", interrupted)


@pytest.mark.parametrize("num_bytes", [0, 7, 10_000])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), OSError(28, "full")])
@pytest.mark.parametrize("is_cut", [True, False])
def test_an_interrupt_within_an_entry_leaves_it_whole_or_not_at_all(
    num_bytes: int,
    error: BaseException,
    is_cut: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 1)
    interrupting(monkeypatch, num_bytes, error)
    if not is_cut:
        ftruncate = os.ftruncate

        def failing(descriptor: int, length: int) -> None:
            monkeypatch.setattr(os, "ftruncate", ftruncate)
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(LineageError if isinstance(error, OSError) else type(error)):
        writer.append(TrainingEvent(started=TrainingRunStarted(config_json="x" * 500)))
    assert writer.position == (3 if num_bytes == 10_000 else 2)
    # What is appended next is shorter than what was cut short.
    writer.append(step(2))
    writer.close()
    resumed = RecordWriter.resume(path)
    resumed.close()
    events = RecordReader(path).read_all()
    assert len(events) == resumed.position == writer.position
    assert events[-1].event.step.step == 2
    assert not list(tmp_path.glob("*.torn"))


def test_a_forked_process_has_neither_the_record_nor_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lineage.binpb"
    writer = written(path, 1)
    parent_ends, child_ends = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"w"
        try:
            writer.append(step(9))
        except LineageError:
            answer = b"r"
        os.write(child_ends[1], answer)
        os.read(parent_ends[0], 1)
        os._exit(0)
    try:
        assert os.read(child_ends[0], 1) == b"r"
        writer.append(step(2))
        # As a kill would: without a word to the lock.
        writer.abandon()
        resumed = RecordWriter.resume(path)
        resumed.close()
        assert [event.event.step.step for event in RecordReader(path).read_all()[1:]] == [1, 2]
    finally:
        os.write(parent_ends[1], b".")
        os.waitpid(child, 0)
        for end in (*parent_ends, *child_ends):
            os.close(end)
