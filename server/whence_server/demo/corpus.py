"""Training text of the demo's model: the language reference that is part of every Python."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

# Line width of the reference.
_LINE_LENGTH = 70


def load_documents() -> dict[str, str]:
    """Return one document for each of `help()`'s topics, by the topic's name."""
    return {name: unwrap(topics[name]) for name in sorted(topics)}


def compute_corpus_digest() -> str:
    """Return the SHA-256 of the documents, in hex; it changes with the Python release."""
    return hashlib.sha256(json.dumps(load_documents()).encode()).hexdigest()


def ensure_corpus_folder(cache_dir: Path) -> Path:
    """Return the cached folder with a text file for each document, written if it is missing."""
    folder = cache_dir / f"demo-corpus-{compute_corpus_digest()[:12]}"
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache_dir))
    try:
        for name, text in load_documents().items():
            (partial / f"{name}.txt").write_text(text, encoding="utf-8")
        partial.rename(folder)
    except OSError:
        # Another process may have been first.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def unwrap(text: str) -> str:
    """Put each paragraph on one line, so that the model does not learn where lines were broken.

    Two lines are joined if the second one's first word would not have fitted on the first; lines
    with room left, for example code and grammar, were broken on purpose. A first word without
    letters or digits belongs to a table, a heading's underline or a comment, and is not joined.
    Consecutive empty lines become one: a small model would not stop generating them.
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
        # Room that the source's line leaves for a blank and a word; an empty line ends its
        # paragraph.
        room = _LINE_LENGTH - len(line)
    return "\n".join(lines)
