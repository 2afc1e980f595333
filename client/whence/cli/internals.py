"""Printing of a token's internals: its context by shares, and its layers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest

from whence.cli.render import CANDIDATE_COLUMNS, count_columns, fit_name, format_percent, pad
from whence.internals import Internals, Layer
from whence.summary import escape, quote
from whence.tokens import Token

LISTED = 8
"""Maximum number of listed sources, strongest first; `--json` has all."""

MOST_LAYERS = 12
"""Maximum number of layers shown one by one; more are grouped by leader; `--json` has all."""

_INDENT = " " * 9
_GAP = " " * 3
_BLOCK_COLUMNS = 32
# (text, background) from pale to deep blue in the 256-colour palette.
_SHADES = ((16, 189), (16, 153), (16, 117), (16, 75), (231, 33), (231, 27), (231, 21), (231, 19))
_SPREAD = 0.7  # below 1, so that small shares get different shades
_KEPT_AROUND = 3
_LONGEST_GAP = 8


def format_internals(token: Token, *, color: bool, whole: bool = False) -> Iterator[str]:
    """Yield the lines of a token's recorded internals.

    Args:
        token: the token.
        color: True to print the context in colours of the shares, which are also listed.
        whole: True to print the parts of the context without shares too.
    """
    internals = token.internals
    if internals is None:
        yield f"{_INDENT}no internals are recorded"
        return
    if color and token.context_token_ids and internals.self_share is not None:
        yield f"{_INDENT}{'context':>8}  " + "".join(_color_context(token, internals, whole=whole))
    blocks = [
        block for block in (_format_sources(internals), _format_layers(token, internals)) if block
    ]
    widths = [max(_BLOCK_COLUMNS, *map(count_columns, block)) for block in blocks]
    for row in zip_longest(*blocks, fillvalue=""):
        yield (_INDENT + _GAP.join(map(pad, row, widths))).rstrip()
    if not internals.layers and not token.candidates:
        yield f"{_INDENT}no layers: they are shares among candidates, and there are none"


def format_missing(unavailable: Mapping[str, str]) -> Iterator[str]:
    """Yield lines for the internals that the model cannot give, with the reasons."""
    for part, reason in sorted(unavailable.items()):
        yield f"{_INDENT}no {escape(part)}: {escape(reason)}"


def _format_sources(internals: Internals) -> list[str]:
    """Return a table of the strongest sources, the newest position, the sink and the rest."""
    if internals.self_share is None:
        return []
    listed = internals.sources[:LISTED]
    sink = internals.sink_share
    rest = 1.0 - internals.self_share - (sink or 0.0) - sum(source.share for source in listed)
    return [
        _format_row("position", "drew on", "share"),
        *(
            _format_row(
                source.position,
                _fit_name(source.token_id, source.text),
                format_percent(source.share),
            )
            for source in listed
        ),
        _format_row("", "the newest", format_percent(internals.self_share)),
        *([] if sink is None else [_format_row("", "sink", format_percent(sink))]),
        *([_format_row("", "all others", format_percent(rest))] if rest >= 0.0005 else []),
    ]


def _format_layers(token: Token, internals: Internals) -> list[str]:
    """Return a table of layers or groups of layers, with a mark if the token leads."""
    if not internals.layers:
        return []
    rows = [_format_row("layer", "leading", "itself")]
    for run in _group_layers(internals.layers):
        first, last = run[0], run[-1]
        leads = last.leader_token_id is not None and last.leader_token_id == token.token_id
        text = _fit_name(last.leader_token_id, last.leader_text)
        place = f"{first.index}" if len(run) == 1 else f"{first.index}-{last.index}"
        rows.append(_format_row(place, text, format_percent(last.share)) + (" <" if leads else ""))
    return rows


def _group_layers(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield single layers; if there are many, groups of consecutive ones with the same leader."""
    if len(layers) <= MOST_LAYERS:
        yield from ([layer] for layer in layers)
    else:
        for _, run in groupby(layers, key=lambda layer: layer.leader_token_id):
            yield list(run)


def _format_row(first: int | str, text: str, share: str) -> str:
    return f"{first:>8}  {pad(text, CANDIDATE_COLUMNS)}  {share:>6}"


def _fit_name(token_id: int | None, text: str) -> str:
    return "" if token_id is None else fit_name(text, CANDIDATE_COLUMNS, token_id)


def _color_context(token: Token, internals: Internals, *, whole: bool) -> Iterator[str]:
    """Yield the context's tokens, each in the colour of its share."""
    length = len(token.context_token_ids)
    shares = {source.position: source.share for source in internals.sources}
    shares[length - 1] = internals.self_share or 0.0
    most = max(shares.values())
    shown = range(length) if whole else _select_positions(shares, length)
    before = -1
    for position in shown:
        if position > before + 1:
            yield f" …{position - before - 1} tokens… "
        before = position
        text = quote(token.text_at(position))[1:-1]
        share = shares.get(position, 0.0)
        yield _shade_text(text, share / most) if share > 0 else text


def _select_positions(shares: Mapping[int, float], length: int) -> list[int]:
    """Return positions with a share, their neighbours, and short gaps between them."""
    kept = sorted(
        {
            near
            for position in shares
            for near in range(position - _KEPT_AROUND, position + _KEPT_AROUND + 1)
            if 0 <= near < length
        }
    )
    filled: list[int] = []
    for position in kept:
        begin = filled[-1] + 1 if filled else 0
        filled += range(begin if position - begin <= _LONGEST_GAP else position, position + 1)
    return filled


def _shade_text(text: str, strength: float) -> str:
    ink, paper = _SHADES[min(int(strength**_SPREAD * len(_SHADES)), len(_SHADES) - 1)]
    return f"\x1b[38;5;{ink};48;5;{paper}m{text}\x1b[39;49m"
