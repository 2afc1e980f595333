"""A server whose journal is encrypted: used, killed, verified, and never readable on disk."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from awaiting import await_that
from sealed_journals import read_files
from server_process import ServerProcess

from whence import Client, NotFoundError
from whence.v1.transparency_log_pb2 import ProveInclusionRequest
from whence.v1.transparency_log_pb2_grpc import TransparencyLogServiceStub

PROMPT, OUTPUT, LABEL = "zanzibar quokka", "wombat numbat", "kookaburra"
CONTENT = [word.encode() for text in (PROMPT, OUTPUT, LABEL) for word in text.split()]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whence_server", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("WHENCE_")},
    )


def wait_until_logged(client: Client, target: str, generation_id: str) -> None:
    """Wait until the transparency log, which follows behind, has a generation's statement."""
    envelope = client.generations.get(generation_id).finished.statement.envelope
    request = ProveInclusionRequest(statement_digest=hashlib.sha256(envelope).digest())
    with grpc.insecure_channel(target) as channel:
        stub = TransparencyLogServiceStub(channel)

        def is_logged() -> bool:
            try:
                stub.ProveInclusion(request)
            except grpc.RpcError as error:
                if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}:
                    return False
                raise
            return True

        await_that(is_logged, "the transparency log has the statement")


def test_encrypted_journal_serves_every_reader_and_is_unreadable_on_disk(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    data_dir, key_file = tmp_path / "data", tmp_path / "master.key"
    key = ("--journal-key", str(key_file))
    assert run("key", "new", *key).returncode == 0
    with ServerProcess(tiny_model("gpt2"), data_dir, *key) as server:
        with Client(server.target) as client:
            ids = []
            for _ in range(2):
                with client.generate(
                    PROMPT, forced=OUTPUT, labels={LABEL: LABEL}, num_candidates=2
                ) as generation:
                    streamed = [token.text for token in generation]
                ids.append(generation.id)
            assert "".join(streamed) == OUTPUT
            listed = list(client.generations.list(labels={LABEL: LABEL}))
            assert [summary.generation_id for summary in listed] == ids[::-1]
            assert {summary.prompt_preview for summary in listed} == {PROMPT}
            assert client.generations.get(ids[0]).started.prompt == PROMPT
            assert [token.text for token in client.generations.steps(ids[0])] == streamed
            client.generations.delete(ids[1])
            with pytest.raises(NotFoundError):
                client.generations.get(ids[1])
            files = read_files(data_dir)
            assert [word for word in CONTENT if word in files] == []
            wait_until_logged(client, server.target, ids[0])
        server.kill()
        assert [word for word in CONTENT if word in "".join(server.log).encode()] == []
    files = read_files(data_dir)
    assert [word for word in CONTENT if word in files] == []
    without = run("verify", "--data-dir", data_dir)
    assert (without.returncode, without.stderr) == (0, "")
    assert "1 generations are encrypted: their content was not looked into" in without.stdout
    looked = run("verify", "--data-dir", data_dir, *key)
    assert (looked.returncode, looked.stderr) == (0, "")
    assert "note" not in looked.stdout
    refused = run("serve", "--model", tiny_model("gpt2"), "--data-dir", data_dir)
    assert refused.returncode == 2
    assert "has encrypted generations: give their master key with --journal-key" in refused.stderr
