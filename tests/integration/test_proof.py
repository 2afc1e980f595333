"""Signed generations of a real server, checked by an auditor with nothing but files."""

import base64
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from securesystemslib.dsse import Envelope
from server_process import ServerProcess

from whence import Client
from whence.cli.main import main as client_main
from whence.errors import NotFoundError
from whence.proof.verification import Report, verify_bundle
from whence_server.cli import main as server_main

SHORT = {"max_new_tokens": 6}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {**SHORT, "prompt": "The quick brown fox"},
    "two sampled": {**SHORT, "prompt": "A", "seed": 2**63 + 5, "n": 2},
    "beam search": {**SHORT, "prompt": "B", "num_beams": 2},
    "forced": {"prompt": "C", "forced": " and so on"},
    "prompt steps": {**SHORT, "prompt": "D and E", "trace_prompt": True},
    "chat": {**SHORT, "messages": [{"role": "user", "content": "Hello"}]},
    "stopped": {**SHORT, "prompt": "F", "stop": ["secret"]},
    "tokens alone": {**SHORT, "prompt": "G", "content": "tokens"},
    "numbers alone": {**SHORT, "prompt": "H", "content": "none"},
}


class Served(NamedTuple):
    """A server with its public key, noted before anything was generated."""

    process: ServerProcess
    data_dir: Path
    key: Path

    def export(self, generation_id: str, file: Path, *flags: str) -> bytes:
        """Export a bundle by the command, and return it."""
        target = ("--target", self.process.target)
        given = ("generations", "export", generation_id, "--bundle", str(file), *flags)
        assert client_main([*given, *target]) == 0
        return file.read_bytes()

    def verify(self, data: bytes) -> Report:
        """Check a bundle by the noted key."""
        return verify_bundle(data, [self.key.read_text()])


