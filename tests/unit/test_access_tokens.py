"""The file of callers: its lines, its reading again, and the command that makes a token."""

import errno
import hashlib
import json
from pathlib import Path

import pytest

from whence_server.access.token_file import TokenFile, read_token_file
from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.identity import Scope

DIGEST = hashlib.sha256(b"secret").hexdigest()
ALICE = {"id": "alice", "sha256": DIGEST, "scopes": ["generate", "read:content"]}


def write(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text("# callers\n\n" + "".join(f"{json.dumps(e)}\n" for e in entries))
    path.chmod(0o600)
    return path


def test_token_is_found_by_its_sha256_and_certificate_by_its_name(tmp_path: Path) -> None:
    billing = {"id": "billing", "certificate": "URI:spiffe://x/billing", "scopes": []}
    file = TokenFile(write(tmp_path / "callers", ALICE, billing))
    found = file.find_token("secret")
    assert found is not None
    assert found.identity.id == "alice"
    assert found.identity.scopes == {Scope.GENERATE, Scope.READ_CONTENT}
    for other in ("", "Secret", "secret ", DIGEST, "séc"):
        assert file.find_token(other) is None
    by_name = file.find_certificate(("CN:x", "URI:spiffe://x/billing"))
    assert by_name is not None
    assert by_name.identity.id == "billing"
    assert file.find_certificate(("URI:spiffe://x/billing2", "DNS:spiffe://x/billing")) is None


def test_entry_expires_at_its_time(tmp_path: Path) -> None:
    old = ALICE | {"expires": "2020-01-01T00:00:00+01:00"}
    new = ALICE | {"sha256": "0" * 64, "expires": "2999-01-01T00:00:00Z"}
    first, second = read_token_file(write(tmp_path / "callers", old, new))
    assert first.has_expired()
    assert not second.has_expired()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        (json.dumps(ALICE | {"scope": []}), "unknown field 'scope'; known are certificate, exp"),
        (json.dumps(ALICE | {"id": "a b"}), "id: expected 1 to 128 printable ASCII"),
        (json.dumps(ALICE | {"sha256": "secret"}), "sha256: expected 64 lower-case hex digits"),
        (json.dumps(ALICE | {"certificate": "CN:x"}), "expected either sha256 or certificate"),
        (json.dumps(ALICE | {"scopes": "read"}), "scopes: expected a list of generate, read"),
        (json.dumps(ALICE | {"scopes": ["all"]}), "scopes: 'all' is none of generate, read"),
        (json.dumps(ALICE | {"expires": "2030-01-01"}), "expires: expected a time with a zone"),
        (json.dumps({"id": "b", "certificate": "x", "scopes": []}), "certificate: expected DNS:"),
        (json.dumps(ALICE | {"id": "bob"}), "an earlier line has the same token"),
    ],
)
def test_malformed_line_is_refused_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    path = write(tmp_path / "callers", ALICE)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigurationError) as caught:
        read_token_file(path)
    assert caught.value.message.startswith(f"--auth-tokens {path}, line 4: {told}")
    assert DIGEST not in caught.value.message


def test_changed_file_is_read_again_and_an_unusable_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "callers", ALICE)
    file = TokenFile(path)
    path.write_text("{")
    assert file.find_token("secret") is not None
    assert "the callers of before stay valid" in caplog.text
    write(tmp_path / "next", ALICE | {"sha256": "0" * 64}).rename(path)
    assert file.find_token("secret") is None, "the token was revoked"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "callers", ALICE)
    path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        TokenFile(path)
    told = f"--auth-tokens {path}: its group or others can write to it (mode {mode:03o})"
    assert caught.value.message.startswith(told)
    assert f"chmod go-w {path}" in caught.value.message
    path.chmod(0o644)
    assert TokenFile(path).find_token("secret") is not None, "others may read: it has no tokens"


def test_changed_file_that_others_can_write_to_leaves_the_callers_of_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    path = write(tmp_path / "callers", ALICE)
    file = TokenFile(path, lambda: now_s)
    write(path, ALICE | {"sha256": hashlib.sha256(b"intruder").hexdigest()}).chmod(0o666)
    for _ in range(2):
        assert file.find_token("intruder") is None
        assert file.find_token("secret") is not None
    assert caplog.text.count("its group or others can write to it (mode 666)") == 1
    path.chmod(0o600)
    now_s += 1.0
    assert file.find_token("intruder") is not None


def test_revocation_is_not_lost_when_the_file_cannot_be_read_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    path = write(tmp_path / "callers", ALICE)
    file = TokenFile(path, lambda: now_s)
    write(path, ALICE | {"sha256": "0" * 64})

    def fail(*_arguments: object, **_options: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        for _ in range(3):
            assert file.find_token("secret") is not None
    assert caplog.text.count("the callers of before stay valid") == 1, "strangers fill no log"
    now_s += 1.0
    assert file.find_token("secret") is None, "the token was revoked"


def test_made_token_is_shown_once_and_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "callers"
    arguments = ["token", "new", "--id", "alice", "--scopes", "generate, read", "--expires", "90d"]
    assert main([*arguments, "--auth-tokens", str(path)]) == 0
    first = capsys.readouterr().out.strip()
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    assert main([*arguments, "--auth-tokens", str(path)]) == 0
    second = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len({first, second}) == 2
    file = TokenFile(path)
    for token in (first, second):
        assert token.startswith("whence_")
        assert len(token) >= 50, "256 bits"
        assert token not in path.read_text()
        found = file.find_token(token)
        assert found is not None
        assert found.identity.scopes == {Scope.GENERATE, Scope.READ}
        assert found.expires is not None


def test_line_is_printed_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", "--id", "a", "--scopes", "metrics"]) == 0
    out, err = capsys.readouterr()
    line = json.loads(err.partition(": ")[2])
    assert line == {
        "id": "a",
        "sha256": hashlib.sha256(out.strip().encode()).hexdigest(),
        "scopes": ["metrics"],
    }


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("--id", "a b"), "--id 'a b': expected 1 to 128"),
        (("--scopes", "all"), "--scopes 'all': scopes: 'all' is none of"),
        (("--expires", "2020-01-01T00:00:00Z"), "or a time to come with a zone"),
        (("--expires", "soon"), "expected a length of time, as 90d or 12h"),
    ],
)
def test_unusable_argument_makes_no_token(
    changed: tuple[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"--id": "a", "--scopes": "read"} | dict([changed])
    flat = [part for pair in arguments.items() for part in pair]
    assert main(["token", "new", *flat]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
