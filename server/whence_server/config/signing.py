"""Settings of the signed statements about generations."""

from dataclasses import dataclass

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import accept_choice
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.signing import parse_signing_key


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
    signing_key: str | None = declare_setting(
        None,
        parse_signing_key,
        "private key of the statements: FILE, PEM on the curve P-256, which the first start makes "
        "(default: signing-key.pem in --data-dir); or awskms:, gcpkms:, azurekms:, hsm: with a key "
        "that signs the server's own key",
        "PLACE",
    )


def check_signing(settings: SigningSettings) -> None:
    """Check settings that must fit together.

    Raises:
        ConfigurationError: they do not.
    """
    if settings.signing == "off" and settings.signing_key is not None:
        raise ConfigurationError("--signing-key is set, and --signing off signs nothing")
