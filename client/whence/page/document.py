"""The page itself: a template, its style and its program, and the record as data."""

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from whence.page.record import page_record
from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary

_PROGRAM = ("parts.js", "text.js", "details.js", "page.js")
# What a browser would take for the end of a script, or for markup inside of it.
_MARKUP = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def page(
    started: GenerationStarted,
    finished: GenerationFinished | None,
    steps: Iterable[Step],
    *,
    prompt_steps: Iterable[Step] = (),
    vocabulary: Vocabulary | None = None,
) -> str:
    """A generation as a page of HTML that needs nothing else, neither files nor a network.

    Whatever the record holds is data to the page: text is never taken for markup, and its
    Content-Security-Policy lets no other program run than its own.

    Args:
        started: the generation's start.
        finished: its end; None while it runs.
        steps: its tokens, in the order in which they were recorded.
        prompt_steps: its prompt's, where they were traced.
        vocabulary: what the token ids mean; without it they are shown as numbers.

    Returns:
        The page; as a file, in UTF-8.
    """
    record = page_record(started, finished, steps, prompt_steps, vocabulary)
    style = _resource("page.css")
    program = "".join(map(_resource, _PROGRAM))
    parts = {
        "policy": _policy(program, style),
        "title": _ascii(html.escape(f"{started.model}: {_shortened(record['text'])}")),
        "style": style,
        "record": _data(record),
        "program": program,
        "text": _ascii(html.escape(record["prompt"]["text"] + record["text"])),
    }
    # In one pass: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


def _policy(program: str, style: str) -> str:
    """Let run what is on the page, by its digest, and nothing be fetched."""
    return (
        f"default-src 'none'; script-src '{_digest(program)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(source: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _data(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).translate(_MARKUP)


def _ascii(escaped: str) -> str:
    """Text in references to its characters, so that no encoding can make another of it.

    A character that HTML has no reference for (a control character) is shown as U+FFFD.
    """
    shown = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", escaped)
    return shown.encode("ascii", "xmlcharrefreplace").decode()


def _shortened(text: str) -> str:
    first, *rest = text.strip().split("\n", 1)
    return first[:60] + ("…" if rest or len(first) > 60 else "")


def _resource(name: str) -> str:
    return files("whence.page").joinpath(name).read_text(encoding="utf-8")
