"""Calls of `generate` that are recorded, and their records."""

import uuid
from typing import Any

import grpc
import torch
from record_server import RecordServer

from whence import Client
from whence.v1.generation_pb2 import BeamRound, ResumeGenerationRequest
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.trace_pb2 import GetGenerationResponse
from whence_hooks.transformers import record_generate

PROMPTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [1, 1, 1, 40, 41]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]),
}
"""Two prompts; the second is padded on the left."""
LENGTHS = (5, 2)
EOS = 384
"""A token that the tiny model chooses early, so that rows end at different lengths."""
COMMON = {"max_new_tokens": 7, "pad_token_id": 0, "eos_token_id": EOS}


def read_all(server: RecordServer, label: str) -> list[GetGenerationResponse]:
    """Return the generations with a label, in the order of their prompts."""
    with Client(server.target) as client:
        found = [
            client.generations.get(row.generation_id)
            for row in client.generations.list(labels={"test": label})
        ]
    return sorted(
        found, key=lambda g: (g.started.start_time.ToNanoseconds(), g.started.recorded.prompt_index)
    )


def read_steps(server: RecordServer, generation_id: str) -> dict[tuple[int, int], Any]:
    with Client(server.target) as client:
        steps = [token.step for token in client.generations.steps(generation_id)]
    return {(step.sequence_index, step.index): step for step in steps}


def read_rounds(server: RecordServer, generation_id: str) -> list[BeamRound]:
    with grpc.insecure_channel(server.target) as channel:
        replay = GenerationServiceStub(channel).ResumeGeneration(
            ResumeGenerationRequest(generation_id=generation_id)
        )
        return [r.event.beam_round for r in replay if r.event.HasField("beam_round")]


def record_one(
    server: RecordServer, model: Any, tokenizer: Any, **arguments: Any
) -> tuple[Any, list[GetGenerationResponse]]:
    label = str(uuid.uuid4())
    with record_generate(model, tokenizer, server.target, labels={"test": label}) as recording:
        result = model.generate(**PROMPTS | COMMON | arguments)
        assert recording.flush(30)
    return result, read_all(server, label)
