"""The only reader of flags, environment and the files that they name."""

from whence_server.config.otlp import otlp_settings
from whence_server.config.settings import ServeConfig, add_arguments, serve_config, setting_fields
from whence_server.config.spelling import flag_of, variable_of

__all__ = [
    "ServeConfig",
    "add_arguments",
    "flag_of",
    "otlp_settings",
    "serve_config",
    "setting_fields",
    "variable_of",
]
