"""What reaches the terminal of a token's internals: its context by shares, its layers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest

from whence.cli.render import CANDIDATE_COLUMNS, columns, named, padded, percent, quoted, safe
from whence.internals import Internals, Layer
from whence.tokens import Token

LISTED = 8
"""Sources in the list, strongest first; `--json` has all."""

MOST_LAYERS = 12
"""More layers than these are shown by where the leader changes; `--json` has all."""

_INDENT = " " * 9
_GAP = " " * 3
_BLOCK_COLUMNS = 32
# From pale to deep blue in the 256-colour palette, each with ink that can be read on it.
_SHADES = ((16, 189), (16, 153), (16, 117), (16, 75), (231, 33), (231, 27), (231, 21), (231, 19))
_SPREAD = 0.7  # small shares are spread out, so that they can be told apart
_KEPT_AROUND = 3
_LONGEST_GAP = 8


def inside_lines(token: Token, *, color: bool, whole: bool = False) -> Iterator[str]:
    """What is on record of a token's inside, on lines below its own.

    Args:
        token: the token.
        color: whether the context's shares are shown as colours; they are listed anyway.
        whole: shows also those stretches of the context that it drew nothing from.
    """
    internals = token.internals
    if internals is None:
        yield f"{_INDENT}no internals are on record"
        return
    if color and token.context_token_ids and internals.self_share is not None:
        yield f"{_INDENT}{'context':>8}  " + "".join(_context(token, internals, whole=whole))
    blocks = [block for block in (_sources(internals), _layers(token, internals)) if block]
    widths = [max(_BLOCK_COLUMNS, *map(columns, block)) for block in blocks]
    for row in zip_longest(*blocks, fillvalue=""):
        yield (_INDENT + _GAP.join(map(padded, row, widths))).rstrip()
    if not internals.layers and not token.candidates:
        yield f"{_INDENT}no layers: they are shares among candidates, and there are none"


def missing_lines(unavailable: Mapping[str, str]) -> Iterator[str]:
    """What the model cannot give, and why: `GenerationStarted.unavailable`."""
    for part, reason in sorted(unavailable.items()):
        yield f"{_INDENT}no {safe(part)}: {safe(reason)}"


def _sources(internals: Internals) -> list[str]:
    """A table of the strongest, of the newest position, and of what is left."""
    if internals.self_share is None:
        return []
    listed = internals.sources[:LISTED]
    rest = 1.0 - internals.self_share - sum(source.share for source in listed)
    return [
        _row("position", "drew on", "share"),
        *(
            _row(source.position, _named(source.token_id, source.text), percent(source.share))
            for source in listed
        ),
        _row("", "the newest", percent(internals.self_share)),
        *([_row("", "all others", percent(rest))] if rest >= 0.0005 else []),
    ]


def _layers(token: Token, internals: Internals) -> list[str]:
    """A table of the layers, each run with its last one's share; a mark where the token leads."""
    if not internals.layers:
        return []
    rows = [_row("layer", "leading", "itself")]
    for run in _runs(internals.layers):
        first, last = run[0], run[-1]
        leads = last.leader_token_id is not None and last.leader_token_id == token.token_id
        text = _named(last.leader_token_id, last.leader_text)
        place = f"{first.index}" if len(run) == 1 else f"{first.index}-{last.index}"
        rows.append(_row(place, text, percent(last.share)) + (" <" if leads else ""))
    return rows


def _runs(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield each layer; of many, those in a row that have the same leader, together."""
    if len(layers) <= MOST_LAYERS:
        yield from ([layer] for layer in layers)
    else:
        for _, run in groupby(layers, key=lambda layer: layer.leader_token_id):
            yield list(run)


def _row(first: int | str, text: str, share: str) -> str:
    return f"{first:>8}  {padded(text, CANDIDATE_COLUMNS)}  {share:>6}"


def _named(token_id: int | None, text: str) -> str:
    return "" if token_id is None else named(text, CANDIDATE_COLUMNS)


def _context(token: Token, internals: Internals, *, whole: bool) -> Iterator[str]:
    """The context's tokens, each in the shade of its share."""
    length = len(token.context_token_ids)
    shares = {source.position: source.share for source in internals.sources}
    shares[length - 1] = internals.self_share or 0.0
    most = max(shares.values())
    shown = range(length) if whole else _near(shares, length)
    before = -1
    for position in shown:
        if position > before + 1:
            yield f" …{position - before - 1} tokens… "
        before = position
        text = quoted(token.text_at(position))[1:-1]
        share = shares.get(position, 0.0)
        yield _shaded(text, share / most) if share > 0 else text


def _near(shares: Mapping[int, float], length: int) -> list[int]:
    """The positions that have a share, what is around them, and gaps too short to leave out."""
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


def _shaded(text: str, strength: float) -> str:
    ink, paper = _SHADES[min(int(strength**_SPREAD * len(_SHADES)), len(_SHADES) - 1)]
    return f"\x1b[38;5;{ink};48;5;{paper}m{text}\x1b[39;49m"
