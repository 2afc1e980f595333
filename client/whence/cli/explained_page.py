"""An explanation as a self-contained HTML page, without a program."""

import html
from collections.abc import Iterator
from pathlib import Path

from whence.cli.explained import compute_strengths, format_explanation, format_signs
from whence.page import write_page
from whence.summary.explanations import describe_computation, describe_span, describe_trust
from whence.v1 import explanation_pb2 as pb

_SHADES = 8
_HUES = {"for": 210, "against": 10}
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; margin: 2em auto; max-width: 50em; padding: 0 1em;
 background: #fff; color: #111 }}
dt {{ font-weight: 600 }}
.context {{ white-space: pre-wrap; overflow-wrap: anywhere }}
.context span {{ border-radius: 3px }}
pre {{ overflow-x: auto }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>
{facts}
</dl>
<p class="context">{context}</p>
<pre>{tables}</pre>
</body>
</html>
"""


def write_explanation_page(path: Path, explanation: pb.Explanation) -> None:
    """Write the page atomically.

    Raises:
        OSError: it cannot be written.
    """
    write_page(path, make_explanation_page(explanation))


def make_explanation_page(explanation: pb.Explanation) -> str:
    """Return an explanation as an HTML page, its trust first."""
    facts = (
        ("Trust", describe_trust(explanation)),
        ("Explained", describe_span(explanation.span)),
        ("Method", describe_computation(explanation)),
    )
    return _PAGE.format(
        title=html.escape(f"Why {explanation.span.text!r}?"),
        style="\n".join(_list_styles()),
        facts="\n".join(f"<dt>{name}</dt><dd>{html.escape(told)}</dd>" for name, told in facts),
        context="".join(_list_parts(explanation)),
        tables=html.escape("\n".join(format_explanation(explanation, color=False))),
    )


def _list_styles() -> Iterator[str]:
    for name, hue in _HUES.items():
        for shade in range(1, _SHADES + 1):
            lightness = 97 - 6 * shade
            yield f".{name}{shade} {{ background: hsl({hue} 90% {lightness}%) }}"


def _list_parts(explanation: pb.Explanation) -> Iterator[str]:
    before = explanation.segments[0].begin if explanation.segments else 0
    strengths = compute_strengths(explanation.scores)
    for segment, score, strength in zip(
        explanation.segments, explanation.scores, strengths, strict=False
    ):
        if segment.begin > before:
            yield "\n"
        before = segment.end
        text = html.escape(segment.text)
        signs = format_signs(strength)
        if not signs:
            yield text
            continue
        name = "for" if strength > 0 else "against"
        shade = max(1, round(abs(strength) * _SHADES))
        yield f'<span class="{name}{shade}" title="{score:+.3f}">{text}</span>'
