"""VerificationService, its command, and the command that needs no server."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess

from whence import Client, NotFoundError
from whence.cli.main import main
from whence.summary.verifications import VERDICTS
from whence.v1 import verification_pb2 as pb
from whence_server.cli import main as serve_main

GOOD = {pb.VERDICT_VERIFIED, pb.VERDICT_VERIFIED_WITHIN_MARGIN}
SAME, DIFFERENT = pb.VERIFICATION_OUTCOME_SAME, pb.VERIFICATION_OUTCOME_DIFFERENT
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("gpt2-long")


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--audit", "all", "--max-cache-tokens", "20000", "--max-prompt-tokens", "4096")
    with ServerProcess(model, tmp_path_factory.mktemp("data"), *flags) as process:
        yield process


@pytest.fixture(scope="module")
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as client:
        yield client


@pytest.fixture(scope="module")
def noise_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the noise is measured once."""
    return tmp_path_factory.mktemp("cache")


def verify(client: Client, generation_id: str, **options: Any) -> list[pb.VerifyGenerationResponse]:
    with client.generations.verify(generation_id, **options) as events:
        return list(events)


def run(client: Client, prompt: Any = PROMPT, **options: Any) -> str:
    with client.generate(prompt, **{"max_new_tokens": 24, **options}) as generation:
        for _ in generation:
            pass
    return generation.id


