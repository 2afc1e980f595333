"""Signed generations and their bundles, made without a server."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from whence.proof.bundle_format import spell_head, spell_hidden_leaf, spell_open_leaf, spell_tail
from whence.proof.envelope import STATEMENT_TYPE
from whence.proof.leaves import derive_prompt_key, derive_salt, hash_entry
from whence.v1 import generation_pb2, proof_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.proof.signer import PrivateKey, Signer, seal
from whence_server.proof.signing_keys import make_entry
from whence_server.proof.statements import Statements

GENERATION_ID = "6a0c7c0e-6cf5-4f0c-9b8b-1a8a3c1f0f5e"
Entries = Sequence[tuple[EntryKind, bytes]]


def make_started() -> generation_pb2.GenerationStarted:
    """Return a start with every part that a statement names."""
    started = generation_pb2.GenerationStarted(
        generation_id=GENERATION_ID,
        model="tiny",
        model_digest="ab" * 32,
        tokenizer_digest="cd" * 32,
        prompt="The capital of France is",
        prompt_token_ids=[1, 2, 3, 4, 5],
        num_prompt_tokens=5,
        content=generation_pb2.CONTENT_POLICY_FULL,
        owner="alice",
    )
    started.start_time.FromNanoseconds(1_780_000_000_123_456_789)
    decoding = started.effective_decoding
    decoding.sample.temperature, decoding.sample.seed = 0.8, 2**63 + 1
    decoding.max_new_tokens = 4
    decoding.stop.append("a secret stop string")
    started.environment.torch_version = "2.13.0"
    started.environment.weights_digest = "ef" * 32
    started.chat.template_digest = "12" * 32
    started.training_run.training_run_id = "run-1"
    started.training_run.step = 600
    started.training_run.record_head = "34" * 32
    return started


def make_entries(
    num_steps: int = 4, started: generation_pb2.GenerationStarted | None = None
) -> Entries:
    """Return a generation's entries before its end."""
    steps = [
        step_pb2.Step(sequence_index=0, index=index, token_id=index, text=f" word{index}")
        for index in range(num_steps)
    ]
    return [
        (EntryKind.STARTED, (started or make_started()).SerializeToString()),
        *((EntryKind.STEP, step.SerializeToString()) for step in steps),
    ]


def make_finished(num_steps: int = 4) -> generation_pb2.GenerationFinished:
    """Return the generation's end, without a statement."""
    finished = generation_pb2.GenerationFinished(
        finish_reason=generation_pb2.FINISH_REASON_LENGTH,
        num_prompt_tokens=5,
        num_generated_tokens=num_steps,
    )
    finished.end_time.FromNanoseconds(1_780_000_001_000_000_000)
    finished.sequences.add(finish_reason=generation_pb2.FINISH_REASON_LENGTH, text="a secret text")
    return finished


def sign(
    entries: Entries,
    finished: generation_pb2.GenerationFinished,
    signer: Signer,
    clock: Callable[[], int] = lambda: 1_780_000_001_500_000_000,
) -> proof_pb2.SignedStatement:
    """Return the signed statement about a generation."""
    leaves = Statements(lambda: signer, clock=clock).begin(GENERATION_ID)
    for kind, payload in entries:
        leaves.add(kind, payload)
    payload = finished.SerializeToString()
    return generation_pb2.GenerationFinished.FromString(payload + leaves.sign(payload)).statement


def spell(
    statement: proof_pb2.SignedStatement,
    entries: Entries,
    keys: Sequence[bytes] = (),
    *,
    hidden: Sequence[int] = (),
) -> bytes:
    """Return a bundle, with the leaves at some indexes hidden."""
    leaves = []
    for index, (kind, payload) in enumerate(entries):
        salt = derive_salt(statement.leaf_secret, index)
        leaves.append(
            spell_hidden_leaf(hash_entry(salt, kind, payload))
            if index in hidden
            else spell_open_leaf(kind, salt, payload)
        )
    key = b"" if 0 in hidden else derive_prompt_key(statement.leaf_secret)
    return (spell_head(statement.envelope, keys) + ",".join(leaves) + spell_tail(key)).encode()


def make_bundle(
    signer: PrivateKey, *, num_steps: int = 4, hidden: Sequence[int] = (), keys: bool = True
) -> bytes:
    """Return the bundle of a small generation."""
    entries = make_entries(num_steps)
    statement = sign(entries, make_finished(num_steps), signer)
    listed = [make_entry(signer, now_ns=1_770_000_000_000_000_000)] if keys else []
    return spell(statement, entries, listed, hidden=hidden)


def change_statement(
    data: bytes, edit: Callable[[dict[str, Any]], object], signer: PrivateKey
) -> bytes:
    """Return a bundle whose statement was changed and signed again by its owner."""
    bundle = json.loads(data)
    envelope = json.loads(base64.b64decode(bundle["envelope"]))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    edit(statement)
    sealed = seal(STATEMENT_TYPE, json.dumps(statement).encode(), signer)
    bundle["envelope"] = base64.b64encode(sealed).decode()
    return json.dumps(bundle).encode()
