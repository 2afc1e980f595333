"""The text that the demo's model learns from: the language reference that every Python carries."""

import hashlib
import json
from pydoc_data.topics import topics


def documents() -> list[str]:
    """One document for each of `help()`'s topics, by the topic's name."""
    return [topics[name] for name in sorted(topics)]


def corpus_digest() -> str:
    """SHA-256 of the documents, in hex: it changes with the Python release."""
    return hashlib.sha256(json.dumps(documents()).encode()).hexdigest()
