"""Files of the page: modules, styles and the document that all its addresses have."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_DOCUMENT = "index.html"
_OWN, _SHARED = files("whence_server.http.page") / "static", files("whence") / "page"
"""Folders of the files: those of this page alone, and those of the self-contained page too."""
# The self-contained page's own, which this page has no use for.
_LEFT_OUT = frozenset({"page.js", "page.css", "page.html"})


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, as it is sent.

    Attributes:
        content: the bytes.
        compressed: the same, compressed with gzip.
        media_type: its media type; its text is UTF-8.
        tag: its entity tag, with quotes.
    """

    content: bytes
    compressed: bytes
    media_type: str
    tag: str


@cache
def load_document() -> PageFile:
    """Return the document, which names all modules, so that a browser fetches them at once."""
    names = sorted(name for name in load_files() if name.endswith(".js"))
    links = "\n".join(f'<link rel="modulepreload" href="/page/{name}">' for name in names)
    template = (_OWN / _DOCUMENT).read_text(encoding="utf-8")
    return _make_file(_DOCUMENT, template.replace("{{preload}}", links).encode())


@cache
def load_files() -> Mapping[str, PageFile]:
    """Return the other files by name."""
    found = {}
    for folder in (_SHARED, _OWN):
        for entry in folder.iterdir():
            if _get_suffix(entry) in _TYPES and entry.name not in {*_LEFT_OUT, _DOCUMENT}:
                if entry.name in found:
                    raise RuntimeError(f"both folders have {entry.name}")
                found[entry.name] = _make_file(entry.name, entry.read_bytes())
    return found


def _get_suffix(entry: Traversable) -> str:
    _, dot, suffix = entry.name.rpartition(".")
    return dot + suffix


def _make_file(name: str, content: bytes) -> PageFile:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    media_type = _TYPES[name[name.rindex(".") :]]
    return PageFile(content, gzip.compress(content, mtime=0), media_type, tag)
