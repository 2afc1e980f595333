"""Messages of a generation's own entries, by the entry's kind."""

from google.protobuf.message import Message

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind

MESSAGES: dict[EntryKind, type[Message]] = {
    EntryKind.STARTED: generation_pb2.GenerationStarted,
    EntryKind.PROMPT_STEP: step_pb2.Step,
    EntryKind.STEP: step_pb2.Step,
    EntryKind.BEAM_ROUND: generation_pb2.BeamRound,
    EntryKind.FINISHED: generation_pb2.GenerationFinished,
}
