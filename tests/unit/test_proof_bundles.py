"""Bundles: what is proven, what is hidden, and what is refused."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import (
    change_statement,
    make_bundle,
    make_entries,
    make_finished,
    make_started,
    sign,
    spell,
)
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from whence.cli.main import main
from whence.proof.bundle import Bundle, OpenLeaf
from whence.proof.entries_check import check_entries
from whence.proof.faults import ProofError
from whence.proof.leaves import KINDS
from whence.proof.statement import Statement
from whence.proof.verification import Report, verify_bundle
from whence_server.proof.signer import PrivateKey
from whence_server.proof.signing_keys import make_entry

SIGNER = PrivateKey.generate()
HOUR_NS = 3_600 * 10**9
START_NS = 1_770_000_000_000_000_000


def verify(data: bytes, signer: PrivateKey = SIGNER) -> Report:
    return verify_bundle(data, [signer.public.pem])


def find_fault(report: Report) -> tuple[str, str]:
    """Return the name and the detail of the check that failed."""
    (fault,) = [check for check in report.checks if check.passed is False]
    assert not report.verified
    return fault.name, fault.detail


def change(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a bundle after a change of its JSON."""
    bundle = json.loads(data)
    edit(bundle)
    return json.dumps(bundle).encode()


def test_whole_bundle_is_verified() -> None:
    report = verify(make_bundle(SIGNER))
    assert report.verified
    names = [check.name for check in report.checks]
    assert names == ["format", "signature", "record", "entries", "origin", "log"]
    assert report.checks[-1].passed is None
    assert report.statement is not None
    said = report.statement.predicate
    assert said["model"]["digest"] == "ab" * 32
    assert said["decoding"]["seed"] == str(2**63 + 1)
    assert said["decoding"]["inRecordOnly"] == ["stop"]
    assert said["trainingRun"] == {"id": "run-1", "step": "600", "recordHead": "34" * 32}
    assert said["caller"] == "alice"


def test_settings_of_the_generation_config_are_signed() -> None:
    started = make_started()
    configured = started.configured_decoding
    configured.sequence_biases.add(token_ids=[3], bias=-100)
    configured.renormalize_logits = True
    configured.forced_bos_token_id = 0
    started.processor_names.extend(["sequence_bias", "temperature"])
    entries = make_entries(started=started)
    # The start is hidden: the statement alone says how was decoded.
    report = verify(spell(sign(entries, make_finished(), SIGNER), entries, hidden=[0]))
    assert report.verified
    assert report.statement is not None
    said = report.statement.predicate["decoding"]
    assert said["configured"] == {
        "renormalize_logits": True,
        "forced_bos_token_id": 0,
        "inRecordOnly": ["sequence_biases"],
    }
    assert said["processors"] == ["sequence_bias", "temperature"]


def test_securesystemslib_verifies_the_envelope() -> None:
    statement = sign(make_entries(), make_finished(), SIGNER)
    envelope = Envelope.from_dict(json.loads(statement.envelope))
    public = serialization.load_pem_public_key(SIGNER.public.pem.encode())
    key = SSlibKey.from_crypto(public, keyid=SIGNER.public.key_id)
    assert list(envelope.verify([key], 1)) == [SIGNER.public.key_id]
    assert envelope.payload_type == "application/vnd.in-toto+json"


def test_statement_holds_no_content() -> None:
    statement = sign(make_entries(), make_finished(), SIGNER)
    payload = base64.b64decode(json.loads(statement.envelope)["payload"])
    for content in (b"secret", b"France", b"word"):
        assert content not in payload


def test_hidden_leaves_stay_in_their_place_and_tell_nothing() -> None:
    data = make_bundle(SIGNER, hidden=[0, 2])
    assert verify(data).verified
    leaves = json.loads(data)["leaves"]
    assert [set(leaf) for leaf in leaves] == [
        {"hash"},
        {"kind", "salt", "entry"},
        {"hash"},
        {"kind", "salt", "entry"},
        {"kind", "salt", "entry"},
    ]
    assert b"France" not in base64.b64decode(json.loads(data)["envelope"])
    assert "promptKey" not in json.loads(data)


