"""Settings of retention: for how long generations are kept, and which are never deleted."""

import argparse
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from whence_server.config.fields import declare_setting
from whence_server.config.reading import add_field_arguments, read_field_values
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.retention import (
    ANY_VALUE,
    LabelAge,
    LabelPattern,
    RetentionPolicy,
    spell_age,
)

AI_ACT = "ai-act"
AI_ACT_S = 184 * 86_400
"""The longest six months of the calendar: from 1 March to 1 September."""
DEFAULT_UNREAD_S = 7 * 86_400
_UNITS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_S = 100 * 366 * 86_400
_MULTIPLES = {"": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1_000), ("iB", 1_024))
    for power, prefix in enumerate("KMGT", 1)
}
_LEAST_BYTES = 1_000_000


def parse_age(text: str) -> int:
    """Parse an age, as 36h, 180d or 26w; return seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", text)
    age_s = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < age_s <= _LONGEST_S:
        raise ValueError(
            "expected a whole number of hours, days or weeks, as 36h, 180d or 26w, and at most a "
            "hundred years"
        )
    return age_s


def parse_general_age(text: str) -> int | str:
    """Parse an age, or the name of the preset."""
    if text == AI_ACT:
        return AI_ACT
    try:
        return parse_age(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {AI_ACT}") from None


def parse_size(text: str) -> int:
    """Parse a size, as 50GB or 64GiB; return bytes, 0 for no limit."""
    found = re.fullmatch(r"([0-9]{1,15})\s?([KMGT]i?B)?", text)
    size = int(found[1]) * _MULTIPLES[found[2] or ""] if found else -1
    if size != 0 and not _LEAST_BYTES <= size <= 2**60:
        raise ValueError("expected 0 or a size from 1MB on, as 800MB, 50GB or 64GiB")
    return size


def parse_label_age(text: str) -> LabelAge:
    """Parse NAME=VALUE=AGE; a value may contain "="."""
    pattern, _, age = text.rpartition("=")
    if "=" not in pattern:
        raise ValueError("expected NAME=VALUE=AGE, as env=test=7d, or NAME=*=AGE for every value")
    return LabelAge(parse_label_pattern(pattern), parse_age(age))


def parse_label_pattern(text: str) -> LabelPattern:
    """Parse NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not name or not separator or not value:
        raise ValueError(
            f"expected NAME=VALUE, as matter=2031-17, or NAME={ANY_VALUE} for every value"
        )
    return LabelPattern(name, value)


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """The part of the server's settings that says for how long generations are kept."""

    retain: int | str | None = declare_setting(
        None,
        parse_general_age,
        "age at which a generation is deleted, counted from its request: hours, days or weeks, as "
        "36h, 180d or 26w; or ai-act, 184 days, which is at least the six months of Art. 19 and 26 "
        "of Regulation (EU) 2024/1689 (default: never)",
        "AGE",
    )
    retain_labels: tuple[LabelAge, ...] = declare_setting(
        (),
        parse_label_age,
        "age at which generations with a label are deleted, in place of --retain; the value * "
        "matches every value, and the shortest of several ages holds; the flag can be repeated, "
        "and commas separate the rules in the variable",
        "NAME=VALUE=AGE",
        each="--retain-label",
    )
    retain_bytes: int = declare_setting(
        0,
        parse_size,
        "size of the journal, as 50GB or 64GiB, above which the oldest generations are deleted; "
        "pages that can be reused do not count; with --journal, the size of this server's log "
        "(default: 0, no limit)",
        "SIZE",
    )
    retain_unread: int = declare_setting(
        DEFAULT_UNREAD_S,
        parse_age,
        "time for which a generation past its age is kept for an export that has not read it; "
        "after it, and at 125% of --retain-bytes, it is deleted unread, counted and logged "
        "(default: 7d)",
        "AGE",
    )
    hold_labels: tuple[LabelPattern, ...] = declare_setting(
        (),
        parse_label_pattern,
        "label of generations that nothing deletes, no age, no size and no caller, as long as "
        "this is set; the value * matches every value; the flag can be repeated, and commas "
        "separate the labels in the variable",
        "NAME=VALUE",
        each="--hold-label",
    )

    @property
    def retention_policy(self) -> RetentionPolicy:
        """The rules that these settings make."""
        age_s = AI_ACT_S if isinstance(self.retain, str) else self.retain
        return RetentionPolicy(
            age_s, self.retain_bytes, self.retain_labels, self.hold_labels, self.retain_unread
        )


def check_retention(settings: RetentionSettings) -> None:
    """Check settings against each other.

    Raises:
        ConfigurationError: the preset promises six months, and another setting breaks it.
    """
    seen: dict[LabelPattern, int] = {}
    for rule in settings.retain_labels:
        if seen.setdefault(rule.pattern, rule.age_s) != rule.age_s:
            raise ConfigurationError(
                f"--retain-label {rule.pattern} is given with {spell_age(seen[rule.pattern])} and "
                f"with {spell_age(rule.age_s)}: give one age"
            )
    if settings.retain_unread != DEFAULT_UNREAD_S and not settings.retention_policy.deletes:
        raise ConfigurationError(
            "--retain-unread is set, and no setting deletes anything: give --retain, "
            "--retain-label or --retain-bytes with it"
        )
    if settings.retain != AI_ACT:
        return
    for rule in settings.retain_labels:
        if rule.age_s < AI_ACT_S:
            raise ConfigurationError(
                f"--retain {AI_ACT} keeps every generation for at least six months, and {rule} is "
                f"shorter: give at least {spell_age(AI_ACT_S)}, or give --retain "
                f"{spell_age(AI_ACT_S)}, which promises nothing for labels with an age of their own"
            )
    if settings.retain_bytes:
        raise ConfigurationError(
            f"--retain {AI_ACT} keeps every generation for at least six months, and --retain-bytes "
            f"would delete younger ones when the journal grows: give --retain "
            f"{spell_age(AI_ACT_S)} with it, or leave it out"
        )


def add_retention_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of retention to a parser; `read_retention_policy` reads them."""
    add_field_arguments(parser, dataclasses.fields(RetentionSettings))


def read_retention_policy(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> RetentionPolicy:
    """Read the policy of retention from parsed flags and the server's environment variables.

    Raises:
        ConfigurationError: a setting is malformed, or breaks another.
    """
    fields = dataclasses.fields(RetentionSettings)
    settings = RetentionSettings(**read_field_values(fields, arguments, environment))
    check_retention(settings)
    return settings.retention_policy
