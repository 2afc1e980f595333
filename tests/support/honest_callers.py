"""Callers that generate without a pause while a test breaks things.

They resume nothing: a stream that ends early counts as broken. Every generation with the same seed
has to have the same tokens, and every token that a caller saw has to be on record.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from awaiting import await_that
from rpc_errors import failure_of

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

NUM_SEEDS = 4
CALL_S = 120.0
_PAUSE_S = 0.05
"""Time before a caller that was refused asks again."""

Headers = tuple[tuple[str, str], ...]
"""Metadata of a call."""
MakeChannel = Callable[[], grpc.Channel]


@dataclass
class Told:
    """Generation as one caller was told of it.

    Attributes:
        seed: seed of its draws.
        generation_id: its id.
        token_ids: tokens that came.
        last_offset: offset of the last event that came.
        error: status and reason with which the stream broke; "" if it came to its end.
    """

    seed: int
    generation_id: str = ""
    token_ids: list[int] = field(default_factory=list)
    last_offset: int = 0
    error: str = ""


class HonestCallers:
    """Threads of which each generates again and again over one channel.

    Args:
        channels: makes the channel of each caller.
        num_tokens: number of tokens of a generation.
        headers: makes the metadata of each call.

    Attributes:
        told: generations that have ended.
        refused: reasons of the requests that were refused before a generation began.
    """

    def __init__(
        self,
        *channels: MakeChannel,
        num_tokens: int,
        headers: Callable[[], Headers] = tuple,
    ) -> None:
        self.told: list[Told] = []
        self.refused: list[str] = []
        self._num_tokens = num_tokens
        self._headers = headers
        self._running: list[Told | None] = [None] * len(channels)
        self._num_ended = [0] * len(channels)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._call_on, args=(number, channel), daemon=True)
            for number, channel in enumerate(channels)
        ]

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Have them call within the block; at its end the running generations come to theirs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join(CALL_S)
                assert not thread.is_alive(), "a call has not ended by its deadline"

    def await_streams(self) -> None:
        """Wait until every caller is in the middle of a stream."""
        for number in range(len(self._running)):
            await_that(lambda n=number: self._is_reading(n), "a caller's stream begins")  # type: ignore[misc]

    def await_progress(self) -> None:
        """Wait until every caller has come to the end of a generation that begins from now on."""
        enough = [number + 2 for number in self._num_ended]
        for number, least in enumerate(enough):
            await_that(
                lambda n=number, least=least: self._num_ended[n] >= least,  # type: ignore[misc]
                "a caller's stream goes on",
            )

    def list_running(self) -> list[Told]:
        """Return what the callers were told of the generations that they read now."""
        return [told for told in self._running if told is not None]

    def list_faults(self) -> list[str]:
        """Return the streams that broke, and those with other tokens than their seed's."""
        expected: dict[int, list[int]] = {}
        faults = []
        for told in self.told:
            same = expected.setdefault(told.seed, told.token_ids)
            if told.error:
                faults.append(f"{told.generation_id} ended with {told.error}")
            elif told.token_ids != same or len(same) != self._num_tokens:
                faults.append(f"{told.generation_id} has not the tokens of its seed {told.seed}")
        return faults

    def _is_reading(self, number: int) -> bool:
        told = self._running[number]
        return told is not None and len(told.token_ids) > 0

    def _call_on(self, number: int, make_channel: MakeChannel) -> None:
        seed = number
        with make_channel() as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not self._stopping.is_set():
                told = self._running[number] = Told(seed % NUM_SEEDS)
                self._read(stub, told)
                self._running[number] = None
                if told.generation_id:
                    self.told.append(told)
                    self._num_ended[number] += 1
                    seed += 1
                else:
                    self.refused.append(told.error)
                    self._stopping.wait(_PAUSE_S)

    def _read(self, stub: generation_pb2_grpc.GenerationServiceStub, told: Told) -> None:
        decoding = g.Decoding(
            sample=g.Sample(seed=told.seed), max_new_tokens=self._num_tokens, ignore_eos=True
        )
        request = g.GenerateRequest(prompt="The quick brown fox", decoding=decoding)
        try:
            for response in stub.Generate(request, timeout=CALL_S, metadata=self._headers()):
                event = response.event
                if event.HasField("started"):
                    told.generation_id = event.started.generation_id
                told.token_ids.extend(step.token_id for step in event.steps.steps)
                told.last_offset = max(told.last_offset, event.last_offset)
        except grpc.RpcError as error:
            told.error = describe_error(error)


def describe_error(error: grpc.RpcError) -> str:
    """Return status, reason and details of a call's error."""
    return f"{error.code().name} {failure_of(error).reason} {error.details()}"


def list_lost(channel: grpc.Channel, told: list[Told], headers: Headers = ()) -> list[str]:
    """Return the generations whose record has not exactly the tokens that their callers saw."""
    lost = []
    for each in told:
        recorded = read_recorded(channel, each.generation_id, headers)
        if recorded != each.token_ids:
            lost.append(
                f"{each.generation_id}: {len(each.token_ids)} tokens seen, {len(recorded)} on "
                f"record"
            )
    return lost


def read_recorded(channel: grpc.Channel, generation_id: str, headers: Headers = ()) -> list[int]:
    """Return the token ids on record of a generation."""
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    token_ids: list[int] = []
    page_token = ""
    while True:
        request = trace_pb2.ListStepsRequest(generation_id=generation_id, page_token=page_token)
        page = stub.ListSteps(request, timeout=CALL_S, metadata=headers)
        token_ids.extend(step.token_id for step in page.steps)
        page_token = page.next_page_token
        if not page_token:
            return token_ids
