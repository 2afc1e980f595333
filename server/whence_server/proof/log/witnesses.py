"""Client of witnesses (C2SP tlog-witness): they cosign checkpoints that only grow."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import NamedTuple

import aiohttp

from whence.proof.checkpoints import parse_size
from whence.proof.notes import (
    MAX_NOTE_BYTES,
    NoteError,
    Signature,
    SignedNote,
    VerifierKey,
    parse_signatures,
)

_TIMEOUT_S = 10.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_MAX_TRIES = 3


class Witness(NamedTuple):
    """A witness that is asked for cosignatures."""

    url: str
    """URL before "/add-checkpoint"."""
    key: VerifierKey


class WitnessError(Exception):
    """A witness did not cosign; the message says why.

    Attributes:
        is_contradiction: True if the witness knows a state of the log that this one is not a
            continuation of.
    """

    def __init__(self, message: str, *, is_contradiction: bool = False) -> None:
        super().__init__(message)
        self.is_contradiction = is_contradiction


class OvertakenError(WitnessError):
    """A witness has cosigned a newer checkpoint of the log, which is as long by now."""


ReadSize = Callable[[], Awaitable[int]]
"""Returns the present number of the log's entries."""
ProveConsistency = Callable[[int], Awaitable[list[bytes]]]
"""Returns the proof from an old size of the log to the checkpoint's."""


class WitnessClient:
    """Asks one witness, and remembers up to where it has cosigned.

    Args:
        witness: the witness.
        session: connections.

    Attributes:
        witness: the witness.
    """

    def __init__(self, witness: Witness, session: aiohttp.ClientSession) -> None:
        self.witness = witness
        self._session = session
        self._old_size = 0
        self._retry_s = _FIRST_RETRY_S
        self._next_s = 0.0

    @property
    def waits(self) -> bool:
        """True for some time after a failure, which grows with each further one."""
        return time.monotonic() < self._next_s

    def back_off(self) -> None:
        """Ask no more for some time, which grows with each failure."""
        self._next_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def cosign(
        self, note: SignedNote, size: int, prove: ProveConsistency, read_size: ReadSize
    ) -> Signature:
        """Return the witness's cosignature of a checkpoint.

        Args:
            note: the checkpoint, signed by the log.
            size: size of the log in it.
            prove: proves consistency with an old size.
            read_size: reads the present size of the log.

        Raises:
            OvertakenError: it has cosigned a newer checkpoint of this log.
            WitnessError: it is away, refuses, or its answer is wrong.
        """
        try:
            cosignature = await self._cosign(note, size, prove, read_size)
        except OvertakenError:
            raise
        except WitnessError:
            self.back_off()
            raise
        self._retry_s, self._old_size = _FIRST_RETRY_S, size
        return cosignature

    async def _cosign(
        self, note: SignedNote, size: int, prove: ProveConsistency, read_size: ReadSize
    ) -> Signature:
        for _ in range(_MAX_TRIES):
            body = format_request(self._old_size, await prove(self._old_size), note)
            status, answer = await self._post(body)
            if status == HTTPStatus.OK:
                return self._check(note, answer)
            if status != HTTPStatus.CONFLICT:
                raise self._make_refusal(status, answer)
            known = self._read_size(answer)
            if known > size:
                raise self._explain_larger(known, await read_size())
            sent, self._old_size = self._old_size, known
            if self._old_size == sent:
                raise WitnessError(
                    f"it has cosigned another state of this log with {sent} entries: entries were "
                    "changed",
                    is_contradiction=True,
                )
        raise WitnessError("it says again and again that it knows another size of the log")

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._session.post(
                    f"{self.witness.url.rstrip('/')}/add-checkpoint",
                    data=body,
                    allow_redirects=False,
                ) as response,
            ):
                answer = await response.content.read(MAX_NOTE_BYTES + 1)
                while len(answer) <= MAX_NOTE_BYTES and (
                    more := await response.content.read(MAX_NOTE_BYTES + 1 - len(answer))
                ):
                    answer += more
                if len(answer) > MAX_NOTE_BYTES:
                    raise WitnessError(f"its answer has more than {MAX_NOTE_BYTES} bytes")
                return response.status, answer
        except TimeoutError:
            raise WitnessError(f"it has not answered within {_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WitnessError(f"it cannot be reached: {error}") from None

    def _check(self, note: SignedNote, answer: bytes) -> Signature:
        """Return the cosignature in an answer, verified.

        Raises:
            WitnessError: there is none, or it is wrong.
        """
        key = self.witness.key
        try:
            answered = SignedNote(note.text, parse_signatures(answer.decode()))
            answered.find_signers([key])
        except (NoteError, UnicodeDecodeError) as error:
            raise WitnessError(f"its answer is refused: {error}") from None
        for signature in answered.signatures:
            if key.is_signer_of(signature):
                return signature
        raise WitnessError(f"its answer is refused: it has no signature of the key {key}")

    def _read_size(self, answer: bytes) -> int:
        try:
            return parse_size(answer.decode(errors="replace").removesuffix("\n"))
        except NoteError as error:
            raise WitnessError(f"its answer is refused: {error}") from None

    def _explain_larger(self, known: int, present: int) -> WitnessError:
        """Return the error of a witness that knows a larger log than the checkpoint is of."""
        if known <= present:
            return OvertakenError(f"it has cosigned a newer checkpoint, with {known} entries")
        return WitnessError(
            f"it has cosigned this log with {known} entries, and the log now has {present}: "
            "entries were cut off, as by an old backup or by somebody with access to the store",
            is_contradiction=True,
        )

    def _make_refusal(self, status: int, answer: bytes) -> WitnessError:
        said = answer[:200].decode(errors="replace").strip()
        contradicts = status == HTTPStatus.UNPROCESSABLE_ENTITY
        what = (
            "it knows a state of this log that the present one does not continue: entries were "
            "changed or cut off"
            if contradicts
            else "it refused"
        )
        return WitnessError(f"{what} (HTTP {status}: {said!r})", is_contradiction=contradicts)


def format_request(old_size: int, proof: list[bytes], note: SignedNote) -> bytes:
    """Return the body of a request for a cosignature."""
    lines = "".join(f"{base64.b64encode(node).decode()}\n" for node in proof)
    return f"old {old_size}\n{lines}\n".encode() + note.format()
