"""Training runs on record, made for tests: small, and different in every step."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from whence.v1 import model_pb2
from whence.v1 import training_pb2 as pb
from whence_server.domain.decoding import GenerationDefaults
from whence_server.domain.model import Environment, ModelInfo, TextFiles
from whence_server.lineage.writer import RecordWriter

START_NS = 1_800_000_000_000_000_000
GROUPS = ("embedding", "layer.0.attention", "layer.0.mlp", "final_norm")
MODEL_DIGEST = "ab" * 32
WEIGHTS_DIGEST = "cd" * 32
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


def run_id(number: int) -> str:
    """Return a run's id; the first eight digits are unique."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def timestamp(unix_ns: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(unix_ns)
    return stamp


class RecordBuilder:
    """Context manager that writes a run's record event by event.

    Attributes:
        path: the record's file.
        id: the run's.
    """

    def __init__(
        self,
        directory: Path,
        number: int = 1,
        *,
        groups: Sequence[str] = GROUPS,
        base_files: Sequence[model_pb2.FileDigest] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "lineage.binpb"
        self.id = run_id(number)
        self.groups = tuple(groups)
        self.attempt_number = 0
        self._start_ns = START_NS + number * 10**9
        started = pb.TrainingRunStarted(
            training_run_id=self.id,
            name=f"run {number}",
            start_time=timestamp(self._start_ns),
            trace_id=TRACE_ID,
            span_id=SPAN_ID,
            architecture="GPT2LMHeadModel",
            num_parameters=1_000,
            config_json='{"model_type": "gpt2"}',
            arguments_json='{"seed": 7}',
            initial_weights_digest="01" * 32,
            groups=[
                pb.ParameterGroup(name=name, num_parameters=250, parameter_names=[f"{name}.weight"])
                for name in self.groups
            ],
            num_planned_steps=40,
            whence_version="0.1.0",
            adapter_base=pb.ParentModel(files=base_files) if base_files else None,
        )
        self._closed = False
        self._writer = RecordWriter.create(self.path, pb.TrainingEvent(started=started))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the record, so that another process can write it."""
        if not self._closed:
            self._closed = True
            self._writer.close()

    def append(self, **event: object) -> Self:
        self._writer.append(pb.TrainingEvent(**event))
        return self

    @property
    def head(self) -> str:
        return self._writer.head.hex()

    @property
    def position(self) -> int:
        return self._writer.position

    def documents(self, source: Path, texts: Sequence[bytes], *, a_chunk: int = 3) -> Self:
        """Write the texts to one file, and record each as a document."""
        source.write_bytes(b"".join(texts))
        documents, begin = [], 0
        for text in texts:
            documents.append(
                pb.TrainingDocument(
                    source=str(source),
                    begin_byte=begin,
                    end_byte=begin + len(text),
                    sha256=hashlib.sha256(text).hexdigest(),
                )
            )
            begin += len(text)
        self.append(
            dataset=pb.TrainingDataset(
                kind="documents",
                num_documents=len(texts),
                num_examples=len(texts),
                merkle_root=merkle_root([hashlib.sha256(text).digest() for text in texts]).hex(),
                block_size=8,
                description="made for a test",
                num_tokens=begin,
            )
        )
        for first in range(0, len(documents), a_chunk):
            chunk = documents[first : first + a_chunk]
            self.append(documents=pb.TrainingDocuments(first_index=first, documents=chunk))
        return self

    def examples(
        self, pieces: Sequence[Sequence[tuple[int, int, int]]], *, a_chunk: int = 2
    ) -> Self:
        """Records the pieces (document index, first byte, last byte) of each example."""
        for first in range(0, len(pieces), a_chunk):
            chunk = pieces[first : first + a_chunk]
            flat = [piece for example in chunk for piece in example]
            self.append(
                examples=pb.TrainingExamples(
                    first_example_id=first,
                    num_pieces=[len(example) for example in chunk],
                    document_indices=[piece[0] for piece in flat],
                    begin_bytes=[piece[1] for piece in flat],
                    end_bytes=[piece[2] for piece in flat],
                )
            )
        return self

    def attempt(self, resumed_step: int = 0) -> Self:
        self.attempt_number += 1
        return self.append(
            attempt_started=pb.AttemptStarted(
                attempt=self.attempt_number,
                start_time=timestamp(self._start_ns + self.attempt_number * 10**8),
                resumed_step=resumed_step,
                weights_digest="02" * 32,
                num_processes=1,
                versions={"torch": "2.13.0"},
                hardware={"device": "cpu"},
                determinism={"seed": "7"},
            )
        )

    def steps(self, numbers: Iterable[int], **fields: object) -> Self:
        for number in numbers:
            self.append(step=training_step(number, self.attempt_number, len(self.groups), **fields))
        return self

    def evaluation(self, step: int) -> Self:
        return self.append(
            evaluation=pb.Evaluation(
                step=step,
                attempt=self.attempt_number,
                metrics={"eval_loss": 2.5},
                elapsed_ns=step * 1_000_000 + 1,
            )
        )

    def checkpoint(self, step: int, path: str | None = None, **fields: object) -> Self:
        return self.append(
            checkpoint=pb.Checkpoint(
                **{
                    "step": step,
                    "attempt": self.attempt_number,
                    "path": f"checkpoint-{step}" if path is None else path,
                    "resumable": True,
                    "model_digest": hashlib.sha256(f"model {step}".encode()).hexdigest(),
                    "weights_digest": hashlib.sha256(f"weights {step}".encode()).hexdigest(),
                    "files": [
                        model_pb2.FileDigest(path="config.json", size_bytes=3, sha256="03" * 32)
                    ],
                    "tensors": [
                        pb.TensorDigest(name="w", dtype="float32", shape=[2, 2], sha256="04" * 32)
                    ],
                    "elapsed_ns": step * 1_000_000 + 2,
                    **fields,
                }
            )
        )

    def finish(
        self, step: int, state: pb.TrainingState.ValueType = pb.TRAINING_STATE_COMPLETED
    ) -> Self:
        return self.append(
            attempt_finished=pb.AttemptFinished(
                attempt=self.attempt_number,
                step=step,
                end_time=timestamp(self._start_ns + 9 * 10**8),
                state=state,
                weights_digest=WEIGHTS_DIGEST,
            )
        )


def training_step(number: int, attempt: int, num_groups: int, **fields: object) -> pb.TrainingStep:
    """Return a step whose values depend on its number and attempt."""
    return pb.TrainingStep(
        **{
            "step": number,
            "attempt": attempt,
            "epoch": number / 10,
            "ranks": [pb.RankExamples(rank=0, example_ids=[number % 5, 4], num_micro_batches=1)],
            "num_tokens": 16,
            "num_tokens_seen": 16 * number,
            "loss": 4.0 / number + attempt / 64,
            "learning_rate": 1e-3 * (1 - number / 100),
            "grad_norm": 1.5,
            "update_norms": [2.0**-i / number for i in range(num_groups)],
            "weight_norms": [10.0] * num_groups,
            "elapsed_ns": number * 1_000_000,
            "duration_ns": 1_000_000,
            **fields,
        }
    )


def loaded_model(directory: Path, **fields: object) -> ModelInfo:
    """Return a model in this directory as the engine reports it."""
    return ModelInfo(
        **{
            "name": "m",
            "architecture": "GPT2LMHeadModel",
            "num_parameters": 1_000,
            "num_layers": 1,
            "vocabulary_size": 400,
            "max_context_length": 64,
            "model_digest": MODEL_DIGEST,
            "tokenizer_digest": "",
            "weights_digest": WEIGHTS_DIGEST,
            "files": (),
            "loaded_files": (),
            "batched": True,
            "environment": Environment("0", "0", "0", "float32", "cpu", 1, "sdpa"),
            "defaults": GenerationDefaults(),
            "text": TextFiles("{}", None, {}),
            "directory": str(directory),
            **fields,
        }
    )


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word: the list parted at the largest power of two."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:k]) + merkle_root(leaves[k:])).digest()
