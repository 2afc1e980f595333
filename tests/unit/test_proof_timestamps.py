"""Timestamps of checkpoints, from an authority that OpenSSL runs."""

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from required import skip_without
from timestamp_authority import Authority

from whence.cli.authority import ask_authority
from whence.cli.exits import UsageError
from whence.cli.main import main
from whence.proof.checkpoints import Checkpoint
from whence.proof.faults import ProofError
from whence.proof.notes import NoteSigner, SignedNote
from whence.proof.timestamps import check_timestamp, make_query


def make_signer(secret: bytes) -> NoteSigner:
    return NoteSigner("example.com/log", Ed25519PrivateKey.from_private_bytes(secret * 32))


def make_note(size: int, secret: bytes = b"l") -> bytes:
    signer = make_signer(secret)
    text = Checkpoint("example.com/log", size, b"r" * 32).format()
    return SignedNote(text, (signer.sign(text),)).format()


NOTE = make_note(7)
KEY = ("--log-key", str(make_signer(b"l").key))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        skip_without("openssl", "there is no openssl on the PATH")
    return Authority(tmp_path_factory.mktemp("authority") / "files")


@pytest.fixture(scope="module")
def answer(authority: Authority) -> bytes:
    return authority.answer(make_query(NOTE).data)


@pytest.fixture(scope="module")
def url(authority: Authority) -> Iterator[str]:
    with authority.serve() as url:
        yield url


def test_commands_stamp_a_checkpoint_and_tell_the_time(
    authority: Authority, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoint"
    file.write_bytes(NOTE)
    root = ("--authority-root", str(authority.root))
    assert main(["log", "timestamp", str(file), "--authority", url, *root]) == 0
    told = capsys.readouterr().out
    assert told.startswith("ok     the checkpoint of 7 entries of example.com/log was seen at 20")
    assert "the log's signature was not checked" in told
    assert main(["log", "time", str(file), *root, *KEY]) == 0
    assert capsys.readouterr().out.strip() in told
    # OpenSSL itself is the oracle for the file.
    judged = subprocess.run(
        [
            *("openssl", "ts", "-verify", "-data", str(file), "-in", f"{file}.tsr"),
            *("-CAfile", str(authority.root)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Verification: OK" in judged.stdout
    file.write_bytes(make_note(8))
    assert main(["log", "time", str(file), *root, *KEY]) == 1
    assert "FAULT  the timestamp does not hold: Mismatch" in capsys.readouterr().out


def test_stamped_checkpoint_that_the_log_has_not_signed_is_refused(
    authority: Authority, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, note = tmp_path / "checkpoint", make_note(9, b"x")
    file.write_bytes(note)
    (tmp_path / "checkpoint.tsr").write_bytes(authority.answer(make_query(note).data))
    root = ("--authority-root", str(authority.root))
    stamp = ["log", "timestamp", str(file), "--authority", url, *root]
    for command in (["log", "time", str(file), *root, *KEY], [*stamp, *KEY]):
        assert main(command) == 1
        assert "no signature of the log's key" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["log", "time", str(file), *root])
    assert "required: --log-key" in capsys.readouterr().err


def test_time_is_that_of_the_authority(authority: Authority, answer: bytes) -> None:
    seen = check_timestamp(NOTE, answer, [authority.root.read_bytes()] * 2)
    assert abs(datetime.now(UTC) - seen) < timedelta(hours=1)


def test_timestamp_of_another_authority_or_request_is_refused(
    authority: Authority, answer: bytes, tmp_path: Path
) -> None:
    root = authority.root.read_bytes()
    # A kept answer is none to a new request, which has another nonce.
    with pytest.raises(ProofError, match="Nonce"):
        check_timestamp(NOTE, answer, [root], make_query(NOTE))
    other = Authority(tmp_path / "other", "another").root.read_bytes()
    with pytest.raises(ProofError, match="does not hold"):
        check_timestamp(NOTE, answer, [other])
    assert check_timestamp(NOTE, answer, [other, root])
    for bad in (b"", b"no certificate"):
        with pytest.raises(ProofError, match="certificate is none"):
            check_timestamp(NOTE, answer, [bad])


def test_every_changed_byte_of_a_timestamp_is_refused_or_changes_nothing(
    authority: Authority, answer: bytes
) -> None:
    roots = [authority.root.read_bytes()]
    seen = check_timestamp(NOTE, answer, roots)
    num_refused = 0
    for place in range(len(answer)):
        changed = bytearray(answer)
        changed[place] ^= 1
        try:
            assert check_timestamp(NOTE, bytes(changed), roots) == seen
        except ProofError:
            num_refused += 1
    assert num_refused > len(answer) / 2
    for length in (0, 1, 20, len(answer) - 1):
        with pytest.raises(ProofError):
            check_timestamp(NOTE, answer[:length], roots)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--authority", "ftp://x"], "begins with http"),
        (["--authority", "http://127.0.0.1:9/"], "does not answer"),
        (["--authority", "http://127.0.0.1:abc/"], "does not answer"),
        (["--authority", "http://["], "does not answer"),
    ],
)
def test_authority_that_cannot_be_asked_is_told(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint").write_bytes(NOTE)
    (tmp_path / "root").write_bytes(b"")
    root = ("--authority-root", str(tmp_path / "root"))
    assert main(["log", "timestamp", str(tmp_path / "checkpoint"), *root, *flags]) == 2
    assert words in capsys.readouterr().err
    (tmp_path / "checkpoint").write_bytes(b"nothing")
    assert main(["log", "timestamp", str(tmp_path / "checkpoint"), *root, *flags]) == 2
    assert "no signatures" in capsys.readouterr().err


def test_servers_that_are_no_authority_are_told() -> None:
    released = threading.Event()

    def answer_slowly(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        # Each byte comes long before a socket's own timeout, and the last one after 50 s.
        while not released.wait(0.05):
            connection.sendall(b".")

    def answer_otherwise(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-x\r\n")

    for reply in (answer_otherwise, answer_slowly):
        released.clear()
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
            served = threads.submit(serve_once, server, reply)
            try:
                with pytest.raises(UsageError, match="does not answer"):
                    ask_authority(f"http://127.0.0.1:{server.getsockname()[1]}/", b"query", 0.5)
            finally:
                released.set()
            served.result(60)


def serve_once(server: socket.socket, reply: Callable[[socket.socket], object]) -> None:
    connection, _ = server.accept()
    with connection, contextlib.suppress(ConnectionError):
        connection.recv(64 << 10)
        reply(connection)
