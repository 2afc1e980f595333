"""ProofService: what a stranger needs to check a generation without trusting the server."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from whence.proof.merkle import MAX_TREE_SIZE
from whence.v1 import proof_pb2
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.identity import Scope
from whence_server.journal.journal import Journal
from whence_server.proof.key_board import KeyBoard
from whence_server.proof.log.log import TransparencyLog
from whence_server.rpc.bundles import Disclosure, spell_bundle
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import require_generation_id
from whence_server.rpc.visibility import require_access, sees_content

SERVICE = "whence.v1.ProofService"
_CHUNK_BYTES = 1 << 20


class ProofServicer:
    """Servicer for keys and bundles.

    Args:
        journal: the journal.
        keys: the signing keys; None if the server does not sign.
        log: the transparency log, whose proofs are in bundles; None without one.
    """

    def __init__(
        self, journal: Journal, keys: KeyBoard | None, log: TransparencyLog | None = None
    ) -> None:
        self._log = log
        self._journal = journal
        self._keys = keys

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("GetKeys", proof_pb2.GetKeysRequest, unary=self.get_keys),
            Method("ExportBundle", proof_pb2.ExportBundleRequest, stream=self.export_bundle),
        ]

    async def get_keys(self, request: proof_pb2.GetKeysRequest, call: Call) -> bytes:
        """Return the signing keys, this server's last; none if it does not sign."""
        del request, call
        keys = [] if self._keys is None else await self._keys.list_keys()
        return proof_pb2.GetKeysResponse(keys=keys).SerializeToString()

    async def export_bundle(
        self, request: proof_pb2.ExportBundleRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream a generation's bundle."""
        call.generation_id = require_generation_id(request.generation_id)
        await require_access(self._journal, call.generation_id, call.identity, Scope.READ_ALL)
        disclosure = read_disclosure(request)
        if not sees_content(call.identity):
            disclosure = Disclosure(prompt=False, text=False)
        keys = [] if self._keys is None else await self._keys.list_entries()
        # Larger numbers are no integers of a database.
        known = min(request.known_log_size, MAX_TREE_SIZE)
        pieces = spell_bundle(
            self._journal, call.generation_id, keys, disclosure, self._log, known_log_size=known
        )
        async with aclosing(pieces):
            async for piece in pieces:
                data = piece.encode()
                for begin in range(0, len(data), _CHUNK_BYTES):
                    yield proof_pb2.ExportBundleResponse(
                        data=data[begin : begin + _CHUNK_BYTES]
                    ).SerializeToString()


def read_disclosure(request: proof_pb2.ExportBundleRequest) -> Disclosure:
    """Return which entries a request wants to show.

    Raises:
        InvalidRequestError: the steps' range is turned around, or goes with hidden text.
    """
    if not request.HasField("steps"):
        return Disclosure(not request.hide_prompt, not request.hide_text)
    begin, end = request.steps.begin, request.steps.end
    if end < begin:
        raise InvalidRequestError(
            FieldViolation("steps.end", f"is {end}, below the begin {begin}; expected at least it")
        )
    if request.hide_text:
        raise InvalidRequestError(
            FieldViolation("steps", "does not go with `hide_text`, which hides every step")
        )
    return Disclosure(not request.hide_prompt, text=True, steps=range(begin, end))
