"""Printing of an explanation: its trust, the context with its weights, and small tables."""

from collections.abc import Iterator, Sequence

from whence.cli.plots import format_bar
from whence.cli.render import fit_columns
from whence.summary import escape, quote
from whence.summary.explanations import describe_computation, describe_span, describe_trust
from whence.v1 import explanation_pb2 as pb

LISTED = 8
"""Maximum number of listed segments, strongest first; `--json` has all."""
MOST_LAYERS = 12
"""Maximum number of listed layers, strongest first; `--json` has all."""

_NAME_COLUMNS = 12
_TEXT_COLUMNS = 40
_BAR_COLUMNS = 20
# (text, background) from pale to deep in the 256-colour palette.
_FOR = ((16, 189), (16, 153), (16, 117), (16, 75), (231, 33), (231, 27), (231, 21), (231, 19))
_AGAINST = (
    (16, 224),
    (16, 217),
    (16, 210),
    (16, 203),
    (231, 196),
    (231, 160),
    (231, 124),
    (231, 88),
)
_LEAST_SHOWN = 0.05
"""Share of the strongest score below which a segment has no colour and no sign."""


def format_explanation(explanation: pb.Explanation, *, color: bool) -> Iterator[str]:
    """Yield the lines of an explanation, its trust first.

    Args:
        explanation: the explanation.
        color: True to show the weights as colours, False as signs.
    """
    yield format_fact("trust", describe_trust(explanation))
    yield format_fact("explained", describe_span(explanation.span))
    yield format_fact("method", describe_computation(explanation))
    if explanation.scores:
        yield ""
        yield from _format_context(explanation, color=color)
        yield ""
        yield from _format_segments(explanation)
    if explanation.HasField("decomposition"):
        yield ""
        yield from _format_terms(explanation.decomposition)
    if explanation.HasField("patching"):
        yield ""
        yield from _format_map(explanation)


def format_fact(name: str, told: str) -> str:
    """Return a fact's line."""
    return f"{name:<{_NAME_COLUMNS}}{escape(told)}"


def format_signs(strength: float) -> str:
    """Return the weight of a segment as signs, "" if it is weak.

    Args:
        strength: score divided by the strongest score's amount, from -1 to 1.
    """
    if abs(strength) < _LEAST_SHOWN:
        return ""
    sign = "+" if strength > 0 else "-"
    return sign * (1 if abs(strength) < 1 / 3 else 2 if abs(strength) < 2 / 3 else 3)


def compute_strengths(scores: Sequence[float]) -> list[float]:
    """Return each score divided by the strongest one's amount."""
    most = max(map(abs, scores), default=0.0)
    return [score / most if most else 0.0 for score in scores]


def _format_context(explanation: pb.Explanation, *, color: bool) -> Iterator[str]:
    """Yield the segments' text, each in the colour of its score, or after its signs."""
    parts: list[str] = []
    before = 0
    strengths = compute_strengths(explanation.scores)
    for segment, strength in zip(explanation.segments, strengths, strict=False):
        if parts and segment.begin > before:
            # Tokens between segments are the chat template's own.
            parts.append("\n")
        before = segment.end
        text = escape(segment.text) or f"[{segment.begin}:{segment.end}]"
        signs = format_signs(strength)
        if not signs:
            parts.append(text)
        elif color:
            parts.append(_paint(text, strength))
        else:
            parts.append(_mark(text, signs))
    yield from "".join(parts).strip("\n").split("\n")


def _mark(text: str, signs: str) -> str:
    """Return a text with signs around its words, without its outer spaces."""
    solid = text.strip()
    begin = text.index(solid) if solid else 0
    return f"{text[:begin]}{{{signs} {solid}}}{text[begin + len(solid) :]}"


def _paint(text: str, strength: float) -> str:
    ramp = _FOR if strength > 0 else _AGAINST
    ink, paper = ramp[min(int(abs(strength) * len(ramp)), len(ramp) - 1)]
    # A colour that goes on over a line break would fill the rest of the line.
    return "\n".join(
        f"\x1b[38;5;{ink};48;5;{paper}m{line}\x1b[39;49m" if line else ""
        for line in text.split("\n")
    )


def _format_segments(explanation: pb.Explanation) -> Iterator[str]:
    rows = sorted(
        zip(explanation.scores, explanation.segments, strict=False), key=lambda row: -abs(row[0])
    )
    most = abs(rows[0][0])
    yield f"{'score':>9}  {fit_columns('segment', _TEXT_COLUMNS)}  positions"
    for score, segment in rows[:LISTED]:
        text = quote(segment.text) if segment.text else ""
        place = f"{segment.begin}-{segment.end - 1}"
        bar = format_bar(abs(score), most, _BAR_COLUMNS)
        yield f"{score:>+9.3f}  {fit_columns(text, _TEXT_COLUMNS)}  {place:<9}  {bar}".rstrip()
    if len(rows) > LISTED:
        rest = sum(score for score, _ in rows[LISTED:])
        yield f"{rest:>+9.3f}  the {len(rows) - LISTED:,} others together"


def _format_terms(terms: pb.ValueDecomposition) -> Iterator[str]:
    """Yield the terms of the strongest layers, and of the parts beside the layers."""
    heads = [
        list(terms.heads[layer * terms.num_heads : (layer + 1) * terms.num_heads])
        for layer in range(terms.num_layers)
    ]
    rests = list(terms.attention_rests) or [0.0] * terms.num_layers
    attention = [sum(own) + rest for own, rest in zip(heads, rests, strict=False)]
    mlps = list(terms.mlps) or [0.0] * terms.num_layers
    strongest = sorted(
        range(min(len(attention), len(mlps))),
        key=lambda layer: -max(abs(attention[layer]), abs(mlps[layer])),
    )
    yield f"{'layer':>9}  {'attention':>9}  {'MLP':>9}  strongest head"
    for layer in sorted(strongest[:MOST_LAYERS]):
        head = max(range(len(heads[layer])), key=lambda i: abs(heads[layer][i]), default=None)
        told = "" if head is None else f"{head}: {heads[layer][head]:+.3f}"
        yield f"{layer:>9}  {attention[layer]:>+9.3f}  {mlps[layer]:>+9.3f}  {told}".rstrip()
    others = strongest[MOST_LAYERS:]
    if others:
        yield (
            f"{'others':>9}  {sum(attention[i] for i in others):>+9.3f}  "
            f"{sum(mlps[i] for i in others):>+9.3f}"
        )
    for name, value in (
        ("embedding", terms.embedding),
        ("norm bias", terms.norm_bias),
        ("head bias", terms.head_bias),
        ("residual", terms.residual),
    ):
        yield f"{name:>9}  {value:>+9.3g}"


def _format_map(explanation: pb.Explanation) -> Iterator[str]:
    """Yield the positions and layers at which a restored activation recovers most."""
    found = explanation.patching
    num_positions = len(found.positions)
    order = sorted(range(len(found.shares)), key=lambda i: -found.shares[i])
    texts = {
        position: segment.text
        for segment in explanation.segments
        for position in range(segment.begin, segment.end)
    }
    yield f"{'recovered':>9}  {'layer':>5}  {'position':>8}  in"
    for i in order[:LISTED]:
        layer, position = divmod(i, num_positions)
        place = found.positions[position]
        text = fit_columns(quote(texts.get(place, "")), _TEXT_COLUMNS)
        yield f"{found.shares[i]:>9.1%}  {layer:>5}  {place:>8}  {text}".rstrip()
