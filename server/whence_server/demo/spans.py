"""Printing of the spans that the demo's own collector received."""

from collections import Counter, defaultdict

from opentelemetry.proto.trace.v1.trace_pb2 import Span


def print_collector(endpoint: str, trace_url: str) -> None:
    """Print the collector of the user's own, to which the spans went."""
    print("\nWhere the spans went")
    print(f"  to your collector, {endpoint}: look there for the service `whence`")
    if trace_url:
        print("  (the link below each generation opens its trace)")


def print_spans(spans: list[Span]) -> None:
    """Print the number of spans by name, and the trace of the last generation as a tree."""
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
