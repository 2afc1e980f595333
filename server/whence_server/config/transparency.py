"""Settings of the transparency log."""

from dataclasses import dataclass
from pathlib import Path

from whence.proof.notes import COSIGNATURE, VerifierKey, check_name
from whence_server.config.fields import declare_setting
from whence_server.config.spelling import (
    accept_whole,
    parse_path,
    parse_seconds,
    parse_switch,
    parse_text,
)
from whence_server.domain.errors import ConfigurationError

_SHORTEST_INTERVAL_S, _LONGEST_INTERVAL_S = 0.1, 3_600.0


def parse_interval_seconds(text: str) -> float:
    """Parse the seconds between two checkpoints."""
    seconds = parse_seconds(text)
    if not _SHORTEST_INTERVAL_S <= seconds <= _LONGEST_INTERVAL_S:
        raise ValueError(f"expected {_SHORTEST_INTERVAL_S:g} to {_LONGEST_INTERVAL_S:,g} seconds")
    return seconds


def parse_log_origin(text: str) -> str:
    """Parse the name of a log."""
    origin = parse_text(text)
    check_name(origin)
    return origin


def parse_witness(text: str) -> tuple[str, VerifierKey]:
    """Parse a witness's URL and key, URL=KEY."""
    url, found, key_text = text.partition("=")
    if not found or not url.startswith(("http://", "https://")) or "?" in url:
        raise ValueError("expected URL=KEY, as https://witness.example=NAME+ID+BASE64")
    key = VerifierKey.parse(key_text)
    if key.algorithm != COSIGNATURE:
        raise ValueError(f"the key of {key.name} signs logs; expected one for cosignatures (4)")
    return url, key


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class TransparencySettings:
    """The settings of the transparency log."""

    no_transparency_log: bool = declare_setting(
        False,
        parse_switch,
        "keep no transparency log of signed statements (docs/proof-log.md)",
    )
    log_key: Path | None = declare_setting(
        None,
        parse_path,
        "PEM file of the Ed25519 key that signs the transparency log's checkpoints; made at the "
        "log's first start; servers that share --journal need the same one (default: log-key.pem "
        "in --data-dir)",
        "FILE",
    )
    log_origin: str = declare_setting(
        "",
        parse_log_origin,
        "name of the transparency log, as example.com/whence, which it keeps (default: whence/ and "
        "the id of the journal)",
        "NAME",
    )
    log_dir: Path | None = declare_setting(
        None,
        parse_path,
        "directory in which the transparency log is published as files, for any web server "
        "(default: none)",
        "DIR",
    )
    log_checkpoint_interval: float = declare_setting(
        1.0,
        parse_interval_seconds,
        "seconds after the end of a generation until the transparency log has it, in a new "
        "checkpoint together with those that ended meanwhile",
        "S",
    )
    log_checkpoint_entries: int = declare_setting(
        1_000,
        accept_whole(1, 10_000),
        "most entries between two checkpoints of the transparency log",
        "N",
    )
    witnesses: tuple[tuple[str, VerifierKey], ...] = declare_setting(
        (),
        parse_witness,
        "URL and verifier key of a witness that cosigns the transparency log's checkpoints, "
        "URL=NAME+ID+BASE64; the flag can be repeated, and commas separate the witnesses in the "
        "variable (default: none)",
        "URL=KEY",
        each="--witness",
    )
    witness_quorum: int = declare_setting(
        0,
        accept_whole(0, 64),
        "number of witnesses that must have cosigned a checkpoint before it is published",
        "N",
    )


def check_transparency(settings: TransparencySettings) -> None:
    """Check settings that must fit together.

    Raises:
        ConfigurationError: they do not.
    """
    names = [key.name for _, key in settings.witnesses]
    if len(set(names)) < len(names):
        raise ConfigurationError("--witness: two witnesses have the same name")
    if settings.witness_quorum > len(names):
        raise ConfigurationError(
            f"--witness-quorum {settings.witness_quorum}: only {len(names)} witnesses are named; "
            "name more with --witness"
        )
    flags = {
        "--log-key": settings.log_key,
        "--log-origin": settings.log_origin,
        "--log-dir": settings.log_dir,
        "--witness": settings.witnesses,
    }
    given = [flag for flag, value in flags.items() if value]
    if settings.no_transparency_log and given:
        raise ConfigurationError(f"{given[0]} is set together with --no-transparency-log")
