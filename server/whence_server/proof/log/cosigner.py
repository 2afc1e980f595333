"""Cosigner: has one checkpoint after the other cosigned by witnesses, and publishes it then."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiohttp

from whence.proof.notes import Signature, SignedNote, VerifierKey
from whence_server.proof.log import tables
from whence_server.proof.log.sequencer import TreeAccess
from whence_server.proof.log.tables import StoredCheckpoint
from whence_server.proof.log.witnesses import (
    OvertakenError,
    Witness,
    WitnessClient,
    WitnessError,
)

_log = logging.getLogger(__name__)

_PATIENCE_S = 1.0


class _Hand:
    """The checkpoint in hand, with the cosignatures that it has by now."""

    def __init__(self, stored: StoredCheckpoint, witnesses: Sequence[Witness]) -> None:
        found = SignedNote.parse(stored.published or stored.note)
        self.size = stored.size
        self.note = SignedNote(found.text, found.signatures[:1])
        self.is_published = stored.published is not None
        self._signatures = found.signatures
        self._signers = {
            witness.key
            for witness in witnesses
            if any(map(witness.key.is_signer_of, found.signatures))
        }

    @property
    def num_signers(self) -> int:
        """Number of witnesses that have cosigned; one with two names counts once."""
        return len({key.public for key in self._signers})

    def lacks(self, key: VerifierKey) -> bool:
        """Return whether a witness has not cosigned yet."""
        return key not in self._signers

    def add(self, key: VerifierKey, signature: Signature) -> None:
        """Take a verified cosignature."""
        self._signers.add(key)
        self._signatures = (*self._signatures, signature)

    def format(self) -> bytes:
        """Return the checkpoint with its cosignatures."""
        return SignedNote(self.note.text, self._signatures).format()


class Cosigner:
    """Has a checkpoint cosigned until it is published, then the newest one.

    A newer checkpoint does not take the place of the one in hand: otherwise nothing would be
    published while the log grows faster than a witness answers. A slow witness does not hold up the
    others.

    Args:
        tree: the log's tables.
        witnesses: witnesses that are asked.
        quorum: number of them that must have cosigned a checkpoint before it is published.
        failures: takes the number of times that a witness did not cosign, by its name.
        wake: called after each answer.
    """

    def __init__(
        self,
        tree: TreeAccess,
        witnesses: Sequence[Witness],
        quorum: int,
        failures: dict[str, int],
        wake: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._witnesses = witnesses
        self._quorum = quorum
        self._failures = failures
        self._wake = wake
        self._session: aiohttp.ClientSession | None = None
        self._clients: list[WitnessClient] = []
        self._asking: dict[WitnessClient, asyncio.Task[None]] = {}
        self._hand: _Hand | None = None
        self._told: set[str] = set()

    def start(self) -> None:
        """Start in the running event loop."""
        if self._witnesses:
            self._session = aiohttp.ClientSession()
            self._clients = [WitnessClient(it, self._session) for it in self._witnesses]

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def cosign(self, newest: StoredCheckpoint) -> bool:
        """Go on with the checkpoint in hand, or begin with the newest one.

        Returns:
            False if it has to be tried again later.
        """
        hand = self._hand
        if hand is None or (self._is_done(hand) and newest.size != hand.size):
            hand = self._hand = _Hand(newest, self._witnesses)
        if hand.num_signers >= self._quorum and not hand.is_published:
            await self._publish(hand)
        self._ask_missing(hand)
        while self._asking and self._hand is hand and not self._is_done(hand):
            await asyncio.wait(
                list(self._asking.values()),
                timeout=_PATIENCE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            self._ask_missing(hand)
        if self._hand is not hand or not self._is_done(hand):
            return False
        if newest.size > hand.size:
            self._wake()
        return not any(hand.lacks(client.witness.key) for client in self._clients)

    def _is_done(self, hand: _Hand) -> bool:
        return hand.is_published and hand.num_signers >= self._quorum

    def _ask_missing(self, hand: _Hand) -> None:
        """Ask the witnesses that have not cosigned, are not being asked, and did not just fail."""
        for client in self._clients:
            if hand.lacks(client.witness.key) and not client.waits and client not in self._asking:
                self._asking[client] = asyncio.create_task(
                    self._ask(client, hand), name=f"witness {client.witness.key.name}"
                )

    async def _ask(self, client: WitnessClient, hand: _Hand) -> None:
        """Take a witness's cosignature, and publish the checkpoint once it has enough."""
        try:
            prove = partial(self._prove, hand.size)
            signature = await client.cosign(hand.note, hand.size, prove, self._read_size)
            self._tell_return(client.witness.key.name)
            hand.add(client.witness.key, signature)
            if hand.num_signers >= self._quorum:
                await self._publish(hand)
        except OvertakenError:
            # Another server of this log has had a newer checkpoint cosigned: go on with the newest.
            if self._hand is hand:
                self._hand = None
        except WitnessError as error:
            self._tell_failure(client.witness.key.name, error)
        except Exception as error:  # noqa: BLE001 - it is reported, and publishing goes on
            client.back_off()
            _log.error("the transparency log cannot be published: %s", error)
        finally:
            del self._asking[client]
            self._wake()

    async def _prove(self, size: int, old_size: int) -> list[bytes]:
        def read(connection: Any) -> list[bytes]:
            return tables.make_reader(connection, size).prove_consistency(old_size)

        return await self._tree.read(read)

    async def _read_size(self) -> int:
        state = await self._tree.read(tables.read_state)
        return 0 if state is None else state.size

    async def _publish(self, hand: _Hand) -> None:
        content = hand.format()
        await self._tree.change(lambda it: tables.publish_checkpoint(it, hand.size, content))
        hand.is_published = True

    def _tell_failure(self, name: str, error: WitnessError) -> None:
        """Count a failure, and log the first one and every contradiction."""
        self._failures[name] += 1
        level = logging.CRITICAL if error.is_contradiction else logging.WARNING
        if name not in self._told or error.is_contradiction:
            _log.log(level, "witness %s has not cosigned: %s", name, error)
        self._told.add(name)

    def _tell_return(self, name: str) -> None:
        if name in self._told:
            self._told.discard(name)
            _log.info("witness %s cosigns again", name)