REQUESTS: dict[str, dict[str, Any]] = {
    "a sample": {"seed": 5, "temperature": 0.9, "top_p": 0.95},
    "a chat": {"messages": [{"role": "user", "content": "Hello"}], "seed": 5},
    "greedy with a stop": {"greedy": True, "stop": ["e"]},
    "two samples": {"seed": 6, "n": 2, "top_k": 20},
    "beams": {"num_beams": 3, "n": 2},
    "a constraint": {"seed": 7, "regex": "[a-z ]{4,40}"},
    "a traced text": {"forced": " jumps over the lazy dog", "max_new_tokens": None},
    "a traced prompt": {"seed": 8, "trace_prompt": True},
    "penalties": {"seed": 9, "repetition_penalty": 1.3, "bad_words": ["the"], "min_p": 0.01},
    "tokens alone": {"seed": 10, "detail": "tokens"},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_generation_is_verified_from_its_record(name: str, client: Client) -> None:
    options = REQUESTS[name]
    generation_id = run(client, None if "messages" in options else PROMPT, **options)
    events = verify(client, generation_id, every_step=True)
    result = events[-1].result
    assert result.verdict in GOOD, events
    given = pb.VERIFICATION_BASIS_LOGPROBS if "forced" in options else None
    assert result.basis == (given or pb.VERIFICATION_BASIS_CHOICES)
    assert result.num_logprobs >= result.num_steps
    if "regex" in options:
        assert "whether 1 results complete their constraint: not compared" in result.message
    checks = {
        event.check.subject: event.check
        for event in events
        if event.HasField("check") and "their constraint" not in event.check.message
    }
    assert {check.outcome for check in checks.values()} == {SAME} or {
        subject for subject, check in checks.items() if check.outcome != SAME
    } == {pb.VERIFICATION_SUBJECT_ENVIRONMENT}
    assert {
        pb.VERIFICATION_SUBJECT_WEIGHTS,
        pb.VERIFICATION_SUBJECT_TOKENIZER,
        pb.VERIFICATION_SUBJECT_PROMPT,
        pb.VERIFICATION_SUBJECT_TEXT,
        pb.VERIFICATION_SUBJECT_END,
    } <= checks.keys()
    assert (pb.VERIFICATION_SUBJECT_CHAT in checks) == (name == "a chat")
    assert (pb.VERIFICATION_SUBJECT_PROMPT_LOGPROBS in checks) == (name == "a traced prompt")
    compared = [event for event in events if event.WhichOneof("event") in {"step", "beam_round"}]
    assert len(compared) == result.num_steps > 0
    [noise] = [event.noise for event in events if event.HasField("noise")]
    assert noise.margin > noise.largest >= 0


def list_audited(client: Client, generation_id: str) -> set[str]:
    """Return the details of the audit about a generation, once there is a verdict among them."""
    deadline = time.monotonic() + 60
    while True:
        records = client.audit(actions=["verify"])
        found = {record.detail for record in records if record.generation_id == generation_id}
        # The verdict is put on record after the stream's end.
        if any(found):
            return found
        assert time.monotonic() < deadline, f"the audit has {found}"
        time.sleep(0.05)


def test_a_verification_and_its_verdict_are_in_the_audit(client: Client) -> None:
    verified, unkept = run(client, seed=11), run(client, seed=11, content="none")
    told = verify(client, verified)[-1].result.verdict
    verify(client, unkept)
    assert list_audited(client, verified) == {"", VERDICTS[told]}
    assert list_audited(client, unkept) == {"", "not verifiable: CONTENT_NOT_KEPT"}


def test_what_is_not_on_record_is_not_verified_and_the_reason_is_told(client: Client) -> None:
    result = verify(client, run(client, seed=12, content="none"))[-1].result
    assert result.verdict == pb.VERDICT_NOT_VERIFIABLE
    assert result.reason == "CONTENT_NOT_KEPT"
    assert "keeps no token ids" in result.message
    events = verify(client, run(client, seed=12, content="tokens"))
    assert events[-1].result.verdict in GOOD
    with pytest.raises(NotFoundError):
        verify(client, "00000000-0000-4000-8000-00000000000f")


def test_a_stream_goes_on_while_another_generation_is_verified(client: Client) -> None:
    generation_id = run(client, max_new_tokens=400, seed=13)
    verify(client, generation_id)  # from now on the process has its model
    seen: list[int] = []
    is_enough = threading.Event()

    def read() -> None:
        with client.generate(PROMPT, max_new_tokens=7000, seed=14, ignore_eos=True) as stream:
            for token in stream:
                seen.append(token.index)
                if is_enough.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        result = pb.VerificationResult()
        num_before, num_after = 0, 0
        for _ in range(20):
            with client.generations.verify(generation_id, every_step=True) as events:
                steps = 0
                for event in events:
                    if event.HasField("step"):
                        steps += 1
                        if steps == 1:
                            num_before = len(seen)
                    if event.HasField("result"):
                        result, num_after = event.result, len(seen)
            if num_before and num_after > num_before:
                break
    finally:
        is_enough.set()
        reader.join(60)
    assert result.verdict in GOOD
    assert num_after > num_before > 0


def test_a_cancelled_verification_ends_and_the_next_one_is_answered(client: Client) -> None:
    generation_id = run(client, max_new_tokens=400, seed=15)
    with client.generations.verify(generation_id, every_step=True) as events:
        for event in events:
            if event.HasField("step"):
                break
    assert verify(client, generation_id)[-1].result.verdict in GOOD


def test_the_command_tells_the_verdict(
    process: ServerProcess, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    generation_id = run(client, seed=16)
    assert main(["verify", generation_id, "--target", process.target]) == 0
    told = capsys.readouterr().out
    assert "verdict" in told
    assert "24 steps" in told
    assert main(["verify", generation_id, "--target", process.target, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["result"]["verdict"].startswith("VERDICT_VERIFIED")


def test_a_saved_generation_is_verified_without_a_server(
    process: ServerProcess,
    client: Client,
    model: Path,
    noise_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generation_id, file = run(client, seed=17), tmp_path / "generation.json"
    saving = ["verify", generation_id, "--save", str(file), "--target", process.target]
    assert main(saving) == 0
    assert f"{generation_id} is in" in capsys.readouterr().out
    command = ["verify-generation", str(file), "--model", str(model), "--threads", "1"]
    command += ["--cache", str(noise_cache)]

    assert serve_main(command) == 0
    assert "verdict             verified" in capsys.readouterr().out
    record = json.loads(file.read_text())
    changed = record["steps"][7]["token_id"] + 1
    record["steps"][7]["token_id"] = changed
    record["finished"]["sequences"][0]["token_ids"][7] = changed
    file.write_text(json.dumps(record))
    assert serve_main(command) == 1
    assert "first at step 7 of sequence 0" in capsys.readouterr().out
    file.write_bytes(b"\xff\xff")
    assert serve_main(command) == 2
    assert "is no saved generation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a chat", "greedy with a stop", "two samples", "beams"])
def test_a_signed_bundle_is_verified_without_a_server(
    name: str,
    process: ServerProcess,
    client: Client,
    model: Path,
    noise_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, file, key = REQUESTS[name], tmp_path / "bundle.json", tmp_path / "key.pem"
    generation_id = run(client, None if "messages" in options else PROMPT, **options)
    file.write_bytes(b"".join(client.generations.bundle(generation_id)))
    key.write_text(client.signing_keys()[-1].public_key_pem)
    command = ["verify-generation", str(file), "--model", str(model), "--threads", "1"]
    command += ["--cache", str(noise_cache), "--key", str(key)]
    assert serve_main(command) == 0
    told = capsys.readouterr().out
    assert "signature           signed by key" in told
    assert "verdict             verified" in told
