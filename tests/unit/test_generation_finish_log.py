"""Log line of a generation's end: it has reasons, and never content."""

from types import SimpleNamespace
from typing import Any

import pytest

from whence_server.domain.errors import Code
from whence_server.domain.generation import Failure, RecordedOrigin
from whence_server.generation.running import describe_failure

SECRET = "the capital of Atlantis"


@pytest.mark.parametrize(
    ("reason", "recorded", "logged"),
    [
        ("UPSTREAM_REFUSED", None, "UPSTREAM_REFUSED"),
        ("ValueError", RecordedOrigin("x/1", 1, 0), "ValueError"),
        ("NON_FINITE_LOGITS", None, f"NON_FINITE_LOGITS: {SECRET}"),
    ],
)
def test_message_that_may_quote_the_prompt_is_not_logged(
    reason: str, recorded: RecordedOrigin | None, logged: str
) -> None:
    started: Any = SimpleNamespace(recorded=recorded)
    assert describe_failure(Failure(Code.INTERNAL, reason, SECRET), started) == logged
