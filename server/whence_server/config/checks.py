"""Checks of settings that depend on each other."""

from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from whence_server.config.settings import ServeConfig


def check_settings(config: "ServeConfig") -> None:
    """Check settings against each other.

    Raises:
        ConfigurationError: two of them contradict, or one needs another.
    """
    _check_adapters(config)
    _check_origins(config)


def _check_adapters(config: "ServeConfig") -> None:
    names = [name for name, _ in config.adapters]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"--adapter {name}: {names.count(name)} adapters have this name; give each its own"
            )


def _check_origins(config: "ServeConfig") -> None:
    if config.http_allow_origin and not config.http_listen:
        raise ConfigurationError(
            "--http-allow-origin has no effect without --http-listen; give that too"
        )
