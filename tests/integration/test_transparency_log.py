"""A server with a transparency log and a witness, as a stranger sees them, over a crash."""

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from server_process import ServerProcess
from witnessed import WAIT_S, run_witness, wait_for_checkpoint

from whence import AsyncClient, Client, NotFoundError
from whence.cli.main import main as client_main
from whence.proof.bundle import read_bundle
from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.log_check import LogTrust, check_log, spell_log
from whence.proof.merkle import verify_consistency, verify_inclusion
from whence.proof.merkle_tree import hash_leaf
from whence.proof.notes import NoteSigner, SignedNote, VerifierKey
from whence.proof.strict_json import parse_object
from whence.proof.verification import LogKeys, verify_bundle
from whence.v1 import proof_pb2, transparency_log_pb2
from whence.v1.proof_pb2_grpc import ProofServiceStub
from whence.v1.transparency_log_pb2_grpc import TransparencyLogServiceStub
from whence_server.proof.log.keys import load_key, make_key

ORIGIN = "example.com/whence"


def wait_for_page(server: ServerProcess) -> str:
    """Return the URL of the observability port."""
    deadline = time.monotonic() + WAIT_S
    while not (
        found := re.search(r"metrics are on (http://[^\s\"]+)/metrics", "".join(server.log))
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[1]


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def test_strangers_check_statements_by_log_witness_and_bundle(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir, public = tmp_path / "data", tmp_path / "public"
    key_file = tmp_path / "log-key.pem"
    log_key = NoteSigner(ORIGIN, make_key("", key_file)).key
    with run_witness(tmp_path, log_key) as named:
        witness = VerifierKey.parse(named.partition("=")[2])
        flags = (
            *("--log-key", str(key_file), "--log-origin", ORIGIN, "--log-dir", str(public)),
            *("--witness", named, "--witness-quorum", "1", "--log-checkpoint-interval", "0.1"),
            *("--metrics-listen", "127.0.0.1:0"),
        )
        http = ("--http-listen", "127.0.0.1:0")
        with ServerProcess(tiny_model("gpt2"), data_dir, *flags, *http) as server:
            with Client(server.target) as client:
                for seed in range(3):
                    with client.generate("The quick", seed=seed, max_new_tokens=4) as generation:
                        assert list(generation)
            with grpc.insecure_channel(server.target) as channel:
                note, found = wait_for_checkpoint(channel, 3, log_key, witness)
                assert found.checkpoint.size == 3
                envelope, bundle = check_inclusion(channel, generation.id, log_key, witness)
                refuse_wrong_requests(channel)
            trust = ("--log-key", str(log_key), "--witness", str(witness))
            check_commands(server, generation.id, trust, tmp_path, capsys)
            asyncio.run(check_asynchronous_client(server, note, str(log_key)))
            page = wait_for_page(server)
            for url in (page, server.http_url):
                check_published(url, note, envelope)
            wait_for_file(public / "checkpoint", note)
            metrics = fetch(f"{page}/metrics").decode()
            for line in (
                r"whence_transparency_log_size\S* 3",
                r"whence_transparency_log_delay_seconds\S* 0",
                r'whence_transparency_log_witness_failures_total\{.*"example\.com/w".*\} 0',
            ):
                assert re.search(f"^{line}", metrics, re.MULTILINE), line
            server.kill()
        # The next start goes on with the same log; its witness would refuse another.
        with (
            ServerProcess(None, data_dir, "--record-only", *flags) as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            _, newest = wait_for_checkpoint(channel, 3, log_key, witness)
            stub = TransparencyLogServiceStub(channel)
            for old_size in range(4):
                proof = stub.ProveConsistency(
                    transparency_log_pb2.ProveConsistencyRequest(old_size=old_size)
                )
                assert proof.tree_size == 3
                if old_size == 3:
                    roots = found.checkpoint.root, newest.checkpoint.root
                    assert verify_consistency(3, roots[0], 3, roots[1], proof.path)
    verify = ["verify", "--data-dir", data_dir]
    for name, content in (("checkpoint", note), ("bundle", bundle)):
        (tmp_path / name).write_bytes(content)
        verify += ["--checkpoint", tmp_path / name]
    ran = subprocess.run(
        [sys.executable, "-m", "whence_server", *map(str, verify)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("WHENCE_")},
    )
    assert ran.returncode == 0, ran.stderr


def check_inclusion(
    channel: grpc.Channel, generation_id: str, log_key: VerifierKey, witness: VerifierKey
) -> tuple[bytes, bytes]:
    """Check the proof of a generation by RPC and in its bundle; return envelope and bundle."""
    stub = ProofServiceStub(channel)
    request = proof_pb2.ExportBundleRequest(generation_id=generation_id)
    bundle = b"".join(part.data for part in stub.ExportBundle(request))
    (active,) = (key for key in stub.GetKeys(proof_pb2.GetKeysRequest()).keys if key.active)
    report = verify_bundle(
        bundle, [active.public_key_pem], log=LogKeys(str(log_key), [str(witness)])
    )
    assert report.verified, report.checks
    (check,) = [check for check in report.checks if check.name == "log"]
    assert check.detail == f"entry 2 of 3 in the log {ORIGIN}, cosigned by example.com/w"
    envelope = read_bundle(bundle).envelope
    digest = hashlib.sha256(envelope).digest()
    proof = TransparencyLogServiceStub(channel).ProveInclusion(
        transparency_log_pb2.ProveInclusionRequest(statement_digest=digest)
    )
    root = verify_checkpoint(proof.checkpoint, log_key, [witness], 1).checkpoint.root
    assert verify_inclusion(hash_leaf(digest), proof.leaf_index, proof.tree_size, proof.path, root)
    spelled = spell_log(proof.leaf_index, proof.tree_size, proof.path, proof.checkpoint)
    parsed = parse_object(spelled.encode(), "log", 1 << 20)
    assert check_log(parsed, envelope, LogTrust(log_key, [witness])) == check.detail
    return envelope, bundle


def check_commands(
    server: ServerProcess,
    generation_id: str,
    trust: tuple[str, ...],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Keep the checkpoint and check the log by the commands, as its auditor does."""

    def run(*given: str) -> tuple[int, str]:
        capsys.readouterr()
        return client_main(given), capsys.readouterr().out

    target = ("--target", server.target)
    kept, quorum = folder / "kept", ("--witness-quorum", "1")
    assert run("log", "key", *target) == (0, f"{trust[1]}\n")
    status, note = run("log", "checkpoint", *trust, *quorum, *target)
    assert status == 0
    assert note.startswith(f"{ORIGIN}\n3\n")
    kept.write_text(note)
    place = f"in the log {ORIGIN}, cosigned by example.com/w"
    status, told = run("log", "prove", generation_id, *trust, *target)
    assert (status, told.splitlines()[0]) == (0, f"ok     entry 2 of 3 {place}")
    status, told = run("log", "consistent", str(kept), "--update", *trust, *target)
    assert (status, kept.read_text()) == (0, note)
    assert told.startswith(f"ok     the log {ORIGIN} of 3 entries continues the kept one of 3: 0 ")
    bundle = folder / "known.json"
    export = ("generations", "export", generation_id, "--bundle", str(bundle))
    assert run(*export, "--known", str(kept), *target)[0] == 0
    with Client(server.target) as client:
        (folder / "server.pub").write_text(client.signing_keys()[-1].public_key_pem)
    key = ("--key", str(folder / "server.pub"), "--checkpoint", str(kept))
    status, told = run("verify-bundle", str(bundle), *key, *trust, *quorum)
    assert status == 0
    assert "it continues the log of 3 entries that you know" in told
    # A checkpoint of the same size with another root, of the operator's own making.
    kept.write_bytes(sign_checkpoint(folder, 3))
    status, told = run("log", "consistent", str(kept), "--update", *trust, *target)
    assert (status, told[:47]) == (1, "FAULT  the log with 3 entries does not continue")
    assert kept.read_bytes() == sign_checkpoint(folder, 3)
    kept.write_bytes(sign_checkpoint(folder, 4))
    status, told = run("log", "consistent", str(kept), *trust, *target)
    assert (status, "entries were cut off" in told) == (1, True)
    assert run("verify-bundle", str(bundle), *key, *trust)[0] == 1


def sign_checkpoint(folder: Path, size: int) -> bytes:
    """Return a checkpoint that the log never had, signed with its key."""
    signer = NoteSigner(ORIGIN, load_key("", folder / "log-key.pem"))
    text = Checkpoint(ORIGIN, size, b"r" * 32).format()
    return SignedNote(text, (signer.sign(text),)).format()


async def check_asynchronous_client(server: ServerProcess, note: bytes, vkey: str) -> None:
    async with AsyncClient(server.target) as client:
        log = client.transparency_log
        newest = await log.checkpoint()
        assert (newest.checkpoint, newest.verifier_key) == (note, vkey)
        assert not (await log.consistency(3)).path
        with pytest.raises(NotFoundError):
            await log.inclusion(bytes(32))


def refuse_wrong_requests(channel: grpc.Channel) -> None:
    stub = TransparencyLogServiceStub(channel)
    for digest, code in (
        (bytes(32), grpc.StatusCode.NOT_FOUND),
        (b"short", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ProveInclusion(transparency_log_pb2.ProveInclusionRequest(statement_digest=digest))
        assert caught.value.code() is code
    for size in (4, 2**64 - 1):
        with pytest.raises(grpc.RpcError, match="at most 3") as caught:
            stub.ProveConsistency(transparency_log_pb2.ProveConsistencyRequest(old_size=size))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def check_published(url: str, note: bytes, envelope: bytes) -> None:
    """Read the log as a monitor does, without credentials."""
    assert fetch(f"{url}/log/checkpoint") == note
    entries = fetch(f"{url}/log/tile/entries/000.p/3")
    digest = hashlib.sha256(envelope).digest()
    assert entries[-34:] == b"\0\x20" + digest
    hashes = fetch(f"{url}/log/tile/0/000.p/3")
    assert hashes[-32:] == hash_leaf(digest)
    for path in ("tile/0/000", "tile/0/000.p/4", "tile/0/../../metrics", "x" * 3_000):
        with pytest.raises(urllib.error.HTTPError) as caught:
            fetch(f"{url}/log/{path}")
        assert caught.value.code == 404
        caught.value.close()


def wait_for_file(path: Path, content: bytes) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists() or path.read_bytes() != content:
        assert time.monotonic() < deadline
        time.sleep(0.05)
