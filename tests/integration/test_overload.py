"""More requests, calls and unread steps than a server takes at once."""

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from long_generations import (
    endless,
    first_step,
    generate,
    wait_finished,
)
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import (
    trace_pb2,
    trace_pb2_grpc,
)


def test_a_full_queue_refuses_before_any_work(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    flags = ("--max-queue", "2", "--max-batch-size", "1")
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags) as server:
        with grpc.insecure_channel(server.target) as channel:
            calls = [generate(channel, endless())]
            first_step(calls[0])
            calls += [generate(channel, endless()) for _ in range(2)]
            for call in calls[1:]:
                assert next(call).event.HasField("started")
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(channel, endless()))
            failure = failure_of(caught.value)
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert failure.reason == "QUEUE_FULL"
            for call in calls:
                call.cancel()


def test_a_call_beyond_a_connections_streams_waits_for_one_to_end(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    def generation_ids(channel: grpc.Channel) -> set[str]:
        request = trace_pb2.ListGenerationsRequest()
        listed = trace_pb2_grpc.TraceServiceStub(channel).ListGenerations(request)
        return {generation.generation_id for generation in listed.generations}

    ids = [str(uuid.UUID(int=number)) for number in range(3)]
    with ServerProcess(
        tiny_model("gpt2-long"), tmp_path, "--max-concurrent-streams", "1"
    ) as server:
        with grpc.insecure_channel(server.target) as channel:
            first = generate(channel, endless(generation_id=ids[0]))
            first_step(first)
            second = generate(channel, endless(generation_id=ids[1]))
            with grpc.insecure_channel(
                server.target, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as other:
                # It is called last, and its connection has room: by its first step, the second
                # would have begun if it could.
                third = generate(other, endless(generation_id=ids[2]))
                first_step(third)
                third.cancel()
                first_step(first)
                assert generation_ids(other) == {ids[0], ids[2]}
            first.cancel()
            assert first_step(second) == ids[1]


def test_a_stalled_reader_neither_fills_memory_nor_delays_the_others(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its backlog is on disk, not in memory, and the others stream on."""
    flags = ("--max-batch-size", "128", "--max-cache-tokens", "1000000")
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags) as server:
        front = psutil.Process(server.pid)
        request = endless()
        request.decoding.max_new_tokens = 700
        request.decoding.num_return_sequences = 32
        request.trace.num_candidates = 128
        stalled_channel = grpc.insecure_channel(
            server.target, options=[("grpc.http2.bdp_probe", 0)]
        )
        stalled = generate(stalled_channel, request)
        generation_id = first_step(stalled)
        others = g.GenerateRequest(
            prompt="x",
            decoding=g.Decoding(sample=g.Sample(seed=2), max_new_tokens=60, ignore_eos=True),
        )
        finished: list[int] = []

        def read() -> None:
            with grpc.insecure_channel(server.target) as channel:
                *_, last = generate(channel, others)
                finished.append(last.event.finished.num_generated_tokens)

        readers = [threading.Thread(target=read) for _ in range(99)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert finished == [60] * 99
        before = front.memory_info().rss
        # The stalled one's generation goes on meanwhile, and ends; nobody reads it.
        with grpc.insecure_channel(server.target) as channel:
            wait_finished(channel, generation_id)
        grown = front.memory_info().rss - before
        backlog = sum(path.stat().st_size for path in tmp_path.glob("journal.db*"))
        assert backlog > 24 << 20, f"{backlog / 2**20:.0f} MiB: too little to show anything"
        assert grown < 16 << 20, f"{grown / 2**20:.0f} MiB"
        *_, last = stalled
        assert last.event.finished.num_generated_tokens == 32 * 700
        stalled_channel.close()
