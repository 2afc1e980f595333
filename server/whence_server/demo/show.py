"""The demo: a server on its model, three generations through the client, and their spans."""

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.config.environment import copy_environment
from whence_server.config.telemetry import CAPTURE_VARIABLE
from whence_server.demo.receiver import Receiver

PROMPT = "The for statement is used to"
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
_OTLP_PREFIX = "OTEL_EXPORTER_OTLP_"
"""Prefix of variables, for example headers and certificates, that concern another collector."""
_SPANS_S = 20.0
_NEXT = """
What to try next
  make serve                                    keep a server up on this model, then elsewhere:
  .venv/bin/whence generate "If the expression" --candidates
  .venv/bin/whence generate "A class definition" --temperature 0.8 --seed 7 --json
  .venv/bin/whence generations list             everything that was generated is on record
  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 \\
  WHENCE_TRACE_URL='http://localhost:16686/trace/{trace_id}' make demo
                                                the same, with its spans in your own Jaeger, and
                                                a link to each trace
"""


def find_collector(environment: Mapping[str, str]) -> str | None:
    """Return the collector's URL in the environment; None if no variable sets one."""
    return next((environment[name] for name in _ENDPOINTS if environment.get(name)), None)


async def show(model: Path, trace_url: str = "", head_weights: Path | None = None) -> int:
    """Run the demo, from the start of the server to its end.

    Args:
        model: directory of the model.
        trace_url: template of links to traces, if the user has a collector; "" for no links.
        head_weights: file of head weights for the sources; None weighs all heads alike.

    Returns:
        The exit status: 0, or that of the command that failed.
    """
    own_endpoint = find_collector(copy_environment())
    receiver = Receiver()
    try:
        await receiver.start()
        endpoint = None if own_endpoint else receiver.endpoint
        async with _run_server(model, head_weights, endpoint) as target:
            for options in (
                ("--greedy", "--max-new-tokens", "24", "--candidates"),
                (
                    "--temperature",
                    "0.8",
                    "--top-p",
                    "0.95",
                    "--max-new-tokens",
                    "24",
                    "--candidates",
                ),
                ("--temperature", "0.8", "--top-p", "0.95", "--max-new-tokens", "160"),
            ):
                status = await _generate(target, PROMPT, *options, trace_url=trace_url)
                if status:
                    return status
            if own_endpoint is None:
                await _wait_for_generations(receiver, 3)
        if own_endpoint is None:
            _print_spans(receiver.spans)
        else:
            _print_collector(own_endpoint, trace_url)
    finally:
        await receiver.close()
    print(_NEXT)
    return 0


@asynccontextmanager
async def _run_server(
    model: Path, head_weights: Path | None, endpoint: str | None
) -> AsyncIterator[str]:
    """Run a server process on a new journal; yield the address that clients connect to."""
    print("Starting the server ...", flush=True)
    with TemporaryDirectory(prefix="whence-demo-") as data_dir:
        async with _run_server_on(model, head_weights, data_dir, endpoint) as target:
            yield target


@asynccontextmanager
async def _run_server_on(
    model: Path, head_weights: Path | None, data_dir: str, endpoint: str | None
) -> AsyncIterator[str]:
    # The demo shows spans, and most trace backends accept no metrics.
    environment = {"OTEL_METRICS_EXPORTER": "none", **copy_environment()}
    if endpoint is not None:
        environment = _remove_other_collectors_settings(environment)
    else:
        environment = _name_tokens(environment)
    # Without an endpoint of the demo's own, the environment's variables configure the export.
    export = [] if endpoint is None else ["--otlp-endpoint", endpoint, "--otlp-protocol", "grpc"]
    weigh = [] if head_weights is None else ["--head-weights", str(head_weights)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "whence_server", "serve"),
        *("--model", str(model), "--model-name", "demo", "--data-dir", data_dir),
        *("--listen", "127.0.0.1:0", "--log-level", "warning", *export, *weigh),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    try:
        line = (await process.stdout.readline()).decode().strip()
        if not line.startswith("serving "):
            raise SystemExit(await process.wait() or 1)
        print(line, flush=True)
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


async def _generate(target: str, prompt: str, *options: str, trace_url: str) -> int:
    command = ["whence", "generate", prompt, *options]
    print("\n$ " + " ".join(_quote(word) for word in command), flush=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "whence.cli", *command[1:], "--target", target),
        *("--trace-url", trace_url),
    )
    return await process.wait()


def _quote(word: str) -> str:
    return f'"{word}"' if " " in word else word


async def _wait_for_generations(receiver: Receiver, num_generations: int) -> None:
    """Wait for the SERVER spans of `num_generations` generations; print a warning at a timeout."""
    try:
        async with asyncio.timeout(_SPANS_S):
            while sum(s.kind == Span.SPAN_KIND_SERVER for s in receiver.spans) < num_generations:
                await receiver.wait_for(receiver.num_spans + 1)
    except TimeoutError:
        print(f"\nNot all spans arrived within {_SPANS_S:.0f} seconds.", file=sys.stderr)


def _print_collector(endpoint: str, trace_url: str) -> None:
    print("\nWhere the spans went")
    print(f"  to your collector, {endpoint}: look there for the service `whence`")
    if trace_url:
        print("  (the link below each generation opens its trace)")


def _print_spans(spans: list[Span]) -> None:
    print("\nWhere the spans went")
    counts = Counter(span.name for span in spans)
    total = ", ".join(f"{n} {name}" for name, n in counts.items())
    print(f"  over OTLP to a collector that this demo ran itself: {total or 'none'}")
    servers = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    if not servers:
        print(
            "  no generation's spans arrived in time: this machine may be slow; run the demo again"
        )
        return
    last = servers[-1]
    print(f"  the last generation, trace {last.trace_id.hex()}:")
    children: defaultdict[bytes, list[Span]] = defaultdict(list)
    for span in {s.span_id: s for s in spans if s.trace_id == last.trace_id}.values():
        children[span.parent_span_id].append(span)
    _print_tree(last, children, "    ")


def _print_tree(span: Span, children: dict[bytes, list[Span]], indent: str) -> None:
    milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    print(
        f"{indent}{span.name:<{44 - len(indent)}} {milliseconds:8.2f} ms{_format_attributes(span)}"
    )
    below = sorted(children[span.span_id], key=lambda s: s.start_time_unix_nano)
    for child in below[:3]:
        _print_tree(child, children, indent + "  ")
    if len(below) > 3:
        print(f"{indent}  ... {len(below) - 3} more")


_SHOWN_ATTRIBUTES = ("whence.token.logprob", "whence.step.entropy", "whence.draw.margin")


def _format_attributes(span: Span) -> str:
    values = {a.key: a.value.double_value for a in span.attributes if a.key in _SHOWN_ATTRIBUTES}
    return "".join(f"  {key.removeprefix('whence.')} {value:.2f}" for key, value in values.items())
