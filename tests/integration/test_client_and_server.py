"""The client against a real server, over connections that break."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server_process import ServerProcess
from whence_command import Done, run_whence, run_whence_well

from whence import (
    AsyncClient,
    Client,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
)


class CuttingProxy:
    """A TCP proxy that cuts every connection after so many bytes from the server."""

    def __init__(self, upstream: str, cut_after_bytes: int) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._cut_after_bytes = cut_after_bytes
        self.num_cuts = 0
        self.target = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["CuttingProxy"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)

        async def forward() -> None:
            while data := await reader.read(65_536):
                up_writer.write(data)
                await up_writer.drain()

        forwarding = asyncio.create_task(forward())
        left = self._cut_after_bytes
        try:
            while left > 0 and (data := await up_reader.read(4_096)):
                left -= len(data)
                writer.write(data)
                await writer.drain()
            self.num_cuts += left <= 0
        except ConnectionError:
            pass
        finally:
            forwarding.cancel()
            await asyncio.gather(forwarding, return_exceptions=True)
            for end in (writer, up_writer):
                end.transport.abort()


@pytest.fixture(scope="module")
def tcp_server(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("tcp")
    with ServerProcess(tiny_model("gpt2-long"), directory, "--listen", "127.0.0.1:0") as process:
        yield process


async def test_a_stream_over_a_connection_that_keeps_breaking(tcp_server: ServerProcess) -> None:
    options = {"max_new_tokens": 1_500, "temperature": 0.9, "seed": 11, "ignore_eos": True}
    async with AsyncClient(tcp_server.target) as client:
        whole = await client.generate("The quick brown fox", **options).result()
    async with CuttingProxy(tcp_server.target, 60_000).listening() as proxy:
        async with AsyncClient(proxy.target, resume_timeout_s=30) as client:
            async with client.generate("The quick brown fox", **options) as generation:
                ids = [token.token_id async for token in generation]
    assert proxy.num_cuts > 3
    assert ids == list(whole.sequences[0].token_ids)
    assert generation.text == whole.text
    assert generation.finish_reason is FinishReason.LENGTH


def test_tokens_tell_what_there_is_to_tell(server: ServerProcess) -> None:
    with Client(server.target) as client:
        with client.generate(
            "The quick",
            max_new_tokens=12,
            temperature=0.7,
            top_k=5,
            n=2,
            ignore_eos=True,
            labels={"job": "x"},
        ) as generation:
            tokens = list(generation)
        assert len(tokens) == 24
        for token in tokens:
            assert token.probability == pytest.approx(math.exp(token.logprob))
            assert [p.name for p in token.processors] == ["temperature", "top_k"]
            assert len(token.candidates) == 8
            assert all(isinstance(c.text, str) for c in token.candidates)
        assert {s.finish_reason for s in generation.sequences} == {FinishReason.LENGTH}

        listed = list(client.generations.list(labels={"job": "x"}))
        assert [g.generation_id for g in listed] == [generation.id]
        recorded = [step.token_id for step in client.generations.steps(generation.id)]
        assert recorded == [token.token_id for token in tokens]
        client.generations.delete(generation.id)
        with pytest.raises(NotFoundError) as caught:
            client.generations.get(generation.id)
        assert caught.value.reason == "GENERATION_DELETED"
        assert not list(client.generations.list(labels={"job": "x"}))
        with pytest.raises(InvalidRequestError) as invalid:
            client.generate("x", top_p=7.0).result()
        assert invalid.value.violations[0].field == "decoding.sample.top_p"


def test_closing_a_stream_cancels_the_generation(tcp_server: ServerProcess) -> None:
    with Client(tcp_server.target) as client:
        with client.generate("x", max_new_tokens=8_000, ignore_eos=True, temperature=1.0) as run:
            next(iter(run))
        finished = client.generations.get(run.id).finished
    assert finished.num_generated_tokens < 8_000


def test_a_list_yields_all_pages_newest_first(server: ServerProcess) -> None:
    with Client(server.target) as client:
        made = [
            client.generate("x", max_new_tokens=2, labels={"page": "yes"}).result().id
            for _ in range(5)
        ]
        pages = list(client.generations.list(page_size=2, labels={"page": "yes"}))
        assert [g.generation_id for g in pages] == made[::-1]


def whence(server: ServerProcess, *arguments: str) -> Done:
    return run_whence(*arguments, "--target", server.target)


def test_the_command_generates_lists_shows_and_deletes(server: ServerProcess) -> None:
    result = whence(server, "generate", "The quick", "--max-new-tokens", "6", "--json", "--greedy")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) >= 8
    again = whence(server, "generate", "The quick", "--max-new-tokens", "6", "--greedy")
    assert again.returncode == 0
    generation_id = again.stderr.split("generation ")[1].split(",")[0]
    assert generation_id in whence(server, "generations", "list").stdout
    shown = whence(server, "generations", "show", generation_id, "--steps")
    assert shown.returncode == 0
    assert whence(server, "generations", "delete", generation_id, "--yes").returncode == 0
    assert whence(server, "generations", "show", generation_id).returncode == 2
    assert whence(server, "generate", "").returncode == 2
    assert "GPT2LMHeadModel" in whence(server, "model").stdout


def test_a_page_shows_internals_or_says_why_there_are_none(server, tmp_path):
    path = tmp_path / "page.html"
    wanted = ["--internals", "--max-new-tokens", "4", "--ignore-eos", "--html", str(path)]
    run_whence_well("generate", "The for", "--target", server.target, *wanted)
    content = path.read_text(encoding="utf-8")
    _, found = content.split('<script type="application/json" id="record">')
    record = json.loads(found.split("</script>")[0])
    (sequence,) = record["sequences"]
    length = len(record["prompt"]["token_ids"])
    assert len(sequence["steps"]) == 4
    for step in sequence["steps"]:
        assert all(
            str(token_id) in record["vocabulary"] for token_id in step["candidates"]["token_ids"]
        )
        if not record["generation"]["unavailable"]:
            newest = length + step["index"] - 1
            assert all(position < newest for position in step["sources"]["positions"])
            shares = step["sources"]["shares"] + [step["sources"]["self_share"]]
            assert 0 < sum(shares) <= 1 + 1e-4
            assert step["layers"]["leaders"][-1] in {
                *step["candidates"]["token_ids"],
                step["token_id"],
            }
