"""TransparencyLogService: proves what is in the transparency log."""

from typing import Any

from whence.proof.merkle import MAX_TREE_SIZE
from whence.proof.merkle_tree import HASH_BYTES
from whence.v1 import transparency_log_pb2 as messages
from whence_server.domain.errors import (
    FieldViolation,
    InvalidRequestError,
    NoTransparencyLogError,
)
from whence_server.proof.log.log import TransparencyLog
from whence_server.rpc.calls import Call, Method

SERVICE = "whence.v1.TransparencyLogService"


class TransparencyLogServicer:
    """Servicer of proofs.

    Args:
        log: the transparency log; None for a server that keeps none.
    """

    def __init__(self, log: TransparencyLog | None) -> None:
        self._log = log

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("GetCheckpoint", messages.GetCheckpointRequest, unary=self.get_checkpoint),
            Method("ProveInclusion", messages.ProveInclusionRequest, unary=self.prove_inclusion),
            Method(
                "ProveConsistency", messages.ProveConsistencyRequest, unary=self.prove_consistency
            ),
        ]

    async def get_checkpoint(self, request: messages.GetCheckpointRequest, call: Call) -> bytes:
        """Return the newest published checkpoint."""
        del request, call
        log = self._require_log()
        return messages.GetCheckpointResponse(
            checkpoint=await log.read_checkpoint(), verifier_key=log.verifier_key
        ).SerializeToString()

    async def prove_inclusion(self, request: messages.ProveInclusionRequest, call: Call) -> bytes:
        """Prove that a statement is in the log."""
        del call
        log = self._require_log()
        if len(request.statement_digest) != HASH_BYTES:
            why = f"must have {HASH_BYTES} bytes: the SHA-256 of the statement's envelope"
            raise InvalidRequestError(FieldViolation("statement_digest", why))
        proof = await log.prove_inclusion(request.statement_digest)
        return messages.ProveInclusionResponse(
            leaf_index=proof.leaf_index,
            tree_size=proof.size,
            path=proof.path,
            checkpoint=proof.checkpoint,
        ).SerializeToString()

    async def prove_consistency(
        self, request: messages.ProveConsistencyRequest, call: Call
    ) -> bytes:
        """Prove that the log only grew."""
        del call
        log = self._require_log()
        # Larger numbers are no integers of a database.
        proof = await log.prove_consistency(min(request.old_size, MAX_TREE_SIZE))
        return messages.ProveConsistencyResponse(
            tree_size=proof.size, path=proof.path, checkpoint=proof.checkpoint
        ).SerializeToString()

    def _require_log(self) -> TransparencyLog:
        if self._log is None:
            raise NoTransparencyLogError
        return self._log
