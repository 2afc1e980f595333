"""The engine process: `python -m whence_server.engines.transformers.worker FD HEART`.

FD is the engine's end of a socket pair, inherited from the front, and HEART the write end of a
pipe for its heartbeat. The first message is the `EngineOptions`, which `Ready` or `LoadFailed`
answers. Then the loop runs until the front closes its end or exits; the engine then exits at once,
even during a forward pass.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from whence_server import logs
from whence_server.domain.engine import Turn
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.adapter_places import find_adapters
from whence_server.engines.transformers.handshake import EngineOptions, LoadFailed, Ready
from whence_server.engines.transformers.inbox import Inbox
from whence_server.processes import channel
from whence_server.processes.heartbeat import Heart, Phase

logger = logging.getLogger(__name__)

EXIT_LOAD_FAILED = 3


def main(descriptor: int, heart_descriptor: int) -> int:
    """Serve the front at the other end of the socket; return an exit status if loading fails."""
    # The front alone handles a Ctrl-C in its terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Importing and loading make a million objects that stay: collecting between takes a second.
    gc.disable()
    connection = socket.socket(fileno=descriptor)
    heart = Heart(heart_descriptor)
    heart.start()
    try:
        options: EngineOptions = channel.receive(connection)
    except (EOFError, OSError):
        return 0
    logs.configure(options.log_level, options.log_format)
    inbox = Inbox()
    threading.Thread(target=_receive, args=(connection, inbox), name="inbox", daemon=True).start()
    try:
        _serve(options, connection, inbox, heart)
    except ConfigurationError as error:
        connection.sendall(channel.encode(LoadFailed(error.message)))
    return EXIT_LOAD_FAILED


def _serve(
    options: EngineOptions,
    connection: socket.socket,
    inbox: Inbox,
    heart: Heart,
) -> None:
    # Importing torch takes seconds, and so comes after the thread that watches the front's end, and
    # after the check that the model exists.
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    places.list_base_weights()
    find_adapters(options.adapters, places)
    import torch

    from whence_server.engines.transformers.importing import leave_out_scipy

    with leave_out_scipy():
        from transformers import PreTrainedModel as _  # noqa: F401 - what all models import
    from whence_server.engines.transformers.compiled_constraints import (
        CompiledConstraints,
        load_compiler,
    )
    from whence_server.engines.transformers.decoding import Chooser
    from whence_server.engines.transformers.decoding.devices import choose_kernels
    from whence_server.engines.transformers.generation_config import check_batch
    from whence_server.engines.transformers.loading import load
    from whence_server.engines.transformers.loop import EngineLoop
    from whence_server.engines.transformers.scheduler import Scheduler

    def send(turn: Turn) -> None:
        frame = channel.encode(turn)
        heart.phase = Phase.SENDING
        connection.sendall(frame)
        heart.phase = Phase.WORKING

    with ThreadPoolExecutor(1, "kernels") as pool:
        # Compiling them, or loading them from the cache, takes about as long as loading a model.
        compiled = pool.submit(choose_kernels, torch.device(options.device))
        loaded = load(options._replace(model=str(places.source)))
        compiled.result()
    info = loaded.info
    check_batch(info.defaults, options.max_batch_size, places.base)
    loop = EngineLoop(
        loaded.make_runner(),
        Chooser(info.vocabulary_size, loaded.model.device),
        Scheduler(
            options.max_batch_size,
            options.max_cache_tokens,
            options.prefill_chunk_tokens,
            whole_prompts=not info.batched,
        ),
        info.max_context_length,
        send,
    )
    inbox.compile_constraint = CompiledConstraints(lambda: load_compiler(info)).compile
    connection.sendall(channel.encode(Ready(info)))
    logger.info("%s is ready: %s, %s", info.name, info.architecture, info.environment)
    # What was loaded stays: no collection needs to look at it again.
    gc.collect()
    gc.freeze()
    gc.enable()
    deferred = deque(loaded.deferred)
    while True:
        if loop.is_idle:
            while deferred and inbox.is_empty():
                _do(deferred.popleft())
            heart.phase = Phase.IDLE
            message = inbox.get()
            heart.phase = Phase.WORKING
            loop.handle(message)
        while not inbox.is_empty():
            loop.handle(inbox.get())
        heart.num_turns += 1
        loop.run_turn()


def _do(deferred: Callable[[], object]) -> None:
    try:
        deferred()
    except Exception as error:  # noqa: BLE001 - raised again where it is needed
        logger.warning("work for internals failed and is done again when needed: %r", error)


def _receive(connection: socket.socket, inbox: Inbox) -> None:
    """Queue messages from the front; exit the process when the front has ended."""
    try:
        while True:
            inbox.put(channel.receive(connection))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
