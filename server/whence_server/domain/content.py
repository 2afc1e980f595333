"""Content policy: the part of a generation's content that is stored and exported."""

from enum import Enum


class ContentPolicy(Enum):
    """Content that is kept of a generation: a larger value keeps less. Values are on the wire."""

    FULL = 1
    TOKENS = 2
    """Token ids and numbers, and no text."""
    NONE = 3
    """Numbers alone."""

    @property
    def spelling(self) -> str:
        """Word for the policy in settings and messages."""
        return self.name.lower()

    @property
    def is_whole(self) -> bool:
        """True if nothing is left out."""
        return self is ContentPolicy.FULL

    def find_fault(self, most: "ContentPolicy") -> str:
        """Return why a request cannot ask for this policy; "" if it can.

        Args:
            most: the server's policy, which a request can only lower.
        """
        if self.value >= most.value:
            return ""
        lower = " or ".join(f"'{it.spelling}'" for it in ContentPolicy if it.value >= most.value)
        return (
            f"is '{self.spelling}', and this server keeps '{most.spelling}' "
            f"(--journal-content), which a request can only lower: leave it unset, or ask for "
            f"{lower}"
        )
