"""Redaction of everything that is stored, by the settings."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.generation import CallRecord, Started
from whence_server.domain.retention import LabelPattern, RetentionPolicy
from whence_server.generation.content.forms import RedactingForm

if TYPE_CHECKING:
    from whence_server.redaction.stream import Detectors


class Redaction(NamedTuple):
    """Functions that redact what is stored.

    Attributes:
        make_form: returns the stored form of a generation, of its start and the digest that stands
            for its request's; None if nothing is redacted.
        redact_call: returns a call as it is stored.
        redact_label: returns a short text as it is stored: the name or the value of a label, or
            the contrast of an explanation.
    """

    make_form: Callable[[Started, str], RedactingForm] | None
    redact_call: Callable[[CallRecord], CallRecord]
    redact_label: Callable[[str], str]

    def check_labels(self, policy: RetentionPolicy) -> None:
        """Check that rules of retention match what is stored.

        Raises:
            ConfigurationError: a rule has a label that is never stored as it is written.
        """
        rules = [("--hold-label", hold) for hold in policy.holds]
        rules += [("--retain-label", rule.pattern) for rule in policy.label_ages]
        for setting, pattern in rules:
            stored = LabelPattern(*map(self.redact_label, pattern))
            if stored != pattern:
                raise ConfigurationError(
                    f"{setting} {pattern}: matches nothing, because redaction (--redact, "
                    f"--redact-patterns) stores this label as {stored}; write that, or choose "
                    "labels that are not redacted"
                )


def open_redaction(kinds: Collection[str], patterns: Path | None) -> Redaction:
    """Return the redaction that the settings name.

    Args:
        kinds: names of whence's own detectors.
        patterns: file of own patterns.

    Raises:
        ConfigurationError: the file or a pattern is unusable.
    """
    if not kinds and patterns is None:
        return Redaction(None, lambda call: call, lambda text: text)
    # RE2 is loaded only if it is needed.
    from whence_server.generation.content.redacting import RedactedForm
    from whence_server.redaction.opening import open_detectors

    detectors = open_detectors(kinds, patterns)

    def make_form(started: Started, request_digest: str) -> RedactingForm:
        return RedactedForm(detectors, started.decoding.num_return_sequences, request_digest)

    return Redaction(make_form, partial(_redact_call, detectors), partial(_redact_label, detectors))


def _redact_call(detectors: "Detectors", call: CallRecord) -> CallRecord:
    """Return a call whose error quotes nothing that is redacted."""
    from whence_server.generation.content.redacted_texts import redact_text

    if call.error is None:
        return call
    message, _ = redact_text(call.error.message, detectors, "message")
    field, _ = redact_text(call.error.field, detectors, "field")
    return replace(call, error=replace(call.error, message=message, field=field))


def _redact_label(detectors: "Detectors", text: str) -> str:
    """Return the name or the value of a label as it is stored."""
    from whence_server.generation.content.redacted_texts import redact_text

    return redact_text(text, detectors, "")[0]
