"""Proofs of the server's transparency log: `client.transparency_log`."""

from whence.calls import Calls
from whence.v1 import transparency_log_pb2 as pb


class TransparencyLog:
    """The server's log of all signed statements. `whence.proof` checks what it answers."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def checkpoint(self) -> pb.GetCheckpointResponse:
        """Return the newest published checkpoint, and the log's public key.

        Raises:
            UnavailableError: nothing is published yet.
            UnimplementedError: the server keeps no log.
        """
        request = pb.GetCheckpointRequest()
        return self._calls.call_unary(self._calls.transparency_log.GetCheckpoint, request)

    def inclusion(self, statement_digest: bytes) -> pb.ProveInclusionResponse:
        """Return the proof that a statement is in the log of the newest published checkpoint.

        Args:
            statement_digest: SHA-256 of the statement's envelope, 32 bytes.

        Raises:
            NotFoundError: it is not in the log.
            UnavailableError: no published checkpoint covers it yet.
            UnimplementedError: the server keeps no log.
        """
        request = pb.ProveInclusionRequest(statement_digest=statement_digest)
        return self._calls.call_unary(self._calls.transparency_log.ProveInclusion, request)

    def consistency(self, old_size: int) -> pb.ProveConsistencyResponse:
        """Return the proof that the newest published log continues an earlier one.

        Args:
            old_size: number of entries of the earlier log.

        Raises:
            InvalidRequestError: the published log has fewer entries.
            UnavailableError: nothing is published yet.
            UnimplementedError: the server keeps no log.
        """
        request = pb.ProveConsistencyRequest(old_size=old_size)
        return self._calls.call_unary(self._calls.transparency_log.ProveConsistency, request)
