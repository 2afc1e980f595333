"""The demo's server process, and the collector that its spans go to."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from whence_server.config.environment import copy_environment
from whence_server.config.telemetry import CAPTURE_VARIABLE
from whence_server.demo.warm_start import bring_findings, keep_findings

_ENDPOINTS = (
    "WHENCE_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)
# Variables that could keep spans from the demo's own collector.
_DISABLING_VARIABLES = (
    "WHENCE_SPAN_EXPORTER",
    "WHENCE_OTLP_PROTOCOL",
    "OTEL_TRACES_EXPORTER",
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
_LOOPBACK, _PAGE_PORT = "127.0.0.1", 8000
_OTLP_PREFIX = "OTEL_EXPORTER_OTLP_"
"""Prefix of variables, for example headers and certificates, that concern another collector."""


def find_collector(environment: Mapping[str, str]) -> str | None:
    """Return the collector's URL in the environment; None if no variable sets one."""
    return next((environment[name] for name in _ENDPOINTS if environment.get(name)), None)


def choose_page_flags(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the flags of a server that shows its page, at a port that is free."""
    if environment.get("WHENCE_HTTP_LISTEN"):
        return ()
    port = _PAGE_PORT
    try:
        with socket.create_server((_LOOPBACK, port)):
            pass
    except OSError:
        port = 0
    return ("--http-listen", f"{_LOOPBACK}:{port}")


@asynccontextmanager
async def run_server(
    model: Path, name: str, endpoint: str | None, head_weights: Path | None = None
) -> AsyncIterator[str]:
    """Run a server process on a new journal; yield the address that clients connect to.

    Args:
        model: directory of the model.
        name: name of the model for clients and spans.
        endpoint: URL of the demo's own collector; None leaves the export to the environment.
        head_weights: file of head weights for the sources; None weighs all heads alike.
    """
    print("Starting the server ...", flush=True)
    started = time.monotonic()
    # The demo shows spans, and most trace backends accept no metrics.
    environment = {"OTEL_METRICS_EXPORTER": "none", **copy_environment()}
    if endpoint is not None:
        environment = _remove_other_collectors_settings(environment)
    else:
        environment = _name_tokens(environment)
    export = [] if endpoint is None else ["--otlp-endpoint", endpoint, "--otlp-protocol", "grpc"]
    weigh = [] if head_weights is None else ["--head-weights", str(head_weights)]
    with TemporaryDirectory(prefix="whence-demo-") as data_dir:
        bring_findings(Path(data_dir))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "whence_server", "serve"),
            *("--model", str(model), "--model-name", name, "--data-dir", data_dir),
            *("--listen", "127.0.0.1:0", "--log-level", "warning", *export, *weigh),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            line = (await process.stdout.readline()).decode().strip()
            if not line.startswith("serving "):
                raise SystemExit(await process.wait() or 1)
            print(f"  {line}, after {time.monotonic() - started:.0f} s", flush=True)
            keep_findings(Path(data_dir))
            yield line.rsplit(" ", 1)[1]
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


def _name_tokens(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with texts on spans and in their names, unless it says otherwise."""
    named = {CAPTURE_VARIABLE: "SPAN_ONLY", "WHENCE_STEP_SPAN_NAMES": "token", **environment}
    print(
        "  (spans carry texts, and are named after their tokens: "
        f"{CAPTURE_VARIABLE}={named[CAPTURE_VARIABLE]}, "
        f"WHENCE_STEP_SPAN_NAMES={named['WHENCE_STEP_SPAN_NAMES']})"
    )
    return named


def _remove_other_collectors_settings(environment: Mapping[str, str]) -> dict[str, str]:
    left_out = [name for name in _DISABLING_VARIABLES if environment.get(name)]
    if left_out:
        print(f"  (not used, as the demo collects its spans itself: {', '.join(left_out)})")
    return {
        name: value
        for name, value in environment.items()
        if name not in left_out and not name.startswith(_OTLP_PREFIX)
    }