@pytest.fixture(scope="module")
def served(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("proof")
    flags = ("--model-name", "tiny", "--http-listen", "127.0.0.1:0")
    with ServerProcess(tiny_model("gpt2"), directory / "data", *flags) as process:
        with Client(process.target) as client:
            (signing,) = client.signing_keys()
        key = directory / "server.pub"
        key.write_text(signing.public_key_pem)
        yield Served(process, directory / "data", key)


def generate(served: Served, options: dict[str, Any]) -> tuple[str, bytes]:
    """Generate; return the generation's id, and the envelope that was streamed with its end."""
    with Client(served.process.target) as client:
        with client.generate(**options) as generation:
            for _ in generation:
                pass
        assert generation.finished is not None
        return generation.id, generation.finished.statement.envelope


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_generation_is_proven(served: Served, kind: str, tmp_path: Path) -> None:
    generation_id, streamed = generate(served, KINDS[kind])
    data = served.export(generation_id, tmp_path / "bundle.json")
    report = served.verify(data)
    assert report.verified, report.checks
    assert report.statement is not None
    assert report.statement.generation_id == generation_id
    assert base64.b64decode(json.loads(data)["envelope"]) == streamed
    with Client(served.process.target) as client:
        on_record = client.generations.get(generation_id)
    assert on_record.finished.statement.envelope == streamed
    said = report.statement.predicate
    assert said["model"]["digest"] == on_record.started.model_digest
    assert said["model"].get("chatTemplateDigest", "") == on_record.started.chat.template_digest
    assert bool(on_record.started.chat.template_digest) == (kind == "chat")
    assert said["closedBy"] == "server"
    hidden = served.export(generation_id, tmp_path / "hidden", "--hide", "prompt", "--hide", "text")
    assert served.verify(hidden).verified
    assert all(set(leaf) == {"hash"} for leaf in json.loads(hidden)["leaves"])


def test_steps_are_shown_alone(served: Served, tmp_path: Path) -> None:
    generation_id, _ = generate(served, {**SHORT, "prompt": "Alone"})
    data = served.export(generation_id, tmp_path / "bundle", "--hide", "prompt", "--steps", "2:4")
    assert served.verify(data).verified
    shown = ["entry" in leaf for leaf in json.loads(data)["leaves"]]
    assert shown == [False, False, False, True, True, False, False]
    with pytest.raises(SystemExit):
        served.export(generation_id, tmp_path / "bundle", "--steps", "4:2")


def test_command_shows_the_signer(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation_id, envelope = generate(served, {**SHORT, "prompt": "Shown"})
    (key_id,) = (signature["keyid"] for signature in json.loads(envelope)["signatures"])
    target = ("--target", served.process.target)
    assert client_main(["generations", "show", generation_id, *target]) == 0
    assert f"by key {key_id}" in capsys.readouterr().out
    page = tmp_path / "page.html"
    shown = ("generations", "show", generation_id, "--html", str(page), *target)
    assert client_main(list(shown)) == 0
    assert f"by key {key_id}" in page.read_text()
    bundle = tmp_path / "bundle.json"
    served.export(generation_id, bundle)
    capsys.readouterr()
    assert client_main(["verify-bundle", str(bundle), "--key", str(served.key)]) == 0
    assert capsys.readouterr().out.endswith("\nverified\n")


def test_keys_are_the_same_everywhere(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with urllib.request.urlopen(f"{served.process.http_url}/keys.json", timeout=30) as answer:
        over_http = json.load(answer)["keys"]
    with Client(served.process.target) as client:
        over_grpc = client.signing_keys()
    assert [key["keyId"] for key in over_http] == [key.key_id for key in over_grpc]
    assert [key["publicKeyPem"] for key in over_http] == [key.public_key_pem for key in over_grpc]
    assert client_main(["keys", "--pem", "--target", served.process.target]) == 0
    assert capsys.readouterr().out == over_grpc[-1].public_key_pem
    assert server_main(["signing-keys", "list", "--data-dir", str(served.data_dir)]) == 0
    assert over_grpc[-1].key_id in capsys.readouterr().out
    assert (served.data_dir / "signing-key.pem").stat().st_mode & 0o777 == 0o600


def test_rotation_is_noticed_and_followed_from_the_old_key(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _ = generate(served, {**SHORT, "prompt": "Before"})
    assert server_main(["signing-keys", "rotate", "--data-dir", str(served.data_dir)]) == 0
    new_id = capsys.readouterr().out.split()[0]
    after = _generate_until_signed_by(served, new_id)
    for generation_id in (before, after):
        data = served.export(generation_id, tmp_path / "bundle")
        assert served.verify(data).verified
        with Client(served.process.target) as client:
            newest = client.signing_keys()[-1]
        assert newest.active
        assert newest.key_id == new_id
        assert verify_bundle(data, [newest.public_key_pem]).verified


def _generate_until_signed_by(served: Served, key_id: str) -> str:
    """Generate until the server has noticed a rotation; return the last generation's id."""
    give_up_s = time.monotonic() + 60
    while time.monotonic() < give_up_s:
        generation_id, envelope = generate(served, {"prompt": "After", "max_new_tokens": 1})
        if key_id in _list_signers(envelope):
            return generation_id
        time.sleep(0.2)
    raise AssertionError("the server has not noticed the rotation within 60 s")


def _list_signers(envelope: bytes) -> Sequence[str]:
    return list(Envelope.from_dict(json.loads(envelope)).signatures)


def test_deleted_generation_is_proven_by_its_bundle_alone(served: Served, tmp_path: Path) -> None:
    generation_id, _ = generate(served, {**SHORT, "prompt": "Deleted"})
    data = served.export(generation_id, tmp_path / "bundle")
    with Client(served.process.target) as client:
        client.generations.delete(generation_id)
        with pytest.raises(NotFoundError):
            b"".join(client.generations.bundle(generation_id))
    assert served.verify(data).verified


def test_operator_cannot_change_what_is_on_record(served: Served, tmp_path: Path) -> None:
    generation_id, _ = generate(served, {**SHORT, "prompt": "Kept"})
    other_id, _ = generate(served, {**SHORT, "prompt": "Other"})
    bundle = json.loads(served.export(generation_id, tmp_path / "bundle"))
    other = json.loads(served.export(other_id, tmp_path / "other"))
    bundle["leaves"][2] = other["leaves"][2]
    report = served.verify(json.dumps(bundle).encode())
    assert [(check.name, check.passed) for check in report.checks][-1] == ("record", False)