def test_equal_entries_have_different_leaves() -> None:
    entries = [make_entries()[0], *[make_entries()[1]] * 3]
    first = sign(entries, make_finished(), SIGNER)
    second = sign(entries, make_finished(), SIGNER)
    hashes = [
        leaf["hash"]
        for statement in (first, second)
        for leaf in json.loads(spell(statement, entries, hidden=range(4)))["leaves"]
    ]
    assert len(set(hashes)) == 8


@pytest.mark.parametrize("hidden", [(), (0, 1)])
def test_every_changed_byte_is_refused_or_changes_nothing(hidden: tuple[int, ...]) -> None:
    data = make_bundle(SIGNER, num_steps=2, hidden=hidden)
    claimed = verify(data).statement
    num_refused = 0
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        report = verify(changed)
        num_refused += not report.verified
        if report.verified:
            assert report.statement == claimed
            assert json.loads(changed)["leaves"] == json.loads(data)["leaves"]
    # Only the white space at the end may be another.
    assert num_refused >= len(data) - 1


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_bundle_is_refused(fraction: float) -> None:
    data = make_bundle(SIGNER)
    assert find_fault(verify(data[: int(len(data) * fraction)]))[0] == "format"


@pytest.mark.parametrize(
    ("edit", "check", "words"),
    [
        (lambda b: b["leaves"].reverse(), "record", "Merkle root differs"),
        (lambda b: b["leaves"].pop(), "record", "covers 5 entries"),
        (lambda b: b["leaves"].append(b["leaves"][-1]), "record", "covers 5 entries"),
        (lambda b: b["leaves"][1].update(kind="prompt_step"), "record", "Merkle root differs"),
        (lambda b: b["leaves"][1].update(kind="finished"), "format", "expected one of"),
        (lambda b: b["leaves"][1].update(more=1), "format", "unknown field 'more'"),
        (lambda b: b["leaves"].insert(0, "x"), "format", "no JSON object"),
        (lambda b: b.update(extra=1), "format", "unknown field 'extra'"),
        (lambda b: b.update(leaves={}), "format", "leaves is no list"),
        (lambda b: b.update(mediaType="application/vnd.whence.bundle+json;version=2"), "format",
         "this version reads"),
        (lambda b: b.update(promptKey=base64.b64encode(bytes(32)).decode()), "entries",
         "the statement's prompt differs"),
        (lambda b: b.update(keys=b["keys"] * 65), "format", "at most 64"),
        (lambda b: b.update(keys=b["keys"] * 2), "signature", "listed twice"),
        (lambda b: b.update(keys=["AAAA"]), "signature", "no valid JSON"),
        (lambda b: b.update(envelope="e30="), "signature", "payloadType is missing"),
    ],
)  # fmt: skip
def test_changed_bundle_is_refused_by_name(edit: Any, check: str, words: str) -> None:
    name, detail = find_fault(verify(change(make_bundle(SIGNER), edit)))
    assert name == check
    assert words in detail


@pytest.mark.parametrize(
    ("edit", "check", "words"),
    [
        (lambda s: s["predicate"]["decoding"].update(seed="7"), "entries", "decoding differs"),
        (lambda s: s["predicate"]["model"].update(digest="0"), "entries", "model differs"),
        (lambda s: s["predicate"]["results"].update(numGeneratedTokens=3), "entries", "says 3"),
        (lambda s: s.update(predicateType="urn:whence:generation:2"), "signature", "expected 'urn"),
        (lambda s: s.update(_type="x"), "signature", "expected 'https://in-toto.io"),
        (lambda s: s["predicate"].update(signedAt="yesterday"), "signature", "is no time"),
        (lambda s: s["predicate"]["record"].update(numLeaves=10**12), "record", "covers"),
        (lambda s: s["predicate"]["record"].update(numLeaves=True), "signature", "is no int"),
        (lambda s: s.update(subject=[]), "signature", "0 subjects"),
        (lambda s: s["predicate"].update(generationId="other"), "signature", "subject names"),
    ],
)
def test_statement_that_its_signer_made_false_is_refused(edit: Any, check: str, words: str) -> None:
    name, detail = find_fault(verify(change_statement(make_bundle(SIGNER), edit, SIGNER)))
    assert name == check
    assert words in detail


