"""Signing keys on disk: the first start, rotation, crashes, key services."""

import base64
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bundles import make_entries, make_finished, sign, spell
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from whence.proof.key_list import SavedKeys, parse_saved_list
from whence.proof.times import spell_time
from whence.proof.verification import Demands, verify_bundle
from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.signing import parse_signing_key
from whence_server.http.proof_routes import spell_keys
from whence_server.proof import signing_keys
from whence_server.proof.key_board import describe_keys
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
    assert main(["signing-keys", "rotate", "--data-dir", str(tmp_path), "--overlap", "10"]) == 0
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


def test_idle_server_lists_the_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    keys = open_keys(tmp_path)
    new_id = rotate(tmp_path / KEY_NAME, tmp_path / LIST_NAME, 10).key.key_id
    # No generation has ended since: nothing has chosen a key.
    assert [key.active for key in describe_keys(keys).keys] == [False, True]
    assert keys.list_keys()[-1].entry.key.key_id == new_id


@pytest.mark.parametrize("other", ["start", "rotation"])
def test_rotation_beside_a_start_or_another_rotation_keeps_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    first_id = open_keys(tmp_path).active.public.key_id
    paths = tmp_path / KEY_NAME, tmp_path / LIST_NAME
    begin: Callable[[], object] = lambda: (  # noqa: E731 - chosen by the parameter
        open_keys(tmp_path) if other == "start" else rotate(*paths, 10)
    )
    thread = threading.Thread(target=begin)
    write = write_list

    def write_beside(*arguments: object, **named: object) -> None:
        """Let the other process begin between the new private key and its entry in the list."""
        monkeypatch.setattr(signing_keys, "write_list", write)
        thread.start()
        # It waits for the lock, or would be through in some milliseconds.
        thread.join(0.5)
        write(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(signing_keys, "write_list", write_beside)
    new_id = rotate(*paths, 10).key.key_id
    thread.join(60)
    assert not thread.is_alive()
    listed = [listed.entry.key.key_id for listed in read_list(paths[1])]
    assert listed[:2] == [first_id, new_id]
    assert len(listed) == (2 if other == "start" else 3)
    assert open_keys(tmp_path).active.public.key_id == listed[-1]


def test_rotation_after_a_theft_begins_a_list_and_tells_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    keys = open_keys(tmp_path)
    stolen = keys.choose()
    theft = datetime.now(UTC) - timedelta(days=2)
    since = f"{theft:%Y-%m-%dT%H:%M:%SZ}"
    command = ["signing-keys", "rotate", "--data-dir", str(tmp_path), "--stolen"]
    assert main([*command, since, "--overlap", "60"]) == 2
    assert "--overlap does not go with --stolen" in capsys.readouterr().err
    assert main([*command, since]) == 0
    new_id = capsys.readouterr().out.split()[0]
    assert keys.choose().public.key_id == new_id
    assert [listed.entry.previous for listed in keys.list_keys()] == [None]
    page: list[Any] = spell_keys(describe_keys(keys).keys)
    assert [(key["keyId"], key["active"]) for key in page] == [
        (stolen.public.key_id, False),
        (new_id, True),
    ]
    assert [key.get("stolenSince") for key in page] == [since, None]
    assert main(["signing-keys", "list", "--data-dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{stolen.public.key_id}  stolen since {since}"
    assert told[1].endswith("signs now")
    # What is saved of the page bounds the stolen key, and nothing leads from one list to the other.
    saved = parse_saved_list(json.dumps({"keys": page}).encode())
    new_pem, entries = keys.active.public.pem, make_entries()
    for days, trusted, is_good in (
        (1, stolen.public.pem, False),
        (3, stolen.public.pem, True),
        (3, new_pem, False),
    ):
        signed_ns = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1e9)
        statement = sign(entries, make_finished(), stolen, clock=lambda at=signed_ns: at)
        data = spell(statement, entries, [listed.data for listed in keys.list_keys()])
        report = verify_bundle(data, [trusted], demands=Demands(known_keys=saved))
        assert report.verified is is_good, report.checks
    # A later rotation and a start keep the list of the stolen key.
    rotate(tmp_path / KEY_NAME, tmp_path / LIST_NAME, 10)
    assert len(describe_keys(open_keys(tmp_path)).keys) == 3
    assert main(command) == 0
    *_, last, active = spell_keys(describe_keys(open_keys(tmp_path)).keys)
    assert last["stolenSince"] <= spell_time(time.time_ns())
    assert active["active"]
    with pytest.raises(SystemExit):
        main([*command, "2999-01-01T00:00:00Z"])


def test_key_that_a_thief_adds_after_a_stolen_one_is_not_trusted() -> None:
    before, stolen, thief = (PrivateKey.generate() for _ in range(3))
    now = time.time_ns()
    day = 86_400 * 10**9
    honest = [
        make_entry(before, now_ns=now - 9 * day),
        make_entry(stolen, before, now_ns=now - 8 * day),
    ]
    thieves = make_entry(thief, stolen, overlap_s=10, now_ns=now - day // 2)
    entries = make_entries()
    statement = sign(entries, make_finished(), thief, clock=lambda: now)
    data = spell(statement, entries, [*honest, thieves])
    known = SavedKeys(honest, {stolen.public.key_id: datetime.now(UTC) - timedelta(days=1)})
    for trusted in (before, stolen):
        # Without the time of the theft, nothing tells this key from the server's next one.
        assert verify_bundle(data, [trusted.public.pem]).verified
        report = verify_bundle(data, [trusted.public.pem], demands=Demands(known_keys=known))
        assert not report.verified, report.checks
    given = [stolen.public.pem, thief.public.pem]
    assert verify_bundle(data, given, demands=Demands(known_keys=known)).verified


def test_saved_list_has_the_keys_of_many_servers() -> None:
    signer, entries = PrivateKey.generate(), make_entries()
    own = make_entry(signer)
    # Each server's list begins anew.
    listed = [*(make_entry(PrivateKey.generate()) for _ in range(70)), own]
    page = {"keys": [{"entry": base64.b64encode(data).decode()} for data in listed]}
    statement = sign(entries, make_finished(), signer)
    data = spell(statement, entries, [own])
    lines = [json.dumps(key) for key in page["keys"]]
    for saved in (json.dumps(page), "\n".join(lines)):
        known = parse_saved_list(saved.encode())
        assert len(known.entries) == len(listed)
        assert verify_bundle(data, [signer.public.pem], demands=Demands(known_keys=known)).verified
    # A bundle's own list stays short.
    assert not verify_bundle(spell(statement, entries, listed), [signer.public.pem]).verified


def make_replicas(directory: Path) -> tuple[Path, Sequence[Path]]:
    """Return the path of a key that two servers share, and the lists in their data directories."""
    lists = []
    for name in ("a", "b"):
        (directory / name).mkdir()
        lists.append(directory / name / LIST_NAME)
    (directory / "shared").mkdir()
    return directory / "shared" / "key.pem", lists


def test_servers_that_share_a_key_follow_its_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    key, lists = make_replicas(tmp_path)
    replicas = [SigningKeys.open(key, path) for path in lists]
    assert replicas[0].active.public.key_id == replicas[1].active.public.key_id
    for path in lists:
        new_id = rotate(key, path, 10).key.key_id
        for keys in (*replicas, *(SigningKeys.open(key, path) for path in lists)):
            assert keys.choose().public.key_id == new_id
            assert keys.list_keys()[-1].entry.key.key_id == new_id
    assert len(replicas[0].list_keys()) == 3


def test_list_beside_a_key_stays_the_one_of_its_rotations(tmp_path: Path) -> None:
    _, (own, other) = make_replicas(tmp_path)
    key = own.parent / KEY_NAME
    for path in (own, other):
        SigningKeys.open(key, path)
    for path in (other, own, other):
        new_id = rotate(key, path, 10).key.key_id
        for again in (own, other):
            assert SigningKeys.open(key, again).active.public.key_id == new_id


def test_servers_that_share_a_key_start_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, lists = make_replicas(tmp_path)
    thread = threading.Thread(target=lambda: SigningKeys.open(key, lists[1]))
    write = write_private

    def write_beside(path: Path, content: bytes, like: Path | None = None) -> None:
        """Let the other server start after the first has found no key."""
        monkeypatch.setattr(signing_keys, "write_private", write)
        thread.start()
        thread.join(0.5)
        write(path, content, like)

    monkeypatch.setattr(signing_keys, "write_private", write_beside)
    SigningKeys.open(key, lists[0])
    thread.join(60)
    assert not thread.is_alive()
    ids = {SigningKeys.open(key, path).active.public.key_id for path in lists}
    assert len(ids) == 1


def test_rotation_follows_a_link_and_keeps_owner_and_mode(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.mkdir()
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    key = tmp_path / "key.pem"
    key.symlink_to(target / "key.pem")
    SigningKeys.open(key, data_dir / LIST_NAME)
    owner = (12_345, 12_346) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(target / "key.pem", *owner)
    (target / "key.pem").chmod(0o640)
    new_id = rotate(key, data_dir / LIST_NAME, 10).key.key_id
    assert key.is_symlink()
    assert SigningKeys.open(key, data_dir / LIST_NAME).active.public.key_id == new_id
    for path in (key, target / "key.pem.list"):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == owner
        assert found.st_mode & 0o777 == 0o640


def test_overlap_is_longer_than_a_running_server_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_keys(tmp_path)
    with pytest.raises(SystemExit):
        main(["signing-keys", "rotate", "--data-dir", str(tmp_path), "--overlap", "9"])
    assert "from 10" in capsys.readouterr().err
    assert len(open_keys(tmp_path).listed) == 1


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


def test_key_service_that_has_not_begun_the_list_has_to_answer(tmp_path: Path) -> None:
    open_keys(tmp_path)
    with pytest.raises(ConfigurationError, match="file2:/no/such/key"):
        open_proof(tmp_path, "file2:/no/such/key", {})


def test_rotation_keeps_the_key_service_of_the_list(tmp_path: Path) -> None:
    service = tmp_path / "service.pem"
    write_private(service, PrivateKey.generate().encode())
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    open_proof(data_dir, f"file2:{service}", {})
    new_id = rotate(data_dir / KEY_NAME, data_dir / LIST_NAME, 10).key.key_id
    service.unlink()
    assert open_proof(data_dir, f"file2:{service}", {}).keys.active.public.key_id == new_id


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("azurekms:VAULT", "azurekms:VAULT/KEY"),
        ("azurekms:VAULT/", "azurekms:VAULT/KEY"),
        ("hsm:abc", "hsm:NUMBER"),
        ("awskms:", "awskms:KEY"),
        ("file2:/", "file2:PATH"),
        ("awskm:alias/x", "awskms, azurekms, gcpkms, hsm, file2"),
        (" ", "expected FILE"),
        ("a\0b", "expected FILE"),
    ],
)
def test_places_that_name_no_key_are_refused(place: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_signing_key(place)


@pytest.mark.parametrize(
    "place",
    [
        "key.pem",
        "/keys/a:b.pem",
        "./awskm:x",
        "awskms:arn:aws:kms:eu-west-1:1:key/2",
        "azurekms:VAULT/KEY",
        "gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "hsm:2",
        "file2:/keys/root.pem",
    ],
)
def test_places_of_keys_are_taken(place: str) -> None:
    assert parse_signing_key(place) == place


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
