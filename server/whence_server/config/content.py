"""Settings of what is stored and exported of a generation's content."""

from dataclasses import dataclass

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import accept_choice
from whence_server.domain.content import ContentPolicy


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

    @property
    def content_policy(self) -> ContentPolicy:
        """Most content that is kept."""
        return ContentPolicy[self.journal_content.upper()]
