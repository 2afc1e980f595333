"""The text that the demo's model learns from: the language reference that every Python carries."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

# Where the reference's own lines are broken.
_LINE_LENGTH = 70


def documents() -> dict[str, str]:
    """One document for each of `help()`'s topics, by the topic's name."""
    return {name: unwrapped(topics[name]) for name in sorted(topics)}


def corpus_digest() -> str:
    """SHA-256 of the documents, in hex: it changes with the Python release."""
    return hashlib.sha256(json.dumps(documents()).encode()).hexdigest()


def corpus_folder(cache_dir: Path) -> Path:
    """A folder with a text file for each document, whole; written where it is not cached."""
    folder = cache_dir / f"demo-corpus-{corpus_digest()[:12]}"
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache_dir))
    try:
        for name, text in documents().items():
            (partial / f"{name}.txt").write_text(text, encoding="utf-8")
        partial.rename(folder)
    except OSError:
        # Another process may have been first.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def unwrapped(text: str) -> str:
    """The text with each paragraph on one line: where a line was full means nothing to learn.

    A line goes on in the next where the next one's first word would not have fitted on it;
    what has room left, such as code and grammar, was broken on purpose. A first word without
    letters or digits is a table's, a heading's underline or a comment's mark. Of several empty
    lines one is left: a small model would not stop making them.
    """
    lines: list[str] = []
    room = _LINE_LENGTH
    for line in text.splitlines():
        first_word = line.strip().partition(" ")[0]
        is_word = any(character.isalnum() for character in first_word)
        if is_word and len(first_word) >= room:
            lines[-1] += f" {line.strip()}"
        elif line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
        # What the line, as it stands in the source, leaves for a blank and a word; an empty
        # one ends its paragraph.
        room = _LINE_LENGTH - len(line)
    return "\n".join(lines)
