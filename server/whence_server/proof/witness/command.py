"""`whence-server witness`: cosign the checkpoints of other people's logs."""

import argparse
import asyncio
import signal

from whence.proof.notes import COSIGNATURE, ED25519, NoteError, NoteSigner, VerifierKey
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
    private = (
        load_key("--key", parsed.key) if parsed.key.exists() else make_key("--key", parsed.key)
    )
    try:
        signer = NoteSigner(parsed.name, private, COSIGNATURE)
        host, port = parse_host_port(parsed.listen)
    except ValueError as error:
        raise ConfigurationError(f"--name or --listen: {error}") from None
    memory = WitnessMemory(parsed.db, list(logs))
    limit = RateLimit(parsed.max_rate, max(1, round(10 * parsed.max_rate)))
    try:
        server = WitnessServer(Witness(signer, logs, memory), host, port, limit)
        return asyncio.run(_serve(server, signer))
    finally:
        memory.close()


async def _serve(server: WitnessServer, signer: NoteSigner) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    # The only line on standard output: what a log's `--witness` takes.
    print(f"{server.url}={signer.key}", flush=True)
    try:
        await stop.wait()
    finally:
        await server.close()
    return 0
