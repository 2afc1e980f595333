"""Settings of the signed statements about generations."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import accept_choice, parse_path
from whence_server.domain.errors import ConfigurationError


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class SigningSettings:
    """The part of the server's settings that says how generations are signed."""

    signing: str = declare_setting(
        "on",
        accept_choice("on", "off"),
        "on signs a statement about every generation at its end; off signs nothing",
        "CHOICE",
    )
    signing_key: Path | None = declare_setting(
        None,
        parse_path,
        "private key of the statements, PEM, elliptic curve P-256; it is made at the first start "
        "(default: signing-key.pem in --data-dir)",
        "FILE",
    )


def check_signing(settings: SigningSettings) -> None:
    """Check settings that must fit together.

    Raises:
        ConfigurationError: they do not.
    """
    if settings.signing == "off" and settings.signing_key is not None:
        raise ConfigurationError("--signing-key is set, and --signing off signs nothing")