def test_statement_of_another_key_is_refused() -> None:
    stranger = PrivateKey.generate()
    assert find_fault(verify(make_bundle(stranger)))[0] == "signature"
    renamed = change_statement(make_bundle(SIGNER), lambda statement: None, stranger)
    assert "no valid signature of a trusted key" in find_fault(verify(renamed))[1]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "curve secp384r1"),
        (ed25519.Ed25519PrivateKey.generate(), "no elliptic-curve key"),
        (rsa.generate_private_key(65537, 2048), "no elliptic-curve key"),
    ],
)
def test_keys_of_other_kinds_are_refused(key: Any, words: str) -> None:
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(ProofError, match=words):
        verify_bundle(make_bundle(SIGNER), [pem.decode()])


@pytest.mark.parametrize("pem", ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n", "a" * 9_000])
def test_texts_that_are_no_keys_are_refused(pem: str) -> None:
    with pytest.raises(ProofError, match="key"):
        verify_bundle(make_bundle(SIGNER), [pem])


def make_rotated(signed_ns: int, signer: str, trusted: str) -> Report:
    """Return the report of a generation under a key that was rotated at START_NS + 1 h."""
    keys = {"old": PrivateKey.generate(), "new": PrivateKey.generate()}
    listed = [
        make_entry(keys["old"], now_ns=START_NS),
        make_entry(keys["new"], keys["old"], now_ns=START_NS + HOUR_NS, overlap_s=600),
    ]
    entries = make_entries()
    statement = sign(entries, make_finished(), keys[signer], clock=lambda: signed_ns)
    return verify(spell(statement, entries, listed), keys[trusted])


@pytest.mark.parametrize("trusted", ["old", "new"])
def test_rotated_keys_are_trusted_in_their_time(trusted: str) -> None:
    assert make_rotated(START_NS + 60 * 10**9, "old", trusted).verified
    assert make_rotated(START_NS + HOUR_NS + 60 * 10**9, "old", trusted).verified
    assert make_rotated(START_NS + 2 * HOUR_NS, "new", trusted).verified


@pytest.mark.parametrize("trusted", ["old", "new"])
def test_keys_are_refused_outside_their_time(trusted: str) -> None:
    late = make_rotated(START_NS + 2 * HOUR_NS, "old", trusted)
    assert "signatures of the key" in find_fault(late)[1]
    early = make_rotated(START_NS, "new", trusted)
    assert "signatures of the key" in find_fault(early)[1]


def test_two_followers_of_one_key_are_refused() -> None:
    old, new, thief = (PrivateKey.generate() for _ in range(3))
    listed = [make_entry(old), make_entry(new, old), make_entry(thief, old)]
    entries = make_entries()
    statement = sign(entries, make_finished(), thief)
    report = verify(spell(statement, entries, listed), old)
    assert "two keys follow one key" in find_fault(report)[1]


def test_key_that_follows_an_older_one_is_not_trusted_by_the_newer() -> None:
    old, new, thief = (PrivateKey.generate() for _ in range(3))
    entries = make_entries()
    statement = sign(entries, make_finished(), thief)
    # The entry of the newer key is left out: its follower would stand beside it.
    report = verify(spell(statement, entries, [make_entry(thief, old)]), new)
    assert find_fault(report)[0] == "signature"


def test_list_signed_by_the_new_key_alone_is_refused() -> None:
    old, new = PrivateKey.generate(), PrivateKey.generate()
    entry = json.loads(make_entry(new, old))
    entry["signatures"] = entry["signatures"][:1]
    entries = make_entries()
    statement = sign(entries, make_finished(), new)
    report = verify(spell(statement, entries, [json.dumps(entry).encode()]), old)
    assert "no valid signature of the key" in find_fault(report)[1]


def test_command_needs_no_grpc_and_no_server(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(make_bundle(SIGNER))
    (tmp_path / "key").write_text(SIGNER.public.pem)
    program = (
        "import sys\n"
        "for name in ('grpc', 'whence_server', 'numpy', 'securesystemslib'):\n"
        "    sys.modules[name] = None\n"
        "from whence.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    given = ["verify-bundle", str(tmp_path / "bundle"), "--key", str(tmp_path / "key")]
    checked = subprocess.run(
        [sys.executable, "-c", program, *given], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.endswith("\nverified\n")


@pytest.mark.parametrize(
    ("edit", "status", "words"),
    [
        (lambda data: data, 0, "\nverified"),
        (lambda data: data[:-9], 1, "FAULT  format"),
        (
            lambda data: data.replace(b'"kind":"step"', b'"kind":"beam_round"', 1),
            1,
            "FAULT  record",
        ),
    ],
)
def test_command_says_what_is_at_fault(
    edit: Callable[[bytes], bytes],
    status: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bundle").write_bytes(edit(make_bundle(SIGNER)))
    (tmp_path / "key").write_text(SIGNER.public.pem)
    given = ["verify-bundle", str(tmp_path / "bundle"), "--key", str(tmp_path / "key")]
    assert main(given) == status
    assert words in capsys.readouterr().out
    assert main([*given, "--json"]) == status
    assert json.loads(capsys.readouterr().out)["verified"] == (status == 0)


@pytest.mark.parametrize("missing", ["bundle", "key"])
def test_command_names_a_file_that_it_cannot_read(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").write_bytes(make_bundle(SIGNER))
    (tmp_path / "key").write_text(SIGNER.public.pem)
    (tmp_path / missing).unlink()
    given = ["verify-bundle", str(tmp_path / "bundle"), "--key", str(tmp_path / "key")]
    assert main(given) == 2
    assert str(tmp_path / missing) in capsys.readouterr().err


def test_verification_in_a_warm_process_takes_less_than_50_ms() -> None:
    data = make_bundle(SIGNER, num_steps=128)
    times_s = []
    for _ in range(20):
        began_s = time.process_time()
        assert verify(data).verified
        times_s.append(time.process_time() - began_s)
    assert min(times_s) < 0.05


def test_deep_and_repeating_json_is_refused() -> None:
    deep = b'{"mediaType":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    twice = make_bundle(SIGNER).replace(b'"keys":', b'"keys":[],"keys":', 1)
    for data in (deep, twice, b"[]", b"", b"\xff", b'{"mediaType":NaN}', b"{" + b"1" * 5_000):
        assert find_fault(verify(data))[0] == "format"


@pytest.mark.parametrize("seconds", [-(2**62), 2**62])
def test_start_at_an_impossible_time_is_refused(seconds: int) -> None:
    started = make_started()
    started.start_time.seconds = seconds
    leaf = OpenLeaf(KINDS["started"], bytes(32), started.SerializeToString())
    bundle = Bundle(b"", [], [leaf], bytes(32), None)
    with pytest.raises(ProofError, match="no server writes"):
        check_entries(bundle, Statement("g", bytes(32), 1, {}))


def test_start_of_another_generation_is_refused() -> None:
    other = make_started()
    other.effective_decoding.sample.seed = 9
    entries = list(make_entries())
    statement = sign(entries, make_finished(), SIGNER)
    entries[0] = (entries[0][0], other.SerializeToString())
    assert find_fault(verify(spell(statement, entries)))[0] == "record"
