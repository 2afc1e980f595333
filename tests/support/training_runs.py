"""Small trainings, whose records are written without the recorder.

A plain loop over AdamW; each field of the record is computed here by its definition.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import training_records as records
from tiny_models import CORPUS, byte_level_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

from whence.v1 import training_pb2 as pb
from whence.v1.model_pb2 import FileDigest
from whence_server.lineage.merkle import MerkleTree
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter

CONFIG = GPT2Config(
    vocab_size=416,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=2,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=0,
)
KEPT = (4, 8)
"""Steps after which weights are saved; the last is also the final model."""


class Training:
    """Training that writes a record, with checkpoints after some steps.

    Args:
        directory: directory of the final model and the record.
        texts: document of each step.
        kept: steps after which weights are saved.
        config: configuration of the model.
        learning_rate: learning rate of AdamW.
    """

    def __init__(
        self,
        directory: Path,
        texts: Sequence[str],
        kept: Sequence[int] = KEPT,
        *,
        config: PreTrainedConfig = CONFIG,
        learning_rate: float = 3e-3,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.directory = directory
        self.texts = list(texts)
        self.kept = list(kept)
        torch.manual_seed(0)
        self.tokenizer = byte_level_tokenizer()
        self.model: Any = AutoModelForCausalLM.from_config(config).to(dtype)
        self._learning_rate = learning_rate

    def run(self) -> Path:
        """Train; return the record's path."""
        self.directory.mkdir(parents=True, exist_ok=True)
        writer = RecordWriter.create(self.directory / RECORD_NAME, self._started())
        for event in (*self._dataset(), records.attempt()):
            writer.append(event)
        if 0 in self.kept:
            writer.append(self._saved(0, "checkpoints/checkpoint-0"))
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self._learning_rate)
        for number, text in enumerate(self.texts, 1):
            ids = torch.tensor([self.tokenizer(text)["input_ids"][:64]])
            loss = self.model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            event = records.step(number)
            event.step.loss = float(loss.detach())
            event.step.ranks[0].example_ids[:] = [number - 1]
            writer.append(event)
            if number in self.kept:
                writer.append(self._saved(number, f"checkpoints/checkpoint-{number}"))
        writer.append(self._saved(len(self.texts), "."))
        writer.append(records.finished(len(self.texts)))
        writer.close()
        return self.directory / RECORD_NAME

    def _started(self) -> pb.TrainingEvent:
        event = records.started(len(self.texts))
        run = event.started
        run.architecture = type(self.model).__name__
        run.initial_weights_digest = digest_weights(self.model)
        del run.groups[:]
        for name, parameters in groups(self.model).items():
            size = sum(self.model.get_parameter(p).numel() for p in parameters)
            run.groups.add(name=name, num_parameters=size, parameter_names=parameters)
        return event

    def _dataset(self) -> list[pb.TrainingEvent]:
        digests = [hashlib.sha256(text.encode()).digest() for text in self.texts]
        whole = pb.TrainingDataset(
            kind="documents",
            num_documents=len(digests),
            num_examples=len(digests),
            merkle_root=MerkleTree(digests).root.hex(),
        )
        documents = pb.TrainingDocuments(
            documents=[pb.TrainingDocument(source="x", sha256=d.hex()) for d in digests]
        )
        return [pb.TrainingEvent(dataset=whole), pb.TrainingEvent(documents=documents)]

    def _saved(self, step: int, path: str) -> pb.TrainingEvent:
        directory = self.directory / path
        directory.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        event = records.checkpoint(step)
        checkpoint = event.checkpoint
        checkpoint.path = path
        files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != RECORD_NAME)
        checkpoint.files.extend(
            FileDigest(path=p.name, size_bytes=p.stat().st_size, sha256=sha256(p.read_bytes()))
            for p in files
        )
        raw = b"".join(bytes.fromhex(file.sha256) for file in checkpoint.files)
        checkpoint.model_digest = sha256(raw)
        checkpoint.weights_digest = digest_weights(self.model)
        for name, tensor in distinct(self.model):
            checkpoint.tensors.add(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tensor.shape,
                sha256=sha256(octets(tensor)),
            )
        return event


def trained(directory: Path, **options: Any) -> Path:
    """Train a GPT-2 for eight steps; return the path of its record."""
    return Training(directory, (CORPUS * 3)[:8], **options).run()


def groups(model: Any) -> dict[str, list[str]]:
    """Return the parameters of a GPT-2 or Llama by group, as the contract defines them."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        part = name.split(".")
        group = "head"
        if "wte" in name or "wpe" in name or "embed_tokens" in name:
            group = "embedding"
        elif "ln_f" in name or name == "model.norm.weight":
            group = "final_norm"
        elif part[1] in {"h", "layers"}:
            half = "mlp" if "mlp" in name or "ln_2" in name or "post_attention" in name else ""
            group = f"layer.{part[2]}.{half or 'attention'}"
        found.setdefault(group, []).append(name)
    return found


def distinct(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors by name; of tied ones only the first."""
    state = model.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    for name in sorted(state):
        seen.setdefault(id(state[name]), name)
    return [(name, state[name].detach()) for name in sorted(seen.values())]


def digest_weights(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in distinct(model):
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode() + octets(tensor))
    return digest.hexdigest()


def octets(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def gpt2(directory: Path) -> GPT2LMHeadModel:
    """Load a saved model without whence."""
    return GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
