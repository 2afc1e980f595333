"""`whence-server witness`: cosign the checkpoints of other people's logs."""

import argparse
import asyncio
import signal
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence.proof.notes import (
    COSIGNATURE,
    ED25519,
    NoteError,
    NoteSigner,
    VerifierKey,
    check_name,
)
from whence_server.domain.addresses import parse_host_port
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.log.keys import load_key, make_key
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.server import RateLimit, WitnessServer
from whence_server.proof.witness.witness import Witness


def run(parsed: argparse.Namespace) -> int:
    """Run the witness until SIGTERM or SIGINT; return the exit status."""
    try:
        keys = [VerifierKey.parse(text) for text in parsed.logs]
    except NoteError as error:
        raise ConfigurationError(f"--log: {error}") from None
    logs: dict[str, list[VerifierKey]] = {}
    for key in keys:
        if key.algorithm != ED25519:
            raise ConfigurationError(f"--log: the key of {key.name} is one of a witness")
        logs.setdefault(key.name, []).append(key)
    if not parsed.max_rate > 0:
        raise ConfigurationError("--max-rate: expected a number above 0")
    try:
        check_name(parsed.name)
        host, port = parse_host_port(parsed.listen)
    except ValueError as error:
        raise ConfigurationError(f"--name or --listen: {error}") from None
    _check_memory(parsed.key, parsed.db, is_new=parsed.new_memory)
    # The database is there before the key: after a crash between them the two begin anew.
    memory = WitnessMemory(parsed.db, list(logs))
    limit = RateLimit(parsed.max_rate, max(1, round(10 * parsed.max_rate)))
    try:
        signer = NoteSigner(parsed.name, _open_key(parsed.key, memory), COSIGNATURE)
        memory.bind(str(signer.key))
        server = WitnessServer(Witness(signer, logs, memory), host, port, limit)
        return asyncio.run(_serve(server, signer, parsed.url))
    finally:
        memory.close()


def _check_memory(key: Path, db: Path, *, is_new: bool) -> None:
    """Refuse a key that was used with another memory.

    Raises:
        ConfigurationError: the key exists, and the database does not.
    """
    if key.exists() and not db.exists() and not is_new:
        raise ConfigurationError(
            f"--db {db} does not exist, and --key {key} has been used: with an empty memory the "
            "witness would cosign a log that was rewritten. Give the database of this key, or make "
            "a new key; --new-memory begins with an empty one all the same"
        )


def _open_key(path: Path, memory: WitnessMemory) -> Ed25519PrivateKey:
    """Load the witness's key; make it if it and the memory are new.

    Raises:
        ConfigurationError: it cannot be read or written, or the memory is that of a lost key.
    """
    if path.exists():
        return load_key("--key", path)
    if memory.owner:
        raise ConfigurationError(
            f"--key {path} does not exist, and --db is the memory of the witness {memory.owner}: "
            "give its key, or begin with a new key and a new database"
        )
    return make_key("--key", path)


async def _serve(server: WitnessServer, signer: NoteSigner, url: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    # The only line on standard output: what a log's `--witness` takes.
    print(f"{url.rstrip('/') or server.url}={signer.key}", flush=True)
    try:
        await stop.wait()
    finally:
        await server.close()
    return 0
