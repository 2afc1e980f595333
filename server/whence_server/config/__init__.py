"""The only reader of flags, environment and the files that they name."""

from whence_server.config.otlp import otlp_settings, unused_variables
from whence_server.config.settings import ServeConfig, add_arguments, serve_config, setting_fields
from whence_server.config.spelling import flag_of, variable_of
from whence_server.config.training import (
    TrainConfig,
    add_train_arguments,
    recorded_config,
    train_config,
    train_fields,
    train_flag,
    train_settings,
)

__all__ = [
    "ServeConfig",
    "TrainConfig",
    "add_arguments",
    "add_train_arguments",
    "flag_of",
    "otlp_settings",
    "recorded_config",
    "serve_config",
    "setting_fields",
    "train_config",
    "train_fields",
    "train_flag",
    "train_settings",
    "unused_variables",
    "variable_of",
]
