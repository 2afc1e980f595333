"""Headers of messages that a chat template writes after its special tokens."""

import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(
    r"(?:assistant|critic|developer|function|human|ipython|model|observation|system|tool|user)"
    r"(?P<end>\s*\n)?\s*"
)
"""A role, alone in its line or between two special tokens."""


def find_headers(text: str, special_places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the headers' characters: roles after special tokens, and line breaks around them.

    ChatML (<|im_start|>user), Llama 3 (<|start_header_id|>user<|end_header_id|>) and Gemma
    (<start_of_turn>user) have this form, with line breaks at the end.

    Args:
        text: text of a prompt, without its special tokens.
        special_places: characters of the text before which special tokens stand, ascending.
    """
    places = sorted(set(special_places))
    for i, place in enumerate(places):
        after = places[i + 1] if i + 1 < len(places) else len(text)
        header = _HEADER.match(text, place, after)
        if header is not None and (header["end"] or header.end() == after):
            yield header.span()
        else:
            blank = re.compile(r"\s*\n\s*").match(text, place, after)
            if blank is not None:
                yield blank.span()
