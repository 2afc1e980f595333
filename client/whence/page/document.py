"""The page: a template with style and program, and the record as data."""

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from whence.page.record import make_page_record
from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary

# Modules in the order in which each needs those before it.
_PROGRAM = ("parts.js", "text.js", "details.js", "overview.js", "facts.js", "view.js", "page.js")
# Characters that a browser could take for the end of a script or for markup.
_MARKUP = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def make_page(
    started: GenerationStarted,
    finished: GenerationFinished | None,
    steps: Iterable[Step],
    *,
    prompt_steps: Iterable[Step] = (),
    vocabulary: Vocabulary | None = None,
) -> str:
    """Return a generation as an HTML page that needs no other files and no network.

    The record is data to the page: its text is never interpreted as markup, and the
    Content-Security-Policy lets only the page's own program run.

    Args:
        started: the generation's start.
        finished: the generation's finish; None while it is running.
        steps: steps of the generation, in the order in which they were recorded.
        prompt_steps: steps of the prompt, if they were recorded.
        vocabulary: texts of the token ids; without it they are shown as numbers.

    Returns:
        The page, to be encoded as UTF-8.
    """
    record = make_page_record(started, finished, steps, prompt_steps, vocabulary)
    style = _read_resource("view.css") + _read_resource("page.css")
    program = '"use strict";\n' + "".join(_read_module(name) for name in _PROGRAM)
    parts = {
        "policy": _make_policy(program, style),
        "title": _encode_ascii(html.escape(f"{started.model}: {_shorten(record['text'])}")),
        "style": style,
        "record": _encode_data(record),
        "program": program,
        "text": _encode_ascii(html.escape(record["prompt"]["text"] + record["text"])),
    }
    # In one pass, so that inserted text is not scanned again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read_resource("page.html"))


def _make_policy(program: str, style: str) -> str:
    """Return a policy that allows the page's program and style by digest, and no requests."""
    return (
        f"default-src 'none'; script-src '{_compute_digest(program)}'; "
        f"style-src '{_compute_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _compute_digest(source: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _encode_data(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).translate(_MARKUP)


def _encode_ascii(escaped: str) -> str:
    """Return text as ASCII with character references, which is the same in every encoding.

    Control characters, for which HTML has no reference, become U+FFFD.
    """
    shown = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", escaped)
    return shown.encode("ascii", "xmlcharrefreplace").decode()


def _shorten(text: str) -> str:
    first, *rest = text.strip().split("\n", 1)
    return first[:60] + ("…" if rest or len(first) > 60 else "")


def _read_module(name: str) -> str:
    """Return a module's text for a script of all modules: without its imports and exports."""
    text = re.sub(
        r"^import \{[^}]*\} from \"[^\"]*\";\n", "", _read_resource(name), flags=re.MULTILINE
    )
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)


def _read_resource(name: str) -> str:
    return files("whence.page").joinpath(name).read_text(encoding="utf-8")
