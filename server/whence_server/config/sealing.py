"""Settings of the journal's encryption."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import parse_path
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.key_sources import KeySource, parse_key_source


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class SealingSettings:
    """The part of the server's settings that says how the journal is encrypted."""

    journal_key: KeySource | None = declare_setting(
        None,
        parse_key_source,
        "place of the master key with which the content of the journal is encrypted: FILE, "
        "file:FILE, env:NAME, or exec:COMMAND, which prints it; `whence-server key new` makes one "
        "(default: the journal is not encrypted)",
        "PLACE",
    )
    journal_keys: Path | None = declare_setting(
        None,
        parse_path,
        "database of the keys of generations, wrapped by the master key (default: keys.db in "
        "--data-dir)",
        "FILE",
    )


def check_sealing(settings: SealingSettings) -> None:
    """Check settings that must fit together.

    Raises:
        ConfigurationError: they do not.
    """
    if settings.journal_keys is not None and settings.journal_key is None:
        raise ConfigurationError(
            "--journal-keys is set without --journal-key, which unwraps the keys in it"
        )
