"""The transparency log before programs of others: tessera-fsck, and the witness litewitness."""

import base64
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import apsw
import pytest
from backend_process import find_free_port
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from required import find_program, skip_without
from transparency import generate, grow, make_options, open_log
from waiting import wait_until

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.merkle_tree import EMPTY_ROOT
from whence.proof.notes import COSIGNATURE, NoteSigner, VerifierKey
from whence_server.domain.errors import CheckpointPendingError
from whence_server.proof.log.witnesses import Witness


def check_directory(folder, key_text, tmp_path):
    """Return what tessera-fsck says about a log in a directory."""
    program = find_program("tessera-fsck")
    key = tmp_path / "log.vkey"
    key.write_text(key_text)
    ran = subprocess.run(
        [program, f"--storage_url=file://{folder}/", f"--public_key={key}", "--ui=false"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.stdout + ran.stderr


async def test_a_monitor_finds_every_tile_and_every_entry_right(tmp_path):
    find_program("tessera-fsck")
    folder = tmp_path / "public"
    options = make_options(tmp_path, origin="example.com/log", directory=folder)
    async with open_log(tmp_path, options) as (journal, log):
        key = log.verifier_key
        for numbers in (range(1, 4), range(4, 701)):
            newest = await grow(journal, log, *numbers)
            await wait_until(lambda size=newest.size: is_shown(folder, key, size), 60)
            said = check_directory(folder, key, tmp_path)
            assert f"Successfully fsck'd log with size {newest.size}" in said, said
            if newest.size == 3:
                shutil.copytree(folder, tmp_path / "changed")
    tile = tmp_path / "changed" / "tile" / "entries" / "000.p" / "3"
    content = bytearray(tile.read_bytes())
    content[40] ^= 1
    tile.write_bytes(content)
    assert "fsck failed" in check_directory(tmp_path / "changed", key, tmp_path)


def is_shown(folder, key, size):
    shown = folder / "checkpoint"
    if not shown.exists():
        return False
    return verify_checkpoint(shown.read_bytes(), VerifierKey.parse(key)).checkpoint.size == size


@contextmanager
def run_agent(private, folder):
    """Run an ssh-agent with a key; yield its socket and the key's fingerprint."""
    for program in ("ssh-agent", "ssh-add", "ssh-keygen"):
        if shutil.which(program) is None:
            skip_without("litewitness", f"{program} is not installed, which litewitness needs")
    path = folder / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not path.exists():
            assert agent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        key = folder / "id_ed25519"
        key.touch(mode=0o600)
        key.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", str(key)], env=environment, check=True, capture_output=True)
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(key)], check=True, capture_output=True, text=True
        )
        yield path, listed.stdout.split()[1]
    finally:
        agent.terminate()
        agent.wait(30)


@contextmanager
def run_litewitness(folder, log_key):
    """Run litewitness for a log; yield what the log's `--witness` takes."""
    program = find_program("litewitness")
    private = Ed25519PrivateKey.generate()
    port = find_free_port()
    with run_agent(private, folder) as (agent, fingerprint):
        command = [program, "-name", "example.com/w", "-key", fingerprint]
        command += ["-ssh-agent", str(agent), "-db", str(folder / "litewitness.db")]
        with (folder / "litewitness.log").open("w") as said:
            process = subprocess.Popen(
                [*command, "-listen", f"localhost:{port}"], stdout=said, stderr=said
            )
        try:
            wait_for_port(process, port, folder / "litewitness.log")
            enter_log(folder / "litewitness.db", log_key)
            key = NoteSigner("example.com/w", private, COSIGNATURE).key
            yield Witness(f"http://localhost:{port}", key)
        finally:
            process.terminate()
            process.wait(30)


def wait_for_port(process, port, log):
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with socket.socket(socket.AF_INET) as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.05)


def enter_log(path, key):
    database = apsw.Connection(str(path))
    database.set_busy_timeout(30_000)

    empty = base64.b64encode(EMPTY_ROOT).decode()
    database.execute(
        "INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", (key.name, empty)
    )
    database.execute("INSERT INTO key (origin, key) VALUES (?, ?)", (key.name, str(key)))
    database.close()


async def test_a_witness_of_others_cosigns_growth_and_finds_a_rewritten_store(tmp_path, caplog):
    find_program("litewitness")
    async with open_log(tmp_path, make_options(tmp_path, origin="example.com/log")) as (_, log):
        key = VerifierKey.parse(log.verifier_key)
    with run_litewitness(tmp_path, key) as witness:
        options = make_options(tmp_path, origin="example.com/log", witnesses=(witness,), quorum=1)
        async with open_log(tmp_path, options) as (journal, log):
            for numbers in ((1, 2, 3), (4,), range(5, 300)):
                generate(journal, *numbers)
                await journal.flush()
                await wait_until(lambda size=numbers[-1]: log.stats.size == size, 60)
            verified = verify_checkpoint(await log.read_checkpoint(), key, [witness.key], 1)
            assert verified.checkpoint.size == 299
            assert verified.witnesses["example.com/w"] > 1_700_000_000
        async with open_log(tmp_path, options, tmp_path / "rewritten") as (journal, log):
            generate(journal, *range(2, 400))
            await journal.flush()
            await wait_until(lambda: "were changed or cut off" in caplog.text, 60)
            with pytest.raises(CheckpointPendingError):
                await log.read_checkpoint()
