"""Settings of what is stored and exported of a generation's content."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.config.access import parse_file
from whence_server.config.fields import declare_setting
from whence_server.config.spelling import accept_choice
from whence_server.domain.content import ContentPolicy
from whence_server.domain.redaction import KINDS


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse all, none, or kinds with commas between."""
    if text in {"all", "none"}:
        return KINDS if text == "all" else ()
    kinds = tuple(part.strip() for part in text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(
                f"{kind!r} is no kind; expected all, none, or some of {', '.join(KINDS)}"
            )
    return kinds


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class ContentSettings:
    """The part of the server's settings that says what content is kept."""

    journal_content: str = declare_setting(
        ContentPolicy.FULL.spelling,
        accept_choice(*(policy.spelling for policy in ContentPolicy)),
        "content of generations that is stored, exported and shown to readers of the record: full; "
        "tokens, token ids and numbers without text; none, numbers alone. Requests can lower it. "
        "The caller's own stream is whole",
        "CONTENT",
    )
    redact: tuple[str, ...] = declare_setting(
        (),
        parse_kinds,
        "kinds of texts that are replaced by a mark before they are stored or exported: mail "
        "(addresses), card (numbers of payment cards), iban, phone (numbers), key (keys and tokens "
        "of services), with commas between; or all (default: none). The caller's own stream is "
        "whole",
        "KINDS",
    )
    redact_patterns: Path | None = declare_setting(
        None,
        parse_file,
        "TOML file with the table [patterns]: names, and regular expressions in RE2's syntax; "
        "their matches are replaced as those of --redact are (default: none)",
        "FILE",
    )

    @property
    def content_policy(self) -> ContentPolicy:
        """Most content that is kept."""
        return ContentPolicy[self.journal_content.upper()]
