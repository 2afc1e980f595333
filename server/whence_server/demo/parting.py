"""The place where two generations of the same request part, and the choices made there."""

from collections.abc import Iterator, Sequence

from whence import Token
from whence.summary import count, quote


def format_parting(
    one: Sequence[Token], other: Sequence[Token], names: tuple[str, str]
) -> Iterator[str]:
    """Yield lines that say where two sequences of tokens part, and how each chose its token there.

    Args:
        one: tokens of the first generation.
        other: tokens of the second generation.
        names: names of the two generations.
    """
    index = find_parting(one, other)
    if index is None:
        yield "Both draw the same tokens."
        return
    if index:
        begin = quote("".join(token.text for token in one[:index]))
        yield f"Both begin with the same {count(index, 'token')}, {begin}, and then part:"
    else:
        yield "They part at the first token:"
    width = max(map(len, names))
    for name, tokens in zip(names, (one, other), strict=True):
        yield f"  {name:<{width}}  {tokens[index].summary}"


def find_parting(one: Sequence[Token], other: Sequence[Token]) -> int | None:
    """Return the index of the first token that differs; None if there is none."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left.token_id != right.token_id:
            return index
    return None
