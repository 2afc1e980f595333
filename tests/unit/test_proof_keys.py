"""Signing keys on disk: the first start, rotation, crashes, key services."""

import json
import logging
from pathlib import Path

import pytest
from bundles import make_entries, make_finished, sign, spell
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from whence.proof.verification import verify_bundle
from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.key_files import write_private
from whence_server.proof.opening import open_proof
from whence_server.proof.signer import PrivateKey
from whence_server.proof.signing_keys import (
    KEY_NAME,
    LIST_NAME,
    SigningKeys,
    make_entry,
    read_list,
    rotate,
    write_list,
)


def open_keys(directory: Path) -> SigningKeys:
    return SigningKeys.open(directory / KEY_NAME, directory / LIST_NAME)


def test_first_start_makes_a_private_key_and_every_other_one_uses_it(tmp_path: Path) -> None:
    first = open_keys(tmp_path)
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert open_keys(tmp_path).active.public.key_id == first.active.public.key_id
    assert [listed.entry.key.key_id for listed in first.listed] == [first.active.public.key_id]


def test_key_of_the_operator_is_used(tmp_path: Path) -> None:
    given = PrivateKey.generate()
    write_private(tmp_path / "own.pem", given.encode())
    proof = open_proof(tmp_path, str(tmp_path / "own.pem"), {})
    assert proof.keys.active.public.key_id == given.public.key_id
    assert not (tmp_path / KEY_NAME).exists()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    open_keys(tmp_path)
    (tmp_path / KEY_NAME).chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_keys(tmp_path)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        PrivateKey.generate().public.pem.encode(),
    ],
)
def test_files_that_are_no_key_on_p256_are_refused(tmp_path: Path, pem: bytes) -> None:
    write_private(tmp_path / KEY_NAME, pem)
    with pytest.raises(ConfigurationError, match="signing-key"):
        open_keys(tmp_path)


def test_lost_and_exchanged_keys_are_refused(tmp_path: Path) -> None:
    open_keys(tmp_path)
    (tmp_path / KEY_NAME).unlink()
    with pytest.raises(ConfigurationError, match="is missing"):
        open_keys(tmp_path)
    write_private(tmp_path / KEY_NAME, PrivateKey.generate().encode())
    with pytest.raises(ConfigurationError, match="signing-keys rotate"):
        open_keys(tmp_path)


def test_rotation_signs_by_the_new_key_and_is_trusted_from_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = open_keys(tmp_path).active.public
    assert main(["signing-keys", "rotate", "--data-dir", str(tmp_path), "--overlap", "5"]) == 0
    keys = open_keys(tmp_path)
    new = keys.active
    assert capsys.readouterr().out.startswith(new.public.key_id)
    assert new.public.key_id != old.key_id
    entries = make_entries()
    later = keys.listed[-1].entry.not_before.timestamp() + 60
    statement = sign(entries, make_finished(), new, clock=lambda: int(later * 1e9))
    data = spell(statement, entries, [listed.data for listed in keys.listed])
    for trusted in (old, new.public):
        assert verify_bundle(data, [trusted.pem]).verified
    assert main(["signing-keys", "list", "--data-dir", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        old.key_id,
        new.public.key_id,
    ]


def test_running_server_notices_a_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    keys = open_keys(tmp_path)
    old_id = keys.choose().public.key_id
    new_id = rotate(tmp_path / KEY_NAME, tmp_path / LIST_NAME, 0).key.key_id
    assert keys.choose().public.key_id == new_id != old_id
    assert len(keys.listed) == 2


def test_damaged_list_does_not_stop_a_running_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    keys = open_keys(tmp_path)
    before = keys.choose().public.key_id
    (tmp_path / LIST_NAME).write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert keys.choose().public.key_id == before
    assert "goes on with the present key" in caplog.text
    assert len(keys.listed) == 1
    with pytest.raises(ConfigurationError, match="no list of signing keys"):
        open_keys(tmp_path)


def test_lost_list_does_not_stop_a_running_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    keys = open_keys(tmp_path)
    before = keys.choose().public.key_id
    (tmp_path / LIST_NAME).unlink()
    assert keys.choose().public.key_id == before
    assert len(keys.listed) == 1


@pytest.mark.parametrize("is_listed", [False, True])
def test_rotation_that_a_crash_interrupted_is_whole_or_undone(
    tmp_path: Path, is_listed: bool
) -> None:
    keys = open_keys(tmp_path)
    old, new = keys.active, PrivateKey.generate()
    write_private(tmp_path / (KEY_NAME + ".next"), new.encode())
    if is_listed:
        data = [listed.data for listed in keys.listed]
        write_list(tmp_path / LIST_NAME, [*data, make_entry(new, old)])
    found = open_keys(tmp_path)
    assert found.active.public.key_id == (new if is_listed else old).public.key_id
    assert not (tmp_path / (KEY_NAME + ".next")).exists()


def test_list_with_a_key_of_another_is_refused(tmp_path: Path) -> None:
    keys = open_keys(tmp_path)
    write_list(tmp_path / LIST_NAME, [keys.listed[0].data, make_entry(PrivateKey.generate())])
    with pytest.raises(ConfigurationError, match="does not follow"):
        open_keys(tmp_path)


def test_key_service_signs_the_servers_own_key_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = PrivateKey.generate()
    service = tmp_path / "service.pem"
    write_private(service, root.encode())
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    proof = open_proof(data_dir, f"file2:{service}", {})
    own = proof.keys.active
    assert own.public.key_id != root.public.key_id
    entries = make_entries()
    later = proof.keys.listed[-1].entry.not_before.timestamp() + 60
    statement = sign(entries, make_finished(), own, clock=lambda: int(later * 1e9))
    data = spell(statement, entries, [listed.data for listed in proof.keys.listed])
    assert verify_bundle(data, [root.public.pem]).verified
    write_private(service, PrivateKey.generate().encode())
    with pytest.raises(ConfigurationError, match="begins with the key"):
        open_proof(data_dir, f"file2:{service}", {})
    service.unlink()
    with caplog.at_level(logging.WARNING):
        again = open_proof(data_dir, f"file2:{service}", {})
    assert again.keys.active.public.key_id == own.public.key_id
    assert "without a look at its key service" in caplog.text


@pytest.mark.parametrize("uri", ["awskms:alias/x", "file2:/no/such/key", "hsm:2"])
def test_key_service_that_cannot_be_asked_is_named(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigurationError, match=uri):
        open_proof(tmp_path, uri, {})
    assert not (tmp_path / LIST_NAME).exists()


def test_file_of_the_list_is_readable_by_others_tools(tmp_path: Path) -> None:
    keys = open_keys(tmp_path)
    spelled = json.loads((tmp_path / LIST_NAME).read_bytes())
    assert [entry.encode() for entry in spelled["entries"]] == [keys.listed[0].data]
    assert read_list(tmp_path / "none") == []
